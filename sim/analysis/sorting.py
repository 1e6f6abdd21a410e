"""Sorting inside of kernels: by natural runs, as what a log holds is in order for long stretches."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.log.columns import Ints


@kernel
def sort_pairs(key: Ints, value: Ints, spare_key: Ints, spare_value: Ints, count: int) -> None:
    """Sort the first `count` keys, with their values along; stable. The spare columns are as long.

    Runs that ascend are merged two by two until there is one. What is in order already stays where it is.
    """
    while run_end(key, 0, count) < count:
        first = 0
        while first < count:
            middle = run_end(key, first, count)
            after = run_end(key, middle, count)
            if middle < after:
                merge(key, value, spare_key, spare_value, first, middle, after)
            first = after


@kernel
def run_end(key: Ints, first: int, count: int) -> int:
    """Where the run that begins at `first` ends: at the first key that is smaller than the one before it."""
    i = first + 1
    while i < count and key[i - 1] <= key[i]:
        i += 1
    return min(i, count)


@kernel
def merge(key: Ints, value: Ints, spare_key: Ints, spare_value: Ints, first: int, middle: int, after: int) -> None:
    """Merge the runs [first, middle) and [middle, after) in place."""
    low, high = first, middle  # all before `low` are in place; the first run from there on moves to the spare columns
    while low < high:
        half = (low + high) >> 1
        if key[half] <= key[middle]:
            low = half + 1
        else:
            high = half
    for i in range(low, middle):
        spare_key[i], spare_value[i] = key[i], value[i]
    i, j, k = low, middle, low
    while i < middle:
        if j < after and key[j] < spare_key[i]:
            key[k], value[k] = key[j], value[j]
            j += 1
        else:
            key[k], value[k] = spare_key[i], spare_value[i]
            i += 1
        k += 1


@kernel
def bisect_left(column: Ints, value: int) -> int:
    """The first index of an ascending column whose item is not below the value."""
    low, high = 0, len(column)
    while low < high:
        middle = (low + high) >> 1
        if column[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low
