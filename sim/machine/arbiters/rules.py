"""The rules of the shipped arbiters: pure functions on integers, which both executors call.

Shares are worked out in a table: a record of `width` words for each class of transfers, which have the same weight and get the
same share; the record of class i is at `table[at + i * width]`. The table is a list or an array. Bounds, which
`sim.machine.arbiters.disciplines` checks: the sum of all weights times `Discipline.growth` stays below 2^62.
"""

from __future__ import annotations

from typing import Any

from sim.base.integers import ceil_div, greatest_divisor
from sim.base.kernel import kernel

Table = Any  # a list or an int64 array

#: Words of a record: weight of each transfer, how many are pending, and the numerator of each one's share.
WEIGHT, MANY, SHARE = range(3)
RECORD = 3

NO_LIMIT = 2**62  # a turn without an end


@kernel
def max_min(table: Table, at: int, width: int, classes: int, num: int, den: int) -> int:
    """Divide a channel in proportion to weights, no share above num/den; what a capped one leaves goes to the others.

    Writes the numerators and returns their denominator, exactly (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2:
    max-min fairness with weights). With k at the cap, the others share (den - k num)/den by weight.
    """
    left = capped = 0  # weight of transfers below the cap, and number of those at it
    for i in range(classes):
        table[at + i * width + SHARE] = 0
        left += table[at + i * width + WEIGHT] * table[at + i * width + MANY]
    while left > 0:
        heaviest = heaviest_below_cap(table, at, width, classes)
        if table[at + heaviest * width + WEIGHT] * (den - capped * num) < num * left:
            break  # it stays below the cap, and so do all that are lighter
        table[at + heaviest * width + SHARE] = num
        capped += table[at + heaviest * width + MANY]
        left -= table[at + heaviest * width + WEIGHT] * table[at + heaviest * width + MANY]
    if left == 0:
        for i in range(classes):
            table[at + i * width + SHARE] = num
        return den
    for i in range(classes):
        table[at + i * width + SHARE] = (
            num * left if table[at + i * width + SHARE] > 0 else table[at + i * width + WEIGHT] * (den - capped * num)
        )
    return reduced(table, at, width, classes, den * left)


@kernel
def max_min_of(table: Table, at: int, width: int, classes: int, num: int, den: int, part: int, parts: int) -> int:
    """Divide part/parts of a channel, which is all that it delivers, as `max_min` divides the whole; no share above num/den.

    In units of what is delivered the cap is num/den over part/parts. Shares are of the whole channel.
    """
    if part == parts:
        return max_min(table, at, width, classes, num, den)
    common = greatest_divisor(num * parts, den * part)
    denominator = max_min(table, at, width, classes, num * parts // common, den * part // common)
    for i in range(classes):
        table[at + i * width + SHARE] *= part
    return reduced(table, at, width, classes, denominator * parts)


@kernel
def heaviest_below_cap(table: Table, at: int, width: int, classes: int) -> int:
    """The class of the largest weight that has transfers pending and no share yet."""
    found = -1
    for i in range(classes):
        open_class = table[at + i * width + MANY] > 0 and table[at + i * width + SHARE] == 0
        if open_class and (found < 0 or table[at + i * width + WEIGHT] > table[at + found * width + WEIGHT]):
            found = i
    return found


@kernel
def rates(table: Table, at: int, width: int, classes: int, whole: int) -> int:
    """Shares in proportion to demand: each gets its rate, or all slow down by one factor once the sum exceeds the `whole`."""
    wanted = 0
    for i in range(classes):
        table[at + i * width + SHARE] = table[at + i * width + WEIGHT]
        wanted += table[at + i * width + WEIGHT] * table[at + i * width + MANY]
    return reduced(table, at, width, classes, max(wanted, whole))


@kernel
def derate(table: Table, at: int, width: int, classes: int, denominator: int, num: int, den: int) -> int:
    """Shrink all shares by one factor where they exceed the num/den that a channel delivers; returns the denominator."""
    wanted = 0
    for i in range(classes):
        wanted += table[at + i * width + SHARE] * table[at + i * width + MANY]
    factor, slower = derated(wanted, denominator, num, den)
    if slower == denominator:
        return denominator
    for i in range(classes):
        table[at + i * width + SHARE] *= factor
    return reduced(table, at, width, classes, slower)


@kernel
def derated(wanted: int, denominator: int, num: int, den: int) -> tuple[int, int]:
    """The factor of the numerators of shares, and their denominator, with which they sum to no more than num/den.

    wanted: sum of the numerators. The denominator stays as it is where the shares fit, and only there.
    """
    if wanted * den <= num * denominator:
        return 1, denominator
    return num, wanted * den


@kernel
def reduced(table: Table, at: int, width: int, classes: int, denominator: int) -> int:
    """Divide shares of pending transfers and their denominator by what they have in common."""
    common = denominator
    for i in range(classes):
        if table[at + i * width + MANY] > 0:
            common = greatest_divisor(common, table[at + i * width + SHARE])
    for i in range(classes):
        table[at + i * width + SHARE] = table[at + i * width + SHARE] // common
    return denominator // common


@kernel
def turn_until(began: int, left: int, burst: int) -> int:
    """Work left of a transfer at the end of its turn, if others arrived during one of its bursts."""
    return began - burst * max(1, ceil_div(began - left, burst))


@kernel
def turn_is_over(left: int, until: int) -> bool:
    """Whether a transfer with work `left` has had its turn, which lasts until no more than `until` is left."""
    return left == 0 or (until != NO_LIMIT and left <= until)
