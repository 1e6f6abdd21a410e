"""All transfers at once, those of a class at the same rate: `processor_sharing`, `weighted`, `proportional` by kind.

In each interval all of a class get the same, but for the transfer that came last of all, which takes the rest. So the
order in which the others of a class end never changes, and a heap keeps it by the service that the class will have got then.
The last is counted on its own, until another comes or those after it have ended; older entries of the heap are stale then.
"""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.heaps import ENTRY, pop, push
from sim.executors.compiled.ports import at_rate, depart, kept, record, time_for
from sim.executors.compiled.state import (
    BY_SEQUENCE, CLASS, FORM, K_CAP, K_CAP_OF, K_CLASSES, K_CLASS_COUNT, K_DERATED, K_EFFICIENCIES, K_EFFICIENCY, K_FIRST,
    K_FIXED_RATES, K_HEADS, K_LAST, K_MOST, K_NEW, K_PART, K_PENDING, K_SEQUENCE_CLASS, K_SERVED, K_TIMER, K_URGENCY, K_WHOLE,
    LEVEL, NEVER, NONE, NOW, P_EARLIER, P_LATER, P_LEFT, P_ORDER, SLOT, S_FORM, TASK, W_CAPACITY, W_GOT, W_HEAP,
    W_MANY, W_SHARE, Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.tasks import owner_of
from sim.machine.arbiters.rules import derate, max_min_of, rates


@kernel
def class_of(m: Memory, f: Forms, channel: int, cell: int) -> int:
    """The class of a transfer: that of its kind, or of its sequence."""
    slot = m[cell + SLOT]
    task = m[cell + TASK]
    if m[channel + K_URGENCY] == BY_SEQUENCE:
        number = m[m[channel + K_SEQUENCE_CLASS] + owner_of(m, f, slot, task)]
    else:
        number = f[m[slot + S_FORM] + task * FORM + LEVEL]
    return m[channel + K_CLASSES] + number * CLASS


@kernel
def join_class(m: Memory, f: Forms, channel: int, cell: int) -> None:
    """Let a transfer get the service of its class from now on."""
    group, part = class_of(m, f, channel, cell), cell + m[channel + K_PART]
    m[part + P_LEFT] += m[group + W_GOT]
    if m[m[group + W_HEAP]] == m[group + W_CAPACITY]:
        drop_stale(m, channel, m[group + W_HEAP])
    push(m, m[group + W_HEAP], m[part + P_LEFT], m[part + P_ORDER], cell)


@kernel
def is_current(m: Memory, channel: int, entry: int) -> bool:
    """Whether an entry of a heap counts: its transfer is at the channel, and has been in its class since."""
    cell = m[entry + 2]
    part = cell + m[channel + K_PART]
    return cell != m[channel + K_LAST] and m[part + P_ORDER] == m[entry + 1] and m[part + P_LEFT] == m[entry]


@kernel
def drop_stale(m: Memory, channel: int, heap: int) -> None:
    """Keep the entries of a full heap that count, one of each transfer.

    One that was the last, and got as much as its class meanwhile, has joined again with an entry equal to that from before.
    """
    count = m[heap]
    m[heap] = 0
    for i in range(count):
        entry = heap + 1 + i * ENTRY
        if is_current(m, channel, entry):
            part = m[entry + 2] + m[channel + K_PART]
            push(m, heap, m[entry], m[entry + 1], m[entry + 2])
            m[part + P_LEFT] = -1 - m[part + P_LEFT]  # so that no other entry of it counts
    for i in range(m[heap]):
        part = m[heap + 3 + i * ENTRY] + m[channel + K_PART]
        m[part + P_LEFT] = -1 - m[part + P_LEFT]


@kernel
def least_of_class(m: Memory, channel: int, group: int) -> int:
    """The service that a class lacks until its next transfer ends; NEVER if it has none beside the last of all."""
    heap = m[group + W_HEAP]
    while m[heap] > 0:
        if is_current(m, channel, heap + 1):
            return m[heap + 1] - m[group + W_GOT]
        pop(m, heap)
    return NEVER


@kernel
def admit_by_class(m: Memory, f: Forms, channel: int) -> None:
    """New transfers come to the end of the list of arrivals."""
    for i in range(m[channel + K_NEW]):
        cell, last = m[m[channel + K_HEADS] + i], m[channel + K_LAST]
        part = cell + m[channel + K_PART]
        m[part + P_EARLIER] = last
        m[part + P_LATER] = NONE
        m[channel + K_LAST] = cell
        m[class_of(m, f, channel, cell) + W_MANY] += 1
        if last == NONE:
            m[channel + K_FIRST] = cell
        else:
            m[last + m[channel + K_PART] + P_LATER] = cell
            join_class(m, f, channel, last)


@kernel
def plan_classes(m: Memory, f: Forms, channel: int) -> None:
    """Set the rates, and the time until the next transfer ends."""
    last = m[channel + K_LAST]
    m[channel + K_SERVED] = last
    m[channel + K_TIMER] = NEVER
    if last == NONE:
        return
    set_rates(m, channel)
    whole = m[channel + K_WHOLE]
    wait = time_for(m[last + m[channel + K_PART] + P_LEFT], m[class_of(m, f, channel, last) + W_SHARE], whole)
    for i in range(m[channel + K_CLASS_COUNT]):
        group = m[channel + K_CLASSES] + i * CLASS
        least = least_of_class(m, channel, group)
        if least != NEVER:
            wait = min(wait, time_for(least, m[group + W_SHARE], whole))
    m[channel + K_TIMER] = m[NOW] + wait


@kernel
def set_rates(m: Memory, channel: int) -> None:
    """The share of each transfer of each class, over their common denominator."""
    table, part, parts = m[channel + K_CLASSES], 1, 1
    if m[channel + K_DERATED]:
        point = m[channel + K_EFFICIENCY] + 2 * min(m[channel + K_PENDING], m[channel + K_EFFICIENCIES] - 1)
        part, parts = m[point], m[point + 1]
    if m[channel + K_FIXED_RATES]:
        denominator = rates(m, table, CLASS, m[channel + K_CLASS_COUNT], m[channel + K_MOST])
        denominator = derate(m, table, CLASS, m[channel + K_CLASS_COUNT], denominator, part, parts)
    else:
        cap, cap_of = m[channel + K_CAP], m[channel + K_CAP_OF]
        denominator = max_min_of(m, table, CLASS, m[channel + K_CLASS_COUNT], cap, cap_of, part, parts)
    m[channel + K_WHOLE] = denominator


@kernel
def deliver_to_classes(m: Memory, f: Forms, service: Log, channel: int, since: int) -> None:
    """Each transfer of a class gets as much; the one that came last of all also gets what the floors leave over."""
    elapsed, last, whole = m[NOW] - since, m[channel + K_LAST], m[channel + K_WHOLE]
    of_last = class_of(m, f, channel, last)
    wanted, given = 0, 0
    for i in range(m[channel + K_CLASS_COUNT]):
        group = m[channel + K_CLASSES] + i * CLASS
        if m[group + W_MANY] > 0:
            each = at_rate(elapsed, m[group + W_SHARE], whole)
            m[group + W_GOT] += each
            wanted += m[group + W_MANY] * m[group + W_SHARE]
            given += each * (m[group + W_MANY] - (1 if group == of_last else 0))
    part = last + m[channel + K_PART]
    over = min(at_rate(elapsed, wanted, whole) - given, m[part + P_LEFT] - kept(m, channel))
    m[part + P_LEFT] -= over
    record_classes(m, f, service, channel, since, over)


@kernel
def record_classes(m: Memory, f: Forms, service: Log, channel: int, since: int, over: int) -> None:
    """Record a service interval of each transfer, in order of arrival."""
    elapsed, cell, last = m[NOW] - since, m[channel + K_FIRST], m[channel + K_LAST]
    while cell != last:
        share = m[class_of(m, f, channel, cell) + W_SHARE]
        record(m, service, channel, cell, since, at_rate(elapsed, share, m[channel + K_WHOLE]))
        cell = m[cell + m[channel + K_PART] + P_LATER]
    record(m, service, channel, last, since, over)


@kernel
def end_of_class_transfers(m: Memory, f: Forms, log: Log, channel: int) -> None:
    """Let all transfers depart that have no work left."""
    m[channel + K_SERVED] = NONE
    for i in range(m[channel + K_CLASS_COUNT]):
        group = m[channel + K_CLASSES] + i * CLASS
        while least_of_class(m, channel, group) == 0:
            cell = m[m[group + W_HEAP] + 3]
            pop(m, m[group + W_HEAP])
            leave_class(m, f, log, channel, cell)
    last = m[channel + K_LAST]
    if m[last + m[channel + K_PART] + P_LEFT] == 0:
        leave_class(m, f, log, channel, last)
        previous = m[channel + K_LAST]
        if previous != NONE:  # from now on it is the last, and counted on its own
            m[previous + m[channel + K_PART] + P_LEFT] -= m[class_of(m, f, channel, previous) + W_GOT]


@kernel
def leave_class(m: Memory, f: Forms, log: Log, channel: int, cell: int) -> None:
    """A transfer leaves the list of arrivals and departs."""
    place = m[channel + K_PART]
    earlier, later = m[cell + place + P_EARLIER], m[cell + place + P_LATER]
    if earlier == NONE:
        m[channel + K_FIRST] = later
    else:
        m[earlier + place + P_LATER] = later
    if later == NONE:
        m[channel + K_LAST] = earlier
    else:
        m[later + place + P_EARLIER] = earlier
    m[class_of(m, f, channel, cell) + W_MANY] -= 1
    m[cell + place + P_LEFT] = NONE
    depart(m, f, log, channel, cell)
