"""Engines over time: no engine runs two tasks, and how long a task waited while none was idle.

All engines are busy from a start that leaves none idle until the first of their tasks ends. A clock that runs only then
tells waits for an engine from waits for the scheduler: `clock(t)` is the length of all such intervals up to t.
"""

from __future__ import annotations

from sim.analysis.columns import NONE, Ints, Tasks
from sim.analysis.sorting import sort_by_key
from sim.base.kernel import kernel

#: Rows of the work table [5, n + 1] for n tasks. The intervals in which all are busy take the place of the spare rows.
START, ROW, SPARE_START, SPARE_ROW, ALL_BUSY = range(5)
WORK_ROWS = 5
BEGIN, BEFORE = SPARE_START, SPARE_ROW


@kernel
def by_start(t: Tasks, first: int, after: int, work: Ints) -> int:
    """Put the rows [first, after) that an engine ran into START and ROW of the work table, by start; returns how many."""
    engine, start = t.engine, t.start
    count = 0
    for row in range(first, after):
        if engine[row] >= 0:
            work[START, count] = start[row]
            work[ROW, count] = row
            count += 1
    sort_by_key(work, START, ROW, SPARE_START, SPARE_ROW, count)
    return count


@kernel
def sweep_engines(t: Tasks, first: int, count: int, until: Ints, work: Ints) -> int:
    """Go through `count` tasks by start; returns a row whose engine ran another, or -1.

    until: [engine], when it ends what it runs, kept from one sweep to the next. ALL_BUSY of the work table gets, for the task
    of row `first + i` at i, how much of its wait all engines were busy. BEGIN and BEFORE get the intervals, one after the
    other: when they begin, and the clock then; `BEFORE[intervals]` is the clock at the end of the last.
    """
    engine, ready, end = t.engine, t.ready, t.end
    intervals = 0
    work[BEFORE, 0] = 0
    soonest = first_to_end(until)
    for i in range(count):
        now, row = work[START, i], work[ROW, i]
        mine = engine[row]
        if now < until[mine]:
            return int(row)
        waited = 0
        if ready[row] < now:
            waited = work[BEFORE, intervals] - clock(work, intervals, ready[row])
        work[ALL_BUSY, row - first] = waited
        until[mine] = end[row]
        if mine == soonest:
            soonest = first_to_end(until)
        if until[soonest] > now:
            intervals = add_interval(work, intervals, now, until[soonest])
    return NONE


@kernel
def first_to_end(until: Ints) -> int:
    """The engine that is free first."""
    best = 0
    for engine in range(1, len(until)):
        if until[engine] < until[best]:
            best = engine
    return best


@kernel
def add_interval(work: Ints, intervals: int, begin: int, end: int) -> int:
    """Add [begin, end), which begins no earlier than all others end; returns how many intervals there are then."""
    clock_at_begin = work[BEFORE, intervals]
    if intervals > 0:
        last = intervals - 1
        if work[BEGIN, last] + clock_at_begin - work[BEFORE, last] == begin:  # goes on where the last one ends
            work[BEFORE, intervals] = clock_at_begin + end - begin
            return intervals
    work[BEGIN, intervals] = begin
    work[BEFORE, intervals + 1] = clock_at_begin + end - begin
    return intervals + 1


@kernel
def clock(work: Ints, intervals: int, time: int) -> int:
    """Picoseconds up to `time` in which all engines were busy. It is most often near the last interval: look there first."""
    low, high, step = intervals - 1, intervals, 1
    while low >= 0 and work[BEGIN, low] > time:
        high, low, step = low, low - step, 2 * step
    low = max(low, -1)
    while high - low > 1:  # BEGIN[low] <= time < BEGIN[high]
        middle = (low + high) >> 1
        if work[BEGIN, middle] <= time:
            low = middle
        else:
            high = middle
    if low < 0:
        return 0
    before = work[BEFORE, low]
    inside = min(time - work[BEGIN, low], work[BEFORE, low + 1] - before)
    return int(before + inside)
