"""Phase 4 of an instant: ready tasks go to free engines, the lowest rank first, to the lowest engine."""

from __future__ import annotations

from sim.base.kernel import kernel, small
from sim.executors.compiled.heaps import ENTRY, pop, push
from sim.executors.compiled.skew import goes_before, without_root
from sim.executors.compiled.state import (
    BOUND, BOUND_TABLE, CELL, CHAIN, CHAINED, DEVICE_ENGINES, DEVICE_MARKS, DISPATCH_LIST, FORM, HOME, IDLES, IDLE_WORDS, LIMIT,
    NONE, READY, READY_WORDS, SLOT, S_BASE, S_FORM, TASK, TO_DISPATCH, Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.tasks import take


@kernel
def dispatch(m: Memory, f: Forms, log: Log) -> None:
    """Give ready tasks of each device where something has changed to its free engines, as long as there are both."""
    for i in range(m[TO_DISPATCH]):
        device = m[m[DISPATCH_LIST] + i]
        m[m[DEVICE_MARKS] + device] = 0
        ready, idles = m[READY] + device * m[READY_WORDS], m[IDLES] + device * m[IDLE_WORDS]
        may_start = m[LIMIT] - m[DEVICE_ENGINES] + m[idles]  # engines
        if m[BOUND] > 0:
            dispatch_bound(m, f, log, ready, idles, may_start)
            continue
        while m[ready] > 0 and m[idles] > 0 and may_start > 0:
            take_ready(m, f, log, ready, next_idle(m, idles))
            may_start -= 1
    m[TO_DISPATCH] = 0


@small
@kernel
def next_idle(m: Memory, idles: int) -> int:
    """Take the lowest idle engine out of the heap."""
    engine = m[idles + 1]
    pop(m, idles)
    return engine


@small
@kernel
def take_ready(m: Memory, f: Forms, log: Log, ready: int, engine: int) -> None:
    """An engine takes the first of the ready tasks."""
    cell = m[ready + 3]
    pop(m, ready)
    take_home(m, f, log, cell, engine)


@kernel
def take_bound(m: Memory, f: Forms, log: Log, engine: int) -> None:
    """An engine takes the first of the tasks that are bound to it."""
    cell = m[m[BOUND_TABLE] + engine]
    m[m[BOUND_TABLE] + engine] = without_root(m, cell)
    m[BOUND] -= 1
    take_home(m, f, log, cell, engine)


@small
@kernel
def take_home(m: Memory, f: Forms, log: Log, cell: int, engine: int) -> None:
    """An engine takes a task, and the chain of the task stays with it from the first one on."""
    if m[CHAINED]:
        slot = m[cell + SLOT]
        task = m[cell + TASK]
        home = m[slot + S_BASE] + f[m[slot + S_FORM] + task * FORM + CHAIN] * m[CELL] + HOME
        if m[home] == NONE:
            m[home] = engine
    take(m, f, log, cell, engine)


@kernel
def dispatch_bound(m: Memory, f: Forms, log: Log, ready: int, idles: int, may_start: int) -> None:
    """Dispatch where some tasks must run on the engine of their chain: each idle engine in turn takes the first that it may."""
    while m[ready] > 0 and m[idles] > 0 and may_start > 0:
        engine = next_idle(m, idles)
        bound = m[m[BOUND_TABLE] + engine]
        if bound != NONE and goes_before(m, bound, m[ready + 3]):
            take_bound(m, f, log, engine)
        else:
            take_ready(m, f, log, ready, engine)
        may_start -= 1
    # No task for any engine is left, or the limit is reached: idle engines take the tasks that are bound to them.
    # Engines that take none are put into the second half of the heap's memory, from its end.
    kept, last = 0, idles + 2 * ENTRY * m[DEVICE_ENGINES]
    while m[idles] > 0:
        engine = next_idle(m, idles)
        if may_start > 0 and m[m[BOUND_TABLE] + engine] != NONE:
            take_bound(m, f, log, engine)
            may_start -= 1
        else:
            m[last - kept] = engine
            kept += 1
    for i in range(kept):
        push(m, idles, m[last - i], i, i)
