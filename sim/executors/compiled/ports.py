"""Queues at a channel: a requester has one transfer there at a time, and arrivals of one instant are in program order."""

from __future__ import annotations

from sim.base.integers import mul_div, mul_div_up
from sim.base.kernel import kernel, small
from sim.executors.compiled.state import (
    I_CHANNEL, I_END, I_START, I_TASK, I_WORK, K_ARRIVALS, K_ARRIVED, K_FIRED, K_HEADS, K_HOPS, K_NEW, K_NUMBER, K_ORDER,
    K_PART, K_PENDING, K_PORTS, NONE, NOW, P_BEHIND, P_ORDER, REQUESTER, ROWS_WANTED, SERVICES, SLOT, S_KEY, S_ROW,
    TASK, Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.tasks import part_arrived


@kernel
def queue_arrivals(m: Memory, channel: int) -> None:
    """Append arrivals of this instant to the queues of their requesters, then number new heads: both in program order."""
    arrivals, heads, place = m[channel + K_ARRIVALS], m[channel + K_HEADS], m[channel + K_PART]
    if m[channel + K_ARRIVED] > 1:
        sort_cells(m, arrivals, m[channel + K_ARRIVED])
    for i in range(m[channel + K_ARRIVED]):
        cell = m[arrivals + i]
        port = m[channel + K_PORTS] + 2 * m[cell + REQUESTER]
        m[cell + place + P_BEHIND] = NONE
        if m[port + 1] == NONE:
            m[port] = cell
            m[heads + m[channel + K_NEW]] = cell
            m[channel + K_NEW] += 1
        else:
            m[m[port + 1] + place + P_BEHIND] = cell
        m[port + 1] = cell
    m[channel + K_ARRIVED] = 0
    if m[channel + K_NEW] > 1:
        sort_cells(m, heads, m[channel + K_NEW])
    for i in range(m[channel + K_NEW]):
        m[m[heads + i] + place + P_ORDER] = m[channel + K_ORDER]
        m[channel + K_ORDER] += 1
    m[channel + K_PENDING] += m[channel + K_NEW]
    m[ROWS_WANTED] += m[channel + K_NEW] * m[channel + K_HOPS]


@kernel
def depart(m: Memory, f: Forms, log: Log, channel: int, cell: int) -> None:
    """A transfer has been served: the next in its queue comes to the channel, and its task goes on."""
    port = m[channel + K_PORTS] + 2 * m[cell + REQUESTER]
    behind = m[cell + m[channel + K_PART] + P_BEHIND]
    m[port] = behind
    if behind == NONE:
        m[port + 1] = NONE
    else:
        m[m[channel + K_HEADS] + m[channel + K_NEW]] = behind
        m[channel + K_NEW] += 1
    m[channel + K_PENDING] -= 1
    m[ROWS_WANTED] -= m[channel + K_HOPS]
    part_arrived(m, f, log, cell)


@small
@kernel
def comes_before(m: Memory, a: int, b: int) -> bool:
    """Whether cell a comes before b in program order."""
    if m[a + SLOT] == m[b + SLOT]:
        return a < b
    return m[m[a + SLOT] + S_KEY] < m[m[b + SLOT] + S_KEY]


@kernel
def sort_cells(m: Memory, first: int, count: int) -> None:
    """Put cells into program order: nearly sorted ones by insertion, others by heap sort."""
    moves = 0
    for i in range(1, count):
        cell, j = m[first + i], i - 1
        while j >= 0 and comes_before(m, cell, m[first + j]):
            m[first + j + 1] = m[first + j]
            j -= 1
        m[first + j + 1] = cell
        moves += i - 1 - j
        if moves > 32 * count:
            heap_sort(m, first, count)
            return


@kernel
def heap_sort(m: Memory, first: int, count: int) -> None:
    """Put cells into program order, whatever their order."""
    root = 0
    for start in range(count // 2 - 1, -1, -1):
        sift_down(m, first, start, count)
    for end in range(count - 1, 0, -1):
        m[first], m[first + end] = m[first + end], m[first]
        sift_down(m, first, root, end)


@kernel
def sift_down(m: Memory, first: int, i: int, count: int) -> None:
    """Restore a heap whose entry i may come too early; the last in program order is at its top."""
    while 2 * i + 1 < count:
        child = 2 * i + 1
        if child + 1 < count and comes_before(m, m[first + child], m[first + child + 1]):
            child += 1
        if not comes_before(m, m[first + i], m[first + child]):
            return
        m[first + i], m[first + child] = m[first + child], m[first + i]
        i = child


@small
@kernel
def at_rate(time: int, share: int, denominator: int) -> int:
    """The work that a share of the channel does in a time, rounded down."""
    return time if share == denominator else mul_div(time, share, denominator)


@small
@kernel
def time_for(work: int, share: int, denominator: int) -> int:
    """The time that a share of the channel takes for some work, rounded up."""
    return work if share == denominator else mul_div_up(work, denominator, share)


@small
@kernel
def kept(m: Memory, channel: int) -> int:
    """The work of a transfer that stays until the timer of its plan is due: what floors leave over ends none before."""
    return 0 if m[channel + K_FIRED] else 1


@kernel
def record(m: Memory, service: Log, channel: int, cell: int, since: int, work: int) -> None:
    """Record a service interval that ends now. `advance` has made sure that one of every pending transfer fits."""
    record_in(m, service, m[SERVICES], m[channel + K_NUMBER], cell, since, work)
    m[SERVICES] += 1


@kernel
def record_in(m: Memory, service: Log, row: int, number: int, cell: int, since: int, work: int) -> None:
    """Record a service interval on the channel of this number in a row."""
    service[I_TASK, row] = m[m[cell + SLOT] + S_ROW] + m[cell + TASK]
    service[I_CHANNEL, row] = number
    service[I_START, row] = since
    service[I_END, row] = m[NOW]
    service[I_WORK, row] = work
