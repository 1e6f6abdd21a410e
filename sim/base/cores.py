"""Cores of this machine."""

from __future__ import annotations

import os

#: Environment variable that says how many to use.
CORES = "DECODE_SIM_THREADS"


def cores() -> int:
    """Cores that this process may use; `DECODE_SIM_THREADS` may say fewer."""
    asked = os.environ.get(CORES, "")
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(asked), there)) if asked.isdecimal() else there
