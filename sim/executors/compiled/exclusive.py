"""One transfer at a time, the most urgent first, in order of arrival among equals: `fifo` and `priority`."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.heaps import goes_after, pop, push
from sim.executors.compiled.ports import at_rate, record, time_for
from sim.executors.compiled.state import (
    BY_AGE, FORM, K_DENOMINATOR, K_HEADS, K_HEAP, K_NEW, K_PART, K_PREEMPTIVE, K_SERVED, K_SHARE, K_SINCE, K_TIMER, K_URGENCY,
    LEVEL, NONE, NOW, P_LEFT, P_ORDER, SLOT, S_AGE, S_FORM, TASK, Forms, Log, Memory,
)  # fmt: skip


@kernel
def urgency(m: Memory, f: Forms, channel: int, cell: int) -> int:
    """The class of a transfer; the lowest goes first."""
    slot = m[cell + SLOT]
    if m[channel + K_URGENCY] == BY_AGE:
        return m[slot + S_AGE]
    return f[m[slot + S_FORM] + m[cell + TASK] * FORM + LEVEL]


@kernel
def admit_by_urgency(m: Memory, f: Forms, channel: int) -> None:
    """Put new transfers at the channel into the heap."""
    for i in range(m[channel + K_NEW]):
        put_by_urgency(m, f, channel, m[m[channel + K_HEADS] + i])


@kernel
def put_by_urgency(m: Memory, f: Forms, channel: int, cell: int) -> None:
    """Put a transfer into the heap."""
    push(m, m[channel + K_HEAP], urgency(m, f, channel, cell), m[cell + m[channel + K_PART] + P_ORDER], cell)


@kernel
def plan_exclusive(m: Memory, f: Forms, service: Log, channel: int) -> None:
    """Go on with the transfer in service, unless pre-emption lets a more urgent one take over."""
    heap, place, served = m[channel + K_HEAP], m[channel + K_PART], m[channel + K_SERVED]
    if m[heap] == 0:
        return
    cell = m[heap + 3]
    if served == NONE:
        pop(m, heap)
    else:
        if not m[channel + K_PREEMPTIVE]:
            return
        if goes_after(m, heap + 1, urgency(m, f, channel, served), m[served + place + P_ORDER], served):
            return
        if m[NOW] > m[channel + K_SINCE]:
            deliver_to_one(m, service, channel, m[channel + K_SINCE])
        pop(m, heap)
        put_by_urgency(m, f, channel, served)
    m[channel + K_SERVED] = cell
    m[channel + K_SINCE] = m[NOW]
    m[channel + K_TIMER] = m[NOW] + time_for(m[cell + place + P_LEFT], m[channel + K_SHARE], m[channel + K_DENOMINATOR])


@kernel
def deliver_to_one(m: Memory, service: Log, channel: int, since: int) -> None:
    """Credit the time since then to the only transfer in service."""
    cell = m[channel + K_SERVED]
    part = cell + m[channel + K_PART]
    work = min(at_rate(m[NOW] - since, m[channel + K_SHARE], m[channel + K_DENOMINATOR]), m[part + P_LEFT])
    m[part + P_LEFT] -= work
    record(m, service, channel, cell, since, work)
