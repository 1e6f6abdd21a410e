"""Memory that processes of a study share: the server of processes imports this module, and its forks have all of it in memory.

That is all modules that simulate and measure, and their compiled code, which the run of a small example loads: a second for
each process otherwise, and 90 MB.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sim.base.cores import CORES
from sim.base.kernel import loaded
from sim.runs.compile_ahead import SEQUENCES
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.study.batches import Job
from sim.study.metrics import measure


def load() -> None:
    """Load all that simulates. It starts no threads, which forks would lack."""
    with _without("scipy"):  # Numba imports it for products of matrices, which no kernel has: a tenth of all this
        measure(Job.of(plan(from_dict(SEQUENCES))))
    gc.collect()


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let a module that is not imported yet appear as not installed."""
    sys.modules.setdefault(module, None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if sys.modules[module] is None:
            del sys.modules[module]


os.environ[CORES] = "1"
if not loaded():  # else the server is a fork of a process that has simulated
    load()
gc.freeze()  # what is collected no more is not written to, so forks go on to share it
