"""Tests, and the processes that they start, run the code beside them, whatever else is installed, and can be interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hypothesis import settings

import sim

ROOT = Path(__file__).parents[1]

assert Path(sim.__file__).parents[1] == ROOT, f"{sim.__file__} is not the code beside these tests"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
# The same examples on every run, and no limit to the time of one: a busy machine fails no test.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)
