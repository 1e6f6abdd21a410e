"""Efficiency against concurrency: real memory delivers less than its peak, and how much depends on the number of readers.

A Raspberry Pi 5 (17.07 GB/s peak) reads 9.26, 13.23 and 11.59 GB/s with 1, 2 and 4 threads: one stream cannot fill the
channel, and many disturb each other's open pages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from sim.base.integers import ceil_div
from sim.machine.arbiters.contract import Arbiter, Plan, Ratio, Transfer
from sim.machine.arbiters.rules import derated


class Efficiency:
    """The share of its bandwidth that a channel can deliver to n transfers in service.

    points: shares by number of transfers; linear between them, constant before the first and after the last. Exact: what
    is written as 0.54 is 27/50.
    """

    def __init__(self, points: Mapping[int, Fraction]) -> None:
        if not points or any(n < 1 for n in points) or any(not 0 < share <= 1 for share in points.values()):
            raise ValueError(f"expected shares above 0, up to 1, by numbers of transfers from 1 on, found {dict(points)}")
        self.counts = sorted(points)
        self.shares = [points[n] for n in self.counts]

    def __repr__(self) -> str:
        return f"Efficiency({', '.join(f'{n}: {s}' for n, s in zip(self.counts, self.shares, strict=True))})"

    @property
    def least(self) -> Fraction:
        """The smallest share: a piecewise linear curve has its extremes at its points."""
        return min(self.shares)

    @property
    def most(self) -> Fraction:
        """The largest share."""
        return max(self.shares)

    def at(self, n: int) -> Fraction:
        """The share with n transfers in service."""
        i = bisect_right(self.counts, n)
        if i == 0 or i == len(self.counts):
            return self.shares[max(0, i - 1)]
        (low, high), (a, b) = self.counts[i - 1 : i + 1], self.shares[i - 1 : i + 1]
        return a + (b - a) * Fraction(n - low, high - low)


class Derated(Arbiter):
    """An arbiter on a channel with such an efficiency.

    One with `divide` divides what n transfers can get. Where the plan of another asks for more than that, all shares shrink by
    the same factor. The channel is busy then, though it does not deliver its bandwidth.
    """

    def __init__(self, arbiter: Arbiter, efficiency: Efficiency) -> None:
        self.arbiter = arbiter
        # A subclass that inherits one may plan otherwise.
        self._divide: Callable[[Arbiter, Sequence[Transfer], Ratio], Plan | None] | None = vars(type(arbiter)).get("divide")
        self.efficiency = efficiency
        self.cap = arbiter.cap
        self.work_conserving = arbiter.work_conserving
        self.reads_remaining = arbiter.reads_remaining
        self.kinds, self.numbers = arbiter.kinds, arbiter.numbers

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        if self._divide is not None:
            delivered = self.efficiency.at(len(pending)).as_integer_ratio()
            if (plan := self._divide(self.arbiter, pending, delivered)) is not None:
                return plan
        shares, denominator, quantum = self.arbiter.plan(pending)
        if not shares:
            return Plan(shares, denominator, quantum)
        limit = self.efficiency.at(len(shares))
        wanted = sum(share for _, share in shares)
        factor, slower = derated(wanted, denominator, limit.numerator, limit.denominator)
        if slower == denominator:
            return Plan(shares, denominator, quantum)
        if quantum is not None:  # it stands for an amount of work
            work = max(1, quantum * wanted // denominator)
            quantum = ceil_div(work * limit.denominator, limit.numerator)
        return Plan([(transfer, share * factor) for transfer, share in shares], slower, quantum)
