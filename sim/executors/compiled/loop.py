"""The event loop: from instant to instant, each in five phases, as `sim.executors.reference` defines them.

1. completions: tasks end on engines, transfers end at channels or arrive there, requests come;
2. steps: loops whose step has ended, or that begin, go on in order of their numbers;
3. SRAM: prefetched operands are admitted that fit, the oldest request first;
4. dispatch: ready tasks go to free engines;
5. plan: channels divide their bandwidth anew.

`advance` returns when it needs something from Python (a batch for the next step of a loop, costs of further steps, space for
more rows), and after some number of instants, so that Ctrl-C and progress work. All state is in the arrays, so the next call
goes on from there.
"""

from __future__ import annotations

from sim.base.kernel import kernel, small
from sim.executors.compiled.channels import plan, timer_due
from sim.executors.compiled.clock import first_arrival, next_due
from sim.executors.compiled.engines import dispatch
from sim.executors.compiled.heaps import pop
from sim.executors.compiled.state import (
    CLOCK, COMPLETE, DONE, K_RING_HEAD, K_RING_TAIL, K_TIMER, L_BATCHED, L_SLOT, NEVER, NONE, NOW, OUT_OF_RANGE, PAUSED, PHASE,
    PLAN_LIST, ROWS_WANTED, RUNNING, SERVICES, STEPS, TOO_LARGE, TO_PLAN, TURN, TURNS, TURN_LIST, WAKES, WANTS_COSTS,
    WANTS_GRANTS, WANTS_STEP, Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.steps import admit_operands, decode_on, go_on, release_batch
from sim.executors.compiled.tasks import arrive, go_on_engine


@kernel
def advance(m: Memory, f: Forms, log: Log, service: Log, instants: int, slot: int) -> int:
    """Simulate up to so many instants; returns the reason for which it stopped: DONE, PAUSED, WANTS_... or OUT_OF_RANGE.

    slot: of the batched step that was asked for and is filled in now, NONE if there is none.
    """
    if slot != NONE:
        release_batch(m, f, log, slot)
        m[TURN] += 1
    for _ in range(instants):
        if m[PHASE] == COMPLETE:
            now = next_instant(m)
            if m[TOO_LARGE]:
                return OUT_OF_RANGE
            if now == NEVER:
                return DONE
            if m[SERVICES] + m[ROWS_WANTED] > service.shape[1]:
                return WANTS_GRANTS
            m[NOW] = now
            complete(m, f, log, service)
            m[PHASE] = STEPS
        if m[TURNS] > 0:
            wanted = take_turns(m, f, log)
            if wanted != DONE:
                return wanted
        admit_operands(m, f, log)
        dispatch(m, f, log)
        for i in range(m[TO_PLAN]):
            plan(m, f, service, m[m[PLAN_LIST] + i])
        m[TO_PLAN] = 0
        m[PHASE] = COMPLETE
    return PAUSED


@small
@kernel
def next_instant(m: Memory) -> int:
    """The time of the next event, NEVER if there is none."""
    now = m[m[CLOCK] + 1]
    if m[m[RUNNING]] > 0:
        now = min(now, m[m[RUNNING] + 1])
    if m[m[WAKES]] > 0:
        now = min(now, m[m[WAKES] + 1])
    return now


@kernel
def complete(m: Memory, f: Forms, log: Log, service: Log) -> None:
    """Phase 1: everything that ends or arrives now, in any order, because nothing depends on the order."""
    now = m[NOW]
    while m[m[RUNNING]] > 0 and m[m[RUNNING] + 1] == now:
        cell = m[m[RUNNING] + 3]
        pop(m, m[RUNNING])
        go_on_engine(m, f, log, cell)
    channel = next_due(m, NONE)
    while channel != NONE:
        if m[channel + K_TIMER] == now:
            timer_due(m, f, log, service, channel)
        while m[channel + K_RING_HEAD] < m[channel + K_RING_TAIL] and m[first_arrival(m, channel)] == now:
            arrive(m, m[first_arrival(m, channel) + 1], channel)
            m[channel + K_RING_HEAD] += 1
        channel = next_due(m, channel)
    while m[m[WAKES]] > 0 and m[m[WAKES] + 1] == now:
        m[m[TURN_LIST] + m[TURNS]] = m[m[WAKES] + 2]
        m[TURNS] += 1
        pop(m, m[WAKES])


@kernel
def take_turns(m: Memory, f: Forms, log: Log) -> int:
    """Phase 2: loops go on in order of their numbers; returns what the first one that cannot go on wants, or DONE."""
    if m[TURN] == 0:
        sort_turns(m)
    while m[TURN] < m[TURNS]:
        loop = m[m[TURN_LIST] + m[TURN]]
        if m[loop + L_BATCHED]:
            if not decode_on(m, f, log, m[loop + L_SLOT]):
                return WANTS_STEP
        elif not go_on(m, f, log, loop):
            return WANTS_COSTS
        m[TURN] += 1
    m[TURN] = 0
    m[TURNS] = 0
    return DONE


@kernel
def sort_turns(m: Memory) -> None:
    """Sort the loops of this instant by number (insertion sort: those that were woken are in order already)."""
    first = m[TURN_LIST]
    for i in range(1, m[TURNS]):
        loop, j = m[first + i], i - 1
        while j >= 0 and m[first + j] > loop:
            m[first + j + 1] = m[first + j]
            j -= 1
        m[first + j + 1] = loop
