"""Sums that may pass int64: a table whose last axis is (low 62 bits, the rest).

A run of 10^9 tasks that wait a second each has waited 10^21 ps. A sum is kept as low + high * 2^62; each summand is below
2^62 and the low word as well, so no addition passes 2^63.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.analysis.columns import Ints
from sim.base.integers import LARGEST
from sim.base.kernel import kernel

LOW, HIGH = 0, 1


@kernel
def add_wide(sums: Ints, row: int, column: int, value: int) -> None:
    """Add a value in [0, 2^62) to `sums[row, column]` of an int64 [row, column, 2]."""
    low = sums[row, column, LOW] + value
    if low >= LARGEST:
        low -= LARGEST
        sums[row, column, HIGH] += 1
    sums[row, column, LOW] = low


def whole(sums: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The sums [row, column]: int64 if all fit, else Python integers."""
    low, high = sums[..., LOW], sums[..., HIGH]
    return low.copy() if not high.any() else low.astype(object) + high.astype(object) * LARGEST


def narrow(sums: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Python integers as int64, if all fit."""
    if sums.dtype != object:
        return sums
    return sums.astype(np.int64) if all(-(2**63) <= value < 2**63 for value in sums.ravel().tolist()) else sums
