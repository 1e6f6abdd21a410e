"""Tests, and the processes that they start, run the code beside them, whatever else is installed, and can be interrupted.

Examples of property tests are the same in every run, so that a change passes or fails wherever it is tested; `make explore`
draws new ones.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

from hypothesis import settings

import sim

ROOT = Path(__file__).parents[1]

assert Path(sim.__file__).parents[1] == ROOT, f"{sim.__file__} is not the code beside these tests"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
# A busy machine fails no test: there is no limit to the time of an example.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Full collections of garbage look at all objects there are: with torch and thousands of tests, a tenth of all CPU time.

    So they come seldom, and leave out what is there before the first test.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
