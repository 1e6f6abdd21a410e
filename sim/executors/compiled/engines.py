"""Phase 4 of an instant: ready tasks go to free engines, the lowest rank first, to the lowest engine."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.heaps import pop, push
from sim.executors.compiled.skew import goes_before, rest_of
from sim.executors.compiled.state import (
    BOUND, CHAIN, CHAINED, ENGINES, HOME, IDLE, LIMIT, NONE, READY, S_BASE, S_FORM, SLOT, State,
)  # fmt: skip
from sim.executors.compiled.tasks import take


@kernel
def dispatch(run: State) -> None:
    """Give ready tasks to free engines, as long as there are both."""
    room = run.m[LIMIT] - run.m[ENGINES] + run.m[IDLE]
    if run.m[BOUND] > 0:
        dispatch_bound(run, room)
        return
    while run.m[READY] > 0 and run.m[IDLE] > 0 and room > 0:
        take_ready(run, next_idle(run))
        room -= 1


@kernel
def next_idle(run: State) -> int:
    """Take the lowest idle engine out of the heap."""
    engine = run.idle[0, 0]
    run.m[IDLE] = pop(run.idle, run.m[IDLE])
    return engine


@kernel
def take_ready(run: State, engine: int) -> None:
    """An engine takes the first of the ready tasks."""
    cell = run.ready[2, 0]
    run.m[READY] = pop(run.ready, run.m[READY])
    take_home(run, cell, engine)


@kernel
def take_home(run: State, cell: int, engine: int) -> None:
    """It takes a task, and the chain of the task stays with it from the first one on."""
    if run.m[CHAINED]:
        slot = run.cell[SLOT, cell]
        base = run.slot[S_BASE, slot]
        chain = base + run.form[CHAIN, run.slot[S_FORM, slot] + cell - base]
        if run.cell[HOME, chain] == NONE:
            run.cell[HOME, chain] = engine
    take(run, cell, engine)


@kernel
def take_bound(run: State, engine: int) -> None:
    """An engine takes the first of the tasks that are bound to it."""
    cell = run.bound[engine]
    run.bound[engine] = rest_of(run, cell)
    run.m[BOUND] -= 1
    take_home(run, cell, engine)


@kernel
def dispatch_bound(run: State, room: int) -> None:
    """The same where some tasks must run on the engine of their chain: each engine in turn takes what it may."""
    while run.m[READY] > 0 and run.m[IDLE] > 0 and room > 0:
        engine = next_idle(run)
        bound = run.bound[engine]
        if bound != NONE and goes_before(run, bound, run.ready[2, 0]):
            take_bound(run, engine)
        else:
            take_ready(run, engine)
        room -= 1
    # What any engine may take has run out, or the limit is reached: idle engines take what is bound to them.
    others, kept = run.m[IDLE], 0  # those that take nothing wait in the second half of the table
    while others > 0:
        engine = run.idle[0, 0]
        others = pop(run.idle, others)
        if room > 0 and run.bound[engine] != NONE:
            take_bound(run, engine)
            room -= 1
        else:
            kept += 1
            run.idle[0, run.idle.shape[1] - kept] = engine
    run.m[IDLE] = 0
    for i in range(kept):
        run.m[IDLE] = push(run.idle, run.m[IDLE], run.idle[0, run.idle.shape[1] - 1 - i], 0, 0)
