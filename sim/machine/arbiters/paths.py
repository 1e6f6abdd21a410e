"""Paths: links that are divided together, because transfers cross several of them at once.

Rates are max-min fair with the weights of the arbiter: nothing can be added to one without taking from another that has no
more by its weight (progressive filling: Bertsekas and Gallager, Data Networks, 1992, section 6.5.2). Weights by demand are the
rates of transfers that are alone, above which none is filled, or what is left of each. An arbiter that serves one
transfer at a time serves each that comes first on all links of its path; one that comes first on some of them waits, and they
with it.

All links of a path have the same bandwidth, so a rate is the same share of each. Shares are numerators over `WHOLE`. Where
filling divides what a link has left, the last transfer there (in order of arrival) takes the remainder, as far as all other
links of its path have as much left. In a time, a transfer gets its share of the work rounded down; where it is the last on
all of its links, what that leaves over on each of them. So a path of one link is served as a channel of its own, but for a
denominator that is fixed: shares of up to 16 equal transfers are exact.

The functions work on a table, a list or an array, in which flows (transfers) and links are records of words. Paths are lists of
numbers of links, no link twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sim.base.integers import mul_div
from sim.base.kernel import kernel
from sim.machine.arbiters.contract import WHOLE as ALL
from sim.machine.arbiters.contract import Arbiter, Plan, Transfer
from sim.machine.arbiters.disciplines import Discipline

Table = Any  # a list or an int64 array

#: Names for errors, of the arbiters that can divide paths.
PATH_ARBITERS = "fifo, priority, processor_sharing, weighted or proportional"

#: A share that is all of a link: a multiple of each number to 16, so large that no share of a transfer is rounded to 0.
WHOLE = 720_720 << 20

#: The largest weight.
MOST_WEIGHT = 1 << 16

#: Words of a flow: where in the table its path begins and ends, its weight (of an arbiter that serves one at a time: its
#: urgency), its share, what it gets in a time, and its new share.
BEGIN, END, WEIGHT, RATE, AMOUNT, NEXT = range(6)
FLOW = 6

#: Words of a link, to work with; ROW is the compiled executor's: the next service interval there.
LEFT, WANTED, LAST, ROW = range(4)
LINK = 4

NONE = -1


@kernel
def fill(table: Table, at: int, flows: int, links: int, count: int, whole: int) -> None:
    """Write the max-min fair shares NEXT of flows. at: address of the first. links, count: of the records of links.

    whole: the weight that is all of a link, where weights are rates that no share exceeds; else 0.
    """
    for i in range(flows):
        table[at + i * FLOW + NEXT] = NONE
    for link in range(count):
        table[links + link * LINK + LEFT] = WHOLE
    while True:
        bottleneck = tightest(table, at, flows, links, count)
        if bottleneck == NONE:
            return
        record = links + bottleneck * LINK
        level, last = table[record + LEFT] // table[record + WANTED], table[record + LAST]
        if whole > 0 and level * whole >= WHOLE:  # all of them reach their rates
            for i in range(flows):
                flow = at + i * FLOW
                if table[flow + NEXT] == NONE:
                    table[flow + NEXT] = table[flow + WEIGHT] * WHOLE // whole
            return
        for i in range(flows):
            flow = at + i * FLOW
            if table[flow + NEXT] == NONE and crosses(table, flow, bottleneck):
                share = least_left(table, flow, links) if i == last else table[flow + WEIGHT] * level
                table[flow + NEXT] = share
                for j in range(table[flow + BEGIN], table[flow + END]):
                    table[links + table[j] * LINK + LEFT] -= share


@kernel
def tightest(table: Table, at: int, flows: int, links: int, count: int) -> int:
    """The link that allows flows without a share the least by weight, NONE if there are no such flows; the first of equal ones.

    Writes what they want there, the sum of their weights, and the last of them.
    """
    for link in range(count):
        table[links + link * LINK + WANTED] = 0
    for i in range(flows):
        flow = at + i * FLOW
        if table[flow + NEXT] == NONE:
            for j in range(table[flow + BEGIN], table[flow + END]):
                record = links + table[j] * LINK
                table[record + WANTED] += table[flow + WEIGHT]
                table[record + LAST] = i
    found, least = NONE, 0
    for link in range(count):
        record = links + link * LINK
        if table[record + WANTED] > 0:
            level = table[record + LEFT] // table[record + WANTED]
            if found == NONE or level < least:
                found, least = link, level
    return found


@kernel
def places_of(largest: int) -> int:
    """By how many binary places what is left of transfers is shifted, so that the largest is at most a weight."""
    places = 0
    while largest >> places > MOST_WEIGHT:
        places += 1
    return places


@kernel
def weight_by_rest(left: int, places: int) -> int:
    """The weight of a transfer by what is left of it, to the precision of the largest weight; at least 1."""
    return max(1, left >> places)


@kernel
def crosses(table: Table, flow: int, link: int) -> bool:
    """Whether a link is on the path of a flow."""
    found = False
    for j in range(table[flow + BEGIN], table[flow + END]):
        found = found or table[j] == link
    return found


@kernel
def least_left(table: Table, flow: int, links: int) -> int:
    """The share that all links of a path have left."""
    least = WHOLE
    for j in range(table[flow + BEGIN], table[flow + END]):
        least = min(least, table[links + table[j] * LINK + LEFT])
    return least


@kernel
def first_on_all(table: Table, at: int, flows: int, links: int, count: int, order: int) -> None:
    """Write the shares NEXT of flows: all of its links for each that comes first on all of them, else 0.

    Flows are in order of arrival; those of lower urgency come first. order: address of as many words, to work with.
    """
    for link in range(count):
        table[links + link * LINK + LEFT] = 1
    for i in range(flows):
        j = i
        while j > 0 and table[at + table[order + j - 1] * FLOW + WEIGHT] > table[at + i * FLOW + WEIGHT]:
            table[order + j] = table[order + j - 1]
            j -= 1
        table[order + j] = i
    for i in range(flows):
        flow = at + table[order + i] * FLOW
        table[flow + NEXT] = WHOLE if least_left(table, flow, links) > 0 else 0
        for j in range(table[flow + BEGIN], table[flow + END]):
            table[links + table[j] * LINK + LEFT] = 0


@kernel
def divide_time(table: Table, at: int, flows: int, links: int, count: int, elapsed: int) -> None:
    """Write the AMOUNT of work that each flow gets in a time, by its RATE: all of the time if it has all of its links."""
    shared = False
    for i in range(flows):
        rate = table[at + i * FLOW + RATE]
        table[at + i * FLOW + AMOUNT] = elapsed if rate == WHOLE else 0
        shared = shared or 0 < rate < WHOLE
    if shared:
        divide_shared(table, at, flows, links, count, elapsed)


@kernel
def divide_shared(table: Table, at: int, flows: int, links: int, count: int, elapsed: int) -> None:
    """Write the AMOUNT of each flow where some share a link."""
    for link in range(count):
        table[links + link * LINK + WANTED] = 0
    for i in range(flows):
        flow = at + i * FLOW
        if table[flow + RATE] > 0:
            for j in range(table[flow + BEGIN], table[flow + END]):
                table[links + table[j] * LINK + WANTED] += table[flow + RATE]
                table[links + table[j] * LINK + LAST] = i
    for link in range(count):
        table[links + link * LINK + LEFT] = work_of(elapsed, table[links + link * LINK + WANTED])
    for i in range(flows):
        flow = at + i * FLOW
        amount = work_of(elapsed, table[flow + RATE])
        if table[flow + RATE] > 0 and is_last(table, flow, links, i):
            amount = least_left(table, flow, links)
        table[flow + AMOUNT] = amount
        for j in range(table[flow + BEGIN], table[flow + END]):
            table[links + table[j] * LINK + LEFT] -= amount


@kernel
def work_of(elapsed: int, rate: int) -> int:
    """The work that is done in a time at a rate over `WHOLE`, rounded down; both mostly are nothing or all."""
    return elapsed if rate == WHOLE else 0 if rate == 0 else mul_div(elapsed, rate, WHOLE)


@kernel
def is_last(table: Table, flow: int, links: int, number: int) -> bool:
    """Whether a flow is the last on all links of its path."""
    last = True
    for j in range(table[flow + BEGIN], table[flow + END]):
        last = last and table[links + table[j] * LINK + LAST] == number
    return last


def shares_paths(arbiter: Arbiter) -> bool:
    """Whether an arbiter can divide links that transfers cross together."""
    return path_discipline(arbiter) is not None


def path_discipline(arbiter: Arbiter) -> Discipline | None:
    """The discipline of an arbiter that can divide paths, None of another."""
    given = vars(type(arbiter)).get("discipline")
    found: Discipline | None = given(arbiter) if given is not None else None
    if found is None or tuple(found.cap) != ALL or found.efficiency:
        return None
    if found.kind in {"exclusive", "outstanding"}:
        return found
    return found if found.kind == "classes" and max(*found.weights, found.whole) <= MOST_WEIGHT else None


class PathArbiter(Arbiter):
    """An arbiter of several links, which plans for all transfers that cross any of them.

    arbiter: says how they are divided. first: the number of the first link. count: of links.
    """

    work_conserving = False
    cap = ALL

    def __init__(self, arbiter: Arbiter, first: int, count: int) -> None:
        discipline = path_discipline(arbiter)
        if discipline is None:
            raise ValueError(f"expected {PATH_ARBITERS}, found {type(arbiter).__name__}")
        self.division, self.first, self.count = discipline, first, count
        self.reads_remaining = discipline.kind == "outstanding"

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        table, links, order = self._table(pending)
        places = places_of(max(transfer.remaining for transfer in pending))
        for i, transfer in enumerate(pending):
            table[i * FLOW + WEIGHT] = self._weight(transfer, places)
        if self.division.kind == "exclusive":
            first_on_all(table, 0, len(pending), links, self.count, order)
        else:
            fill(table, 0, len(pending), links, self.count, self.division.whole)
        shares = [(transfer, table[i * FLOW + NEXT]) for i, transfer in enumerate(pending)]
        return Plan([(transfer, share) for transfer, share in shares if share], WHOLE)

    def amounts(self, shares: Sequence[tuple[Transfer, int]], elapsed: int) -> list[int]:
        """The work that transfers get in a time at these shares."""
        table, links, _ = self._table([transfer for transfer, _ in shares])
        for i, (_, share) in enumerate(shares):
            table[i * FLOW + RATE] = share
        divide_time(table, 0, len(shares), links, self.count, elapsed)
        return [table[i * FLOW + AMOUNT] for i in range(len(shares))]

    def _weight(self, transfer: Transfer, places: int) -> int:
        """The weight of a transfer, or its urgency; one that is served goes on, unless it may be pre-empted."""
        division = self.division
        if division.kind == "outstanding":
            return weight_by_rest(transfer.remaining, places)
        if division.kind == "exclusive":
            if transfer.in_service and not division.preemptive:
                return -1
            return transfer.age if division.by == "age" else division.level(transfer.kind)
        if division.by == "sequence":
            return division.weights[division.levels.get(str(transfer.sequence), division.other)]
        return division.weights[division.level(transfer.kind)]

    def _table(self, transfers: Sequence[Transfer]) -> tuple[list[int], int, int]:
        """A table of flows, whose records have the first addresses; and the addresses of links, and of words for an order."""
        table = [0] * (FLOW * len(transfers))
        for i, transfer in enumerate(transfers):
            table[i * FLOW + BEGIN] = len(table)
            table += [link - self.first for link in transfer.path]
            table[i * FLOW + END] = len(table)
        links = len(table)
        order = links + LINK * self.count
        return table + [0] * (LINK * self.count + len(transfers)), links, order
