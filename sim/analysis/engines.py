"""Engines over time: no engine runs two tasks, and how long a task waited while none of its device was idle.

All engines are busy from a start that leaves none idle until the first of their tasks ends. A clock that runs only then
tells waits for an engine from waits for the scheduler: `clock(t)` is the length of all such intervals up to t.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sim.analysis.sorting import sort_pairs
from sim.base.kernel import kernel
from sim.log.columns import NONE, Ints, Tasks


class Work(NamedTuple):
    """Columns to work with, int64 [n + 1] for n tasks.

    start, row: the tasks that engines ran, by start. begin, before: the intervals in which all are busy, one after the other:
    when they begin, and the clock then; before[intervals] is the clock at the end of the last. all_busy: of each row, how much
    of its wait all engines were busy.
    """

    start: Ints
    row: Ints
    begin: Ints
    before: Ints
    all_busy: Ints


def room_for(tasks: int) -> Any:
    """Columns for so many tasks."""
    return Work(*(np.zeros(tasks + 1, dtype=np.int64) for _ in Work._fields))


@kernel
def by_start(t: Tasks, first: int, after: int, engines: int, device: int, work: Work) -> int:
    """Fill `start` and `row` of the work columns with those of [first, after) that an engine of a device ran; returns how many.

    engines: of each device.
    """
    engine, start, key, value = t.engine, t.start, work.start, work.row
    count = 0
    for row in range(first, after):
        if device * engines <= engine[row] < (device + 1) * engines:
            key[count], value[count] = start[row], row
            count += 1
    sort_pairs(key, value, work.begin, work.before, count)
    return count


@kernel
def sweep_engines(t: Tasks, first: int, count: int, until: Ints, engines: int, device: int, work: Work) -> int:
    """Go through `count` tasks of a device by start; returns a row whose engine ran another, or -1.

    until: [engine], when it ends what it runs, kept from one sweep to the next. engines: of each device. Fills `begin`,
    `before`, and `all_busy`, which is that of row `first + i` at i.
    """
    engine, ready, end, begin, before = t.engine, t.ready, t.end, work.begin, work.before
    intervals = 0
    before[0] = 0
    soonest = first_to_end(until, engines, device)
    for i in range(count):
        now, row = work.start[i], work.row[i]
        mine = engine[row]
        if now < until[mine]:
            return int(row)
        waited = 0
        if ready[row] < now:
            waited = before[intervals] - clock(begin, before, intervals, ready[row])
        work.all_busy[row - first] = waited
        until[mine] = end[row]
        if mine == soonest:
            soonest = first_to_end(until, engines, device)
        if until[soonest] > now:
            intervals = add_interval(begin, before, intervals, now, until[soonest])
    return NONE


@kernel
def first_to_end(until: Ints, engines: int, device: int) -> int:
    """The engine of a device that is free first."""
    best = device * engines
    for engine in range(best + 1, best + engines):
        if until[engine] < until[best]:
            best = engine
    return best


@kernel
def add_interval(begin: Ints, before: Ints, intervals: int, start: int, end: int) -> int:
    """Add [start, end), which begins no earlier than all others end; returns how many intervals there are then."""
    now = before[intervals]
    if intervals > 0 and begin[intervals - 1] + now - before[intervals - 1] == start:  # goes on where the last one ends
        before[intervals] = now + end - start
        return intervals
    begin[intervals] = start
    before[intervals + 1] = now + end - start
    return intervals + 1


@kernel
def clock(begin: Ints, before: Ints, intervals: int, time: int) -> int:
    """Picoseconds up to `time` in which all engines were busy. It is most often near the last interval: look there first."""
    low, high, step = intervals - 1, intervals, 1
    while low >= 0 and begin[low] > time:
        high, low, step = low, low - step, 2 * step
    low = max(low, -1)
    while high - low > 1:  # begin[low] <= time < begin[high]
        middle = (low + high) >> 1
        if begin[middle] <= time:
            low = middle
        else:
            high = middle
    if low < 0:
        return 0
    return int(before[low] + min(time - begin[low], before[low + 1] - before[low]))
