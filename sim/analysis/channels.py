"""The channels over time, in one pass over the service intervals in order of their end.

Intervals of one channel are equal (several transfers share it) or disjoint. A channel has been busy without a gap since some
time; a transfer that was eligible before that, and is served now, waited while it was idle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.analysis.parts import Conserving, Latency, on_link
from sim.base.integers import mul_div
from sim.base.kernel import kernel
from sim.log.columns import NONE, Ints, Services, Tasks

#: Rows of `state` [.., channel]: the latest interval, what it delivered, since when the channel is busy, all it delivered,
#: the first row that waited while it was idle; ANY_BUSY, of channel 0, is how long some channel was busy, in BUSY_RUNS
#: stretches.
LATEST_START, LATEST_END, IN_LATEST, BUSY_SINCE, DELIVERED, IDLE_ROW, ANY_BUSY, BUSY_RUNS = range(8)
STATE_ROWS = 8

#: Faults that a pass finds.
NOTHING, NOT_IN_ORDER, TOO_MUCH, OVERLAP = range(4)
SENTENCES = {
    NOT_IN_ORDER: "intervals of service are not in order of their ends",
    TOO_MUCH: "the channel delivered more than its bandwidth",
    OVERLAP: "intervals of service overlap",
}


@kernel
def issued(t: Tasks, row: int) -> int:
    """When the transfer of a task was issued."""
    return int(t.start[row] + t.launched[row])


@kernel
def follow_channels(
    g: Services, t: Tasks, latency: Latency, conserving: Conserving, memories: int, state: Ints,
    delivered: Ints, width: int, bins: Ints, runs: Ints,
) -> int:  # fmt: skip
    """Follow all channels; returns the first fault, or NOTHING.

    latency, conserving: of channels of the memory, and of links to devices and to the host. memories: channels of the memory,
    the first ones.
    delivered: [row], work that each task got.
    width, bins: see `deliver_over_time`; runs: see `busy_runs`.
    """
    task, channel, start, end, work = g.task, g.channel, g.start, g.end, g.work
    latest = 0
    for i in range(len(task)):
        row, where, begin, until, amount = task[i], channel[i], start[i], end[i], work[i]
        if until < latest or begin >= until:
            return NOT_IN_ORDER
        latest = until
        if begin == state[LATEST_START, where] and until == state[LATEST_END, where]:
            state[IN_LATEST, where] += amount
        else:
            if begin < state[LATEST_END, where]:
                return OVERLAP
            if begin > state[LATEST_END, where]:
                state[BUSY_SINCE, where] = begin
            state[LATEST_START, where] = begin
            state[LATEST_END, where] = until
            state[IN_LATEST, where] = amount
        if state[IN_LATEST, where] > until - begin:
            return TOO_MUCH
        state[DELIVERED, where] += amount
        delivered[row] += amount
        path = on_link(t, row)
        if conserving[path] and state[BUSY_SINCE, where] > issued(t, row) + latency[path]:
            known = state[IDLE_ROW, where]
            state[IDLE_ROW, where] = row if known == NONE else min(known, row)
    deliver_over_time(g, memories, width, bins)
    count = busy_runs(g, 0, memories, runs)
    state[BUSY_RUNS, 0] = count
    for k in range(count):
        state[ANY_BUSY, 0] += runs[1, k] - runs[0, k]
    return NOTHING


@kernel
def deliver_over_time(g: Services, memories: int, width: int, bins: Ints) -> None:
    """Add what the channels of the memory deliver to `bins` [part + 1], parts of `width` ps each."""
    start, end, work = g.start, g.end, g.work
    part = 0
    for i in range(len(start)):
        if g.channel[i] >= memories:
            continue
        begin, until, amount = start[i], end[i], work[i]
        while until > (part + 1) * width:
            part += 1
        if begin >= part * width:
            bins[part] += amount
        else:
            spread(bins, width, begin, until, amount)


@kernel
def spread(bins: Ints, width: int, begin: int, until: int, amount: int) -> None:
    """Add an amount to the parts that [begin, until) reaches into, evenly."""
    given = 0
    for part in range(begin // width, (until - 1) // width + 1):
        upto = mul_div(amount, min(until, (part + 1) * width) - begin, until - begin)
        bins[part] += upto - given
        given = upto


@kernel
def busy_runs(g: Services, first: int, after: int, runs: Ints) -> int:
    """Fill `runs` [start or end, run] with the stretches in which some channel of [first, after) served; returns how many.

    They do not touch.

    runs: [2, intervals + 1].
    """
    start, end = g.start, g.end
    count = 0
    for i in range(len(start)):
        if not first <= g.channel[i] < after:
            continue
        begin, until = start[i], end[i]
        while count > 0 and runs[1, count - 1] >= begin:  # it began before that one ended, so it takes it in
            count -= 1
            begin = min(begin, runs[0, count])
        runs[0, count] = begin
        runs[1, count] = until
        count += 1
    return count


def union(runs: Sequence[Ints]) -> int:
    """Picoseconds in some of the stretches of several runs, each [start or end, stretch]."""
    start, end = np.concatenate([np.zeros((2, 0), dtype=np.int64), *runs], axis=1)
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reached = np.maximum.accumulate(end)  # by all that began before
    until = np.concatenate([start[:1], reached[:-1]])
    return int(np.maximum(end - np.maximum(start, until), 0).sum())
