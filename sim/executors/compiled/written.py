"""As the function of a third party divides the channel, called through a pointer: `sim.machine.arbiters.written`."""

from __future__ import annotations

from sim.base.integers import mul_div, mul_div_up
from sim.base.kernel import kernel
from sim.base.pointers import call
from sim.executors.compiled.ports import time_for
from sim.executors.compiled.rest import deliver_to_list
from sim.executors.compiled.state import (
    CLASS, FORM, K_CAP, K_CAP_OF, K_CLASSES, K_CONSERVES, K_DERATED, K_EFFICIENCIES, K_EFFICIENCY, K_HEAP, K_LATER, K_MEMORY,
    K_MEMORY_WORDS, K_PART, K_READS, K_RECORDS, K_RULE, K_SERVED, K_SINCE, K_TIMER, K_WHOLE, LEVEL, MOVES, NEVER, NONE, NOW,
    P_LEFT, P_ORDER, P_SERVED, P_WORK, REQUESTER, SLOT, S_AGE, S_FORM, S_TOKEN, TASK, TOO_LARGE, W_SHARE, Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.tasks import owner_of
from sim.machine.arbiters.rules import derated
from sim.machine.arbiters.written import SOUND, TRANSFER_WORDS, flaw


@kernel
def describe(m: Memory, f: Forms, channel: int) -> None:
    """Write the records of pending transfers, in order of the fields that arbiters see."""
    heap, at = m[channel + K_HEAP], m[channel + K_RECORDS]
    for i in range(m[heap]):
        cell = m[heap + 1 + i]
        slot, part = m[cell + SLOT], cell + m[channel + K_PART]
        form = m[slot + S_FORM] + m[cell + TASK] * FORM
        m[at] = m[cell + REQUESTER]
        m[at + 1] = f[form + LEVEL]
        m[at + 2] = owner_of(m, f, slot, m[cell + TASK])
        m[at + 3] = m[slot + S_TOKEN]
        m[at + 4] = m[part + P_ORDER]
        m[at + 5] = m[slot + S_AGE]
        m[at + 6] = m[part + P_WORK]
        m[at + 7] = m[part + P_LEFT]
        m[at + 8] = m[part + P_SERVED]
        m[at + 9] = f[form + MOVES]
        m[m[channel + K_LATER] + i] = 0
        at += TRANSFER_WORDS


@kernel
def plan_written(m: Memory, f: Forms, service: Log, channel: int) -> None:
    """Ask the function; if its plan is another one, the service so far is an interval, and it holds from now on."""
    heap, table, shares, memory = m[channel + K_HEAP], m[channel + K_CLASSES], m[channel + K_LATER], m[channel + K_MEMORY]
    count = m[heap]
    if count == 0:
        return
    describe(m, f, channel)
    m[memory] = 0
    records, size = m[channel + K_RECORDS], count * TRANSFER_WORDS
    denominator = call(m, m[channel + K_RULE], records, size, count, shares, memory, m[channel + K_MEMORY_WORDS])
    quantum, wanted, served = m[memory], 0, 0
    cap, cap_of, conserves = m[channel + K_CAP], m[channel + K_CAP_OF], m[channel + K_CONSERVES]
    if flaw(m, shares, count, denominator, quantum, cap, cap_of, conserves) != SOUND:
        m[TOO_LARGE] = 1  # the reference says what is wrong
        return
    for i in range(count):
        wanted += m[shares + i]
        served += int(m[shares + i] > 0)
    if m[channel + K_DERATED] and served > 0:
        point = m[channel + K_EFFICIENCY] + 2 * min(served, m[channel + K_EFFICIENCIES] - 1)
        factor, slower = derated(wanted, denominator, m[point], m[point + 1])
        if slower != denominator:
            if quantum > 0:  # the time in which as much work is done
                quantum = mul_div_up(max(1, mul_div(quantum, wanted, denominator)), m[point + 1], m[point])
            denominator = slower
            for i in range(count):
                m[shares + i] *= factor
    same = m[channel + K_SERVED] != NONE and quantum == 0 and not m[channel + K_READS] and denominator == m[channel + K_WHOLE]
    for i in range(count):
        same = same and m[shares + i] == m[table + i * CLASS + W_SHARE]
    if not same:
        serve_written(m, service, channel, denominator, quantum)


@kernel
def serve_written(m: Memory, service: Log, channel: int, denominator: int, quantum: int) -> None:
    """Serve by a new plan, up to the first end of a transfer or of the quantum."""
    heap, table, wait = m[channel + K_HEAP], m[channel + K_CLASSES], NEVER
    if m[channel + K_SERVED] != NONE and m[NOW] > m[channel + K_SINCE]:
        deliver_to_list(m, service, channel, m[channel + K_SINCE])
    m[channel + K_SINCE] = m[NOW]
    m[channel + K_SERVED] = NONE
    m[channel + K_WHOLE] = denominator
    for i in range(m[heap]):
        share, part = m[m[channel + K_LATER] + i], m[heap + 1 + i] + m[channel + K_PART]
        m[table + i * CLASS + W_SHARE] = share
        m[part + P_SERVED] = int(share > 0)
        if share > 0:
            m[channel + K_SERVED] = m[heap + 1 + i]
            if m[part + P_LEFT] // share < NEVER // denominator - 1:  # else it does not end in any time that there is
                wait = min(wait, time_for(m[part + P_LEFT], share, denominator))
    if quantum > 0:
        wait = min(wait, quantum)
    m[channel + K_TIMER] = m[NOW] + wait if m[channel + K_SERVED] != NONE and wait < NEVER else NEVER
