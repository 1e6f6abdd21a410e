"""The rules of the shipped arbiters: pure functions on integers, which both executors call.

Shares by class are worked out in a table [field, class]: transfers of a class have the same weight and get the same share.
Classes come in descending order of weight. Bounds, which `sim.hardware.arbiters.disciplines` checks: the product of the sum of
all weights, the denominator of the cap and that of the efficiency stays below 2^62.
"""

from __future__ import annotations

from typing import Any

from sim.base.integers import ceil_div, greatest_divisor
from sim.base.kernel import kernel

Table = Any  # int64 [field, class]

#: Fields of the table: weight of each transfer, how many are pending, and the numerator of each one's share.
WEIGHT, MANY, SHARE = range(3)

NO_LIMIT = 2**62  # a turn without an end


@kernel
def max_min(table: Table, classes: int, num: int, den: int) -> int:
    """Divide a channel in proportion to weights, no share above num/den; what a capped one leaves goes to the others.

    Writes the numerators and returns their denominator, exactly (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2:
    max-min fairness with weights). With k at the cap, the others share (den - k num)/den by weight.
    """
    left = 0
    for i in range(classes):
        left += table[WEIGHT, i] * table[MANY, i]
    capped, first = 0, 0  # transfers at the cap, and the first class that is below it
    while first < classes and left > 0:
        if table[MANY, first] > 0:
            if table[WEIGHT, first] * (den - capped * num) < num * left:
                break  # it stays below the cap, and so do all that are lighter
            capped += table[MANY, first]
            left -= table[WEIGHT, first] * table[MANY, first]
        first += 1
    if left == 0:
        for i in range(classes):
            table[SHARE, i] = num
        return den
    for i in range(classes):
        table[SHARE, i] = num * left if i < first else table[WEIGHT, i] * (den - capped * num)
    return reduced(table, classes, den * left)


@kernel
def rates(table: Table, classes: int, whole: int) -> int:
    """Shares in proportion to demand: each gets its rate, or all slow down by one factor once the sum exceeds the `whole`."""
    wanted = 0
    for i in range(classes):
        table[SHARE, i] = table[WEIGHT, i]
        wanted += table[WEIGHT, i] * table[MANY, i]
    return reduced(table, classes, max(wanted, whole))


@kernel
def derate(table: Table, classes: int, denominator: int, num: int, den: int) -> int:
    """Shrink all shares by one factor where they exceed the num/den that a channel delivers; returns the denominator."""
    wanted = 0
    for i in range(classes):
        wanted += table[SHARE, i] * table[MANY, i]
    if wanted * den <= num * denominator:
        return denominator
    for i in range(classes):
        table[SHARE, i] *= num
    return reduced(table, classes, wanted * den)


@kernel
def reduced(table: Table, classes: int, denominator: int) -> int:
    """Divide shares of pending transfers and their denominator by what they have in common."""
    common = denominator
    for i in range(classes):
        if table[MANY, i] > 0:
            common = greatest_divisor(common, table[SHARE, i])
    for i in range(classes):
        table[SHARE, i] = table[SHARE, i] // common
    return denominator // common


@kernel
def turn_until(began: int, left: int, burst: int) -> int:
    """What is left of a transfer at the end of its turn, if others came during one of its bursts."""
    return began - burst * max(1, ceil_div(began - left, burst))


@kernel
def turn_is_over(left: int, until: int) -> bool:
    """Whether a transfer with so much left has had its turn, which lasts until no more than `until` is left."""
    return left == 0 or (until != NO_LIMIT and left <= until)
