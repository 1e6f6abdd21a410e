"""Number of cores to use."""

from __future__ import annotations

import os

#: Environment variable that limits their number.
CORES = "DECODE_SIM_THREADS"


def cores() -> int:
    """Cores that this process may use; `DECODE_SIM_THREADS` may limit them."""
    asked = os.environ.get(CORES, "")
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(asked), there)) if asked.isdecimal() else there
