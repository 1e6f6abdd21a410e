"""Phase 4 of an instant: ready tasks go to free engines, the lowest rank first, to the lowest engine."""

from __future__ import annotations

from sim.base.kernel import kernel, small
from sim.executors.compiled.heaps import ENTRY, pop, push
from sim.executors.compiled.skew import goes_before, without_root
from sim.executors.compiled.state import (
    BOUND, BOUND_TABLE, CELL, CHAIN, CHAINED, ENGINES, FORM, HOME, IDLES, LIMIT, NONE, READY, SLOT, S_BASE, S_FORM, TASK,
    Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.tasks import take


@kernel
def dispatch(m: Memory, f: Forms, log: Log) -> None:
    """Give ready tasks to free engines, as long as there are both."""
    may_start = m[LIMIT] - m[ENGINES] + m[m[IDLES]]  # engines
    if m[BOUND] > 0:
        dispatch_bound(m, f, log, may_start)
        return
    while m[m[READY]] > 0 and m[m[IDLES]] > 0 and may_start > 0:
        take_ready(m, f, log, next_idle(m))
        may_start -= 1


@small
@kernel
def next_idle(m: Memory) -> int:
    """Take the lowest idle engine out of the heap."""
    engine = m[m[IDLES] + 1]
    pop(m, m[IDLES])
    return engine


@small
@kernel
def take_ready(m: Memory, f: Forms, log: Log, engine: int) -> None:
    """An engine takes the first of the ready tasks."""
    cell = m[m[READY] + 3]
    pop(m, m[READY])
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
def dispatch_bound(m: Memory, f: Forms, log: Log, may_start: int) -> None:
    """Dispatch where some tasks must run on the engine of their chain: each idle engine in turn takes the first that it may."""
    while m[m[READY]] > 0 and m[m[IDLES]] > 0 and may_start > 0:
        engine = next_idle(m)
        bound = m[m[BOUND_TABLE] + engine]
        if bound != NONE and goes_before(m, bound, m[m[READY] + 3]):
            take_bound(m, f, log, engine)
        else:
            take_ready(m, f, log, engine)
        may_start -= 1
    # No task for any engine is left, or the limit is reached: idle engines take the tasks that are bound to them.
    # Engines that take none are put into the second half of the heap's memory, from its end.
    kept, last = 0, m[IDLES] + 2 * ENTRY * m[ENGINES]
    while m[m[IDLES]] > 0:
        engine = next_idle(m)
        if may_start > 0 and m[m[BOUND_TABLE] + engine] != NONE:
            take_bound(m, f, log, engine)
            may_start -= 1
        else:
            m[last - kept] = engine
            kept += 1
    for i in range(kept):
        push(m, m[IDLES], m[last - i], i, i)
