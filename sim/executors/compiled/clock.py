"""Find what happens next at channels, and keep what an instant has changed: it then costs nothing for all that rests.

The clock is a tournament: a tree of as many leaves as there are units of channels, rounded up to a power of two, in which the
leaf of a unit is the time of its next event, and every other node the earlier of the two below it. The root is the node 1, and
below node i are 2 i and 2 i + 1.
"""

from __future__ import annotations

from sim.base.kernel import kernel, small
from sim.executors.compiled.state import (
    ADMIT_LIST, CHANNEL_TABLE, CHANNEL_WORDS, CLOCK, CLOCK_LEAVES, DEVICE_MARKS, DISPATCH_LIST, K_ARRIVED, K_FIRED, K_LEAF,
    K_RING, K_RING_HEAD, K_RING_SIZE, K_RING_TAIL, K_TIMER, NEVER, NONE, NOW, PLAN_LIST, Q_MARKED, RING_ENTRY, TO_ADMIT,
    TO_DISPATCH, TO_PLAN, Memory,
)  # fmt: skip


@small
@kernel
def first_arrival(m: Memory, channel: int) -> int:
    """The address of the next cell that arrives at a channel, and of its time."""
    return m[channel + K_RING] + RING_ENTRY * (m[channel + K_RING_HEAD] & (m[channel + K_RING_SIZE] - 1))


@small
@kernel
def set_clock(m: Memory, channel: int) -> None:
    """Set the time of the next event of a unit: its timer, or an arrival."""
    time = min(m[channel + K_TIMER], NEVER)  # which shares next to nothing may pass
    if m[channel + K_RING_HEAD] < m[channel + K_RING_TAIL]:
        time = min(time, m[first_arrival(m, channel)])
    clock, node = m[CLOCK], m[channel + K_LEAF]
    if m[clock + node] == time:
        return
    m[clock + node] = time
    while node > 1:
        time = min(time, m[clock + (node ^ 1)])
        node >>= 1
        if m[clock + node] == time:
            return
        m[clock + node] = time


@small
@kernel
def next_due(m: Memory, after: int) -> int:
    """The first of the units behind `after` whose next event is now; NONE if there is none. after: NONE for the first of all.

    Events leave the clock as it is: all units that have one are divided anew in the same instant, and that sets it.
    """
    clock, leaves, node = m[CLOCK], m[CLOCK_LEAVES], 1
    if after != NONE:
        node = m[after + K_LEAF]
        while node > 1 and (node % 2 == 1 or m[clock + node + 1] != m[NOW]):
            node >>= 1
        if node <= 1:
            return NONE
        node += 1
    elif m[clock + 1] != m[NOW]:
        return NONE
    while node < leaves:
        node *= 2
        if m[clock + node] != m[NOW]:
            node += 1
    return m[CHANNEL_TABLE] + (node - leaves) * CHANNEL_WORDS


@small
@kernel
def mark_unit(m: Memory, channel: int) -> None:
    """A unit is to be divided anew in this instant; called before the arrival, or the end of a timer, is noted there."""
    if m[channel + K_ARRIVED] == 0 and m[channel + K_FIRED] == 0:
        m[m[PLAN_LIST] + m[TO_PLAN]] = channel
        m[TO_PLAN] += 1


@small
@kernel
def mark_device(m: Memory, device: int) -> None:
    """A device has a ready task or an idle engine more, so that tasks of it may be dispatched."""
    if m[m[DEVICE_MARKS] + device] == 0:
        m[m[DEVICE_MARKS] + device] = 1
        m[m[DISPATCH_LIST] + m[TO_DISPATCH]] = device
        m[TO_DISPATCH] += 1


@small
@kernel
def mark_queue(m: Memory, queue: int) -> None:
    """A queue for SRAM has a request or free bytes more, so that a request may be admitted."""
    if m[queue + Q_MARKED] == 0:
        m[queue + Q_MARKED] = 1
        m[m[ADMIT_LIST] + m[TO_ADMIT]] = queue
        m[TO_ADMIT] += 1
