"""All transfers at once, in proportion to what is left of each: `proportional` by what is outstanding."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.ports import at_rate, depart, kept, record, time_for
from sim.executors.compiled.state import (
    CLASS, K_CAP, K_CAP_OF, K_CLASSES, K_DERATED, K_EFFICIENCIES, K_EFFICIENCY, K_HEADS, K_HEAP, K_MOST, K_NEW, K_PART,
    K_SERVED, K_TIMER, K_WHOLE, NEVER, NONE, NOW, P_LEFT, P_SERVED, P_WORK, TOO_LARGE, W_MANY, W_SHARE, W_WEIGHT, Forms, Log,
    Memory,
)  # fmt: skip
from sim.machine.arbiters.rules import max_min_of


@kernel
def admit_to_list(m: Memory, channel: int) -> None:
    """New transfers come to the end of the list."""
    heap = m[channel + K_HEAP]
    for i in range(m[channel + K_NEW]):
        cell = m[m[channel + K_HEADS] + i]
        part = cell + m[channel + K_PART]
        m[part + P_SERVED] = 0
        m[part + P_WORK] = m[part + P_LEFT]
        m[m[channel + K_CLASSES] + m[heap] * CLASS + W_SHARE] = 0
        m[heap + 1 + m[heap]] = cell
        m[heap] += 1


@kernel
def plan_list(m: Memory, channel: int) -> None:
    """Set the share of each transfer, and the time until the next one ends."""
    heap, table, total = m[channel + K_HEAP], m[channel + K_CLASSES], 0
    m[channel + K_SERVED] = NONE
    m[channel + K_TIMER] = NEVER
    if m[heap] == 0:
        return
    for i in range(m[heap]):
        weight = m[m[heap + 1 + i] + m[channel + K_PART] + P_LEFT]
        m[table + i * CLASS + W_WEIGHT] = weight
        m[table + i * CLASS + W_MANY] = 1
        total += weight
    if total > m[channel + K_MOST]:
        m[TOO_LARGE] = 1
        return
    part, parts = 1, 1
    if m[channel + K_DERATED]:
        point = m[channel + K_EFFICIENCY] + 2 * min(m[heap], m[channel + K_EFFICIENCIES] - 1)
        part, parts = m[point], m[point + 1]
    denominator = max_min_of(m, table, CLASS, m[heap], m[channel + K_CAP], m[channel + K_CAP_OF], part, parts)
    wait = NEVER
    for i in range(m[heap]):
        left = m[m[heap + 1 + i] + m[channel + K_PART] + P_LEFT]
        wait = min(wait, time_for(left, m[table + i * CLASS + W_SHARE], denominator))
    m[channel + K_SERVED] = m[heap + 1]
    m[channel + K_WHOLE] = denominator
    m[channel + K_TIMER] = m[NOW] + wait


@kernel
def deliver_to_list(m: Memory, service: Log, channel: int, since: int) -> None:
    """Each transfer that has a share gets it, and the last of them what the floors leave over."""
    heap, table, elapsed, wanted, last = m[channel + K_HEAP], m[channel + K_CLASSES], m[NOW] - since, 0, 0
    for i in range(m[heap]):
        if m[table + i * CLASS + W_SHARE] > 0:
            wanted += m[table + i * CLASS + W_SHARE]
            last = i
    left = at_rate(elapsed, wanted, m[channel + K_WHOLE])
    for i in range(last + 1):
        if m[table + i * CLASS + W_SHARE] == 0:
            continue
        cell = m[heap + 1 + i]
        part = cell + m[channel + K_PART]
        share = at_rate(elapsed, m[table + i * CLASS + W_SHARE], m[channel + K_WHOLE])
        work = min(left if i == last else share, m[part + P_LEFT] - kept(m, channel))
        left -= work
        m[part + P_LEFT] -= work
        record(m, service, channel, cell, since, work)


@kernel
def end_of_listed(m: Memory, f: Forms, log: Log, channel: int) -> None:
    """Transfers of which nothing is left depart."""
    m[channel + K_SERVED] = NONE
    heap, gone, kept = m[channel + K_HEAP], m[channel + K_HEAP] + 1 + m[m[channel + K_HEAP]], 0
    count = m[heap]
    for i in range(count):
        cell = m[heap + 1 + i]
        if m[cell + m[channel + K_PART] + P_LEFT] > 0:
            m[heap + 1 + kept] = cell
            kept += 1
        else:
            m[gone + i - kept] = cell
    m[heap] = kept
    for i in range(count - kept):
        depart(m, f, log, channel, m[gone + i])
