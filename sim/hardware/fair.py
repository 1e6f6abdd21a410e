"""A channel that all who are at it share equally, in time that grows with the logarithm of how many they are.

It does what `Channel` does with such an arbiter, to the picosecond. In each interval all get the same amount of work, but for
the one that came last, which takes what the floors leave over. So the order in which the others end never changes, and a heap
keeps it: each has left what it had when it came less what all have got since. The last is counted on its own, until another
comes or those after it have ended.

Only the record grows with how many they are, for an event log has a row for each of them in each interval; its columns are
made an interval at a time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from functools import cache, partial
from heapq import heappop, heappush
from typing import cast

import simpy

from sim.hardware.arbiters import EqualShares, Transfer
from sim.hardware.channel import Channel
from sim.hardware.instant import Environment
from sim.units import ceil_div

Rows = array  # of int64: for each transfer the sum of its row, step and task in program order
Record = Callable[["Rows[int]", int, int, int, int], None]


class FairChannel(Channel):
    """One memory channel whose arbiter gives equal shares.

    Every interval of constant service goes to `record(rows, start, end, work, last)`: those in service in order of arrival,
    the work of each, and that of the last of them.
    """

    def __init__(self, env: Environment, arbiter: EqualShares, *, latency: int = 0, record: Record) -> None:
        super().__init__(env, arbiter, latency=latency, record=record)
        self.rate = cache(arbiter.rate)
        self._share, self._denominator = 0, 1
        self._orders: Rows[int] = array("q")  # of arrival, of those pending
        self._rows: Rows[int] = array("q")
        self._got = 0  # work that each has got that was there all the time
        self._ends: list[tuple[int, int, Transfer]] = []  # a heap: what all have got when it ends, order of arrival, transfer
        self._end_of: dict[Transfer, int] = {}  # of those whose entry in the heap counts: all pending but the last
        self._last: Transfer | None = None
        self._departed = False  # somebody, since the rates were set

    def _replan(self, _event: object) -> None:
        """Set the rates, once all arrivals and departures of this instant are known."""
        self._planning = False
        served = len(self.pending)
        self._admit()
        coming = self.pending[served:]
        if coming:
            self._deliver()
            self._orders.extend([transfer.order for transfer in coming])
            self._rows.extend([sum(transfer.row) for transfer in coming])
            if self._last is not None:
                coming.insert(0, self._last)
            self._last = coming.pop()
            for transfer in coming:
                end = self._end_of[transfer] = self._got + transfer.remaining
                heappush(self._ends, (end, transfer.order, transfer))
        elif not self._departed:
            return  # whoever was in service goes on as before
        self._departed = False
        self._version += 1
        if self._last is not None:
            self._share, self._denominator = self.rate(len(self.pending))
            wait = ceil_div(min(self._least(), self._last.remaining) * self._denominator, self._share)
            simpy.Timeout(self.env, wait).callbacks.append(partial(self._timer, self._version))

    def _least(self) -> int:
        """The least that any but the last has left; of the last, if it is alone."""
        ends, end_of = self._ends, self._end_of
        while ends and end_of.get(ends[0][2]) != ends[0][0]:
            heappop(ends)  # it was the last for a while, or has ended
        return ends[0][0] - self._got if ends else cast("Transfer", self._last).remaining

    def _timer(self, version: int, _event: object) -> None:
        if version != self._version:
            return
        self._deliver()
        last = cast("Transfer", self._last)
        finished = []
        while self._end_of and not self._least():
            finished.append(self._ends[0][2])
            finished[-1].remaining = 0
            del self._end_of[finished[-1]]
        if not last.remaining:
            finished.append(last)
        for transfer in finished:
            at = bisect_left(self._orders, transfer.order)
            del self.pending[at], self._orders[at], self._rows[at]
        if not last.remaining:
            self._last = self.pending[-1] if self.pending else None
            if self._last is not None:
                self._last.remaining = self._end_of.pop(self._last) - self._got
        self._departed = True
        self._end(finished)

    def _deliver(self) -> None:
        """Credit the time since the last delivery to those in service."""
        now, count = self.env.now, len(self._rows)
        elapsed = now - self._since
        if elapsed and self._last is not None:
            each = elapsed * self._share // self._denominator
            over = elapsed * self._share * count // self._denominator - each * (count - 1)
            over = min(over, self._last.remaining)
            self._got += each
            self._last.remaining -= over
            self.record(self._rows, self._since, now, each, over)
        self._since = now
