"""Sums that may pass int64: a table whose last axis is (low 62 bits, the rest).

A run of 10^9 tasks that wait a second each has waited 10^21 ps. A sum is kept as low + high * 2^62. Summands are below 2^62,
and the low word is brought below 2^62 by `carry` before what was added since the last time could pass 2^62: so it stays below
2^63.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.base.integers import LARGEST
from sim.base.kernel import kernel
from sim.log.columns import Ints

LOW, HIGH = 0, 1
CHUNK = 1 << 16  # entries that become Python integers at once


@kernel
def carry(sums: Ints, row: int) -> None:
    """Bring the low words of `sums[row]` of an int64 [row, column, 2] below 2^62 again; they are below 2^63."""
    for column in range(sums.shape[1]):
        if sums[row, column, LOW] >= LARGEST:
            sums[row, column, LOW] -= LARGEST
            sums[row, column, HIGH] += 1


def whole(sums: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The sums [row, column]: int64 if all fit, else Python integers."""
    low, high = sums[..., LOW], sums[..., HIGH]
    return low.copy() if not high.any() else low.astype(object) + high.astype(object) * LARGEST


def narrow(sums: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Python integers as int64, if all fit."""
    if sums.dtype != object:
        return sums
    return sums.astype(np.int64) if all(-(2**63) <= value < 2**63 for value in sums.ravel().tolist()) else sums


def sum_by(values: npt.NDArray[Any], group: npt.NDArray[np.integer], groups: int) -> npt.NDArray[Any]:
    """Non-negative values [item, ..] summed by group: [group, ..]; Python integers where int64 would not do."""
    exact = len(values) * int(values.max(initial=0)) < LARGEST
    sums = np.zeros((groups, *values.shape[1:]), dtype=np.int64 if exact else object)
    np.add.at(sums, group, values if exact else values.astype(object))
    return narrow(sums)


def sum_of(values: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Non-negative values [item, ..] summed over the first axis, as Python integers; fewer than 2^31 items."""
    high, low = (values >> 31).sum(axis=0), (values & 0x7FFFFFFF).sum(axis=0)
    return np.asarray(np.asarray(high).astype(object) * 2**31 + np.asarray(low).astype(object))


def times(values: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Non-negative values times a factor; Python integers where int64 would not do."""
    exact = int(values.max(initial=0)) * factor < LARGEST
    return values * factor if exact else values.astype(object) * factor


def split(whole: npt.NDArray[Any], weights: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Each whole [item] in proportion to its weights [item, part]: [item, part], integers that sum to it.

    Part j ends where the weights up to it end, rounded down. A whole whose weights are all 0 goes to its first part.
    """
    until = np.cumsum(weights, axis=1)
    total = until[:, -1]
    empty = total == 0
    if empty.any():
        until, total = until.copy(), np.where(empty, 1, total)
        until[empty] = 1
    each, rest = whole // total, whole % total
    largest = int(until.max(initial=0))
    fits = int(whole.max(initial=0)) < LARGEST and int(rest.max(initial=0)) * largest < LARGEST
    if not fits:
        until, total, each, rest = (column.astype(object) for column in (until, total, each, rest))
    ends = each[:, None] * until + rest[:, None] * until // total[:, None]
    return narrow(np.diff(ends, axis=1, prepend=0))


def exact_sum(sums: npt.NDArray[Any]) -> int:
    """Sum of all entries as a Python integer, which may pass int64."""
    if sums.dtype == object:
        return sum(sums.ravel().tolist())
    flat = sums.ravel()
    return sum(sum(flat[first : first + CHUNK].tolist()) for first in range(0, len(flat), CHUNK))
