"""Sorting inside of kernels: by natural runs, as what a log holds is in order for long stretches."""

from __future__ import annotations

from sim.analysis.columns import Ints
from sim.base.kernel import kernel


@kernel
def sort_by_key(table: Ints, key: int, value: int, spare_key: int, spare_value: int, count: int) -> None:
    """Sort `count` columns of a table [row, column] by row `key`, with `value` along; stable.

    Runs that ascend are merged two by two, back and forth between the two pairs of rows. So what is sorted takes one look,
    and what is not takes a pass for each time that the number of runs halves.
    """
    a, x, b, y = key, value, spare_key, spare_value
    while run_end(table, a, 0, count) < count:
        first = 0
        while first < count:
            middle = run_end(table, a, first, count)
            after = run_end(table, a, middle, count)
            merge(table, a, x, b, y, first, middle, after)
            first = after
        a, x, b, y = b, y, a, x
    if a != key:
        for i in range(count):
            table[key, i] = table[a, i]
            table[value, i] = table[x, i]


@kernel
def run_end(table: Ints, key: int, first: int, count: int) -> int:
    """Where the run that begins at `first` ends: the first column that is smaller than the one before it."""
    i = first + 1
    while i < count and table[key, i - 1] <= table[key, i]:
        i += 1
    return min(i, count)


@kernel
def merge(table: Ints, a: int, x: int, b: int, y: int, first: int, middle: int, after: int) -> None:
    """Merge the runs [first, middle) and [middle, after) of rows a and x into rows b and y."""
    i, j = first, middle
    for k in range(first, after):
        if j >= after or (i < middle and table[a, i] <= table[a, j]):
            table[b, k] = table[a, i]
            table[y, k] = table[x, i]
            i += 1
        else:
            table[b, k] = table[a, j]
            table[y, k] = table[x, j]
            j += 1


@kernel
def count_by(keys: Ints, first: Ints) -> None:
    """Fill `first` [key + 1] so that keys below k are first[k] in number."""
    for i in range(len(keys)):
        first[keys[i] + 1] += 1
    for k in range(1, len(first)):
        first[k] += first[k - 1]


@kernel
def place_by(keys: Ints, first: Ints, order: Ints) -> None:
    """Fill `order` with the indices of keys, key by key. `first` is that of `count_by`, and is the same again in the end."""
    for i in range(len(keys)):
        order[first[keys[i]]] = i
        first[keys[i]] += 1
    for k in range(len(first) - 1, 0, -1):
        first[k] = first[k - 1]
    first[0] = 0


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
