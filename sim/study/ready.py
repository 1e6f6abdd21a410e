"""Load all that simulates and measures, and its compiled code, so that forks begin with it: a second and 90 MB for each of them
otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sim.runs.compile_ahead import SEQUENCES
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.study.batches import Job
from sim.study.metrics import measure


def load() -> None:
    """Run a small example. It starts no threads, which forks would lack."""
    with _without("scipy"):  # Numba imports it for products of matrices, which no kernel has: a tenth of all this
        measure(Job.of(plan(from_dict(SEQUENCES))))


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let a module that is not imported yet appear as not installed."""
    sys.modules.setdefault(module, None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if sys.modules[module] is None:
            del sys.modules[module]
