"""One transfer at a time, a burst for each requester in turn: `round_robin`."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.heaps import pop, push
from sim.executors.compiled.ports import time_for
from sim.executors.compiled.state import (
    K_BURST, K_DENOMINATOR, K_FROM, K_HEADS, K_HEAP, K_LAST_PORT, K_LATER, K_NEW, K_PART, K_PENDING, K_SERVED, K_SHARE,
    K_TIMER, K_TURN, K_UNTIL, NONE, NOW, P_LEFT, REQUESTER, Memory,
)  # fmt: skip
from sim.machine.arbiters.rules import NO_LIMIT, turn_is_over, turn_until


@kernel
def admit_by_requester(m: Memory, channel: int) -> None:
    """New transfers at the channel wait for their requesters' turn."""
    for i in range(m[channel + K_NEW]):
        put_by_requester(m, channel, m[m[channel + K_HEADS] + i])


@kernel
def put_by_requester(m: Memory, channel: int, cell: int) -> None:
    """A requester takes its turn in this round if its number is above that of the last one, else in the next."""
    this_round = m[cell + REQUESTER] > m[channel + K_LAST_PORT]
    push(m, m[channel + K_HEAP] if this_round else m[channel + K_LATER], m[cell + REQUESTER], cell, cell)


@kernel
def plan_turn(m: Memory, channel: int) -> None:
    """Go on with the turn, or begin the next one."""
    m[channel + K_SERVED] = NONE
    if m[channel + K_PENDING] == 0:
        return
    alone = m[channel + K_PENDING] == 1
    turn, until = m[channel + K_TURN], m[channel + K_UNTIL]
    left = m[turn + m[channel + K_PART] + P_LEFT] if turn != NONE else 0
    if left > 0 and until == NO_LIMIT and not alone:  # others came during one of its bursts
        until = turn_until(m[channel + K_FROM], left, m[channel + K_BURST])
    if turn_is_over(left, until):
        if left > 0:
            put_by_requester(m, channel, turn)
        turn = next_turn(m, channel)
        left = m[turn + m[channel + K_PART] + P_LEFT]
        m[channel + K_FROM] = left
        until = NO_LIMIT if alone else left - m[channel + K_BURST]
    m[channel + K_TURN] = turn
    m[channel + K_UNTIL] = until
    m[channel + K_SERVED] = turn
    wait = time_for(left, m[channel + K_SHARE], m[channel + K_DENOMINATOR])
    if until != NO_LIMIT:
        wait = min(wait, time_for(left - until, m[channel + K_SHARE], m[channel + K_DENOMINATOR]))
    m[channel + K_TIMER] = m[NOW] + wait


@kernel
def next_turn(m: Memory, channel: int) -> int:
    """The pending requester with the lowest number above the last one's; if there is none, a new round begins."""
    if m[m[channel + K_HEAP]] == 0:
        m[channel + K_LAST_PORT] = NONE
        m[channel + K_HEAP], m[channel + K_LATER] = m[channel + K_LATER], m[channel + K_HEAP]
    heap = m[channel + K_HEAP]
    cell = m[heap + 3]
    pop(m, heap)
    m[channel + K_LAST_PORT] = m[cell + REQUESTER]
    return cell
