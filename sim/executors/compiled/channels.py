"""A channel divides its bandwidth: admit what arrived, plan, deliver. The rules are those of `sim.machine.arbiters.rules`.

Six disciplines; the time of the first three grows with the logarithm of the number of pending transfers:

| discipline     | serves                                             | pending transfers are in                          |
| -------------- | -------------------------------------------------- | ------------------------------------------------- |
| `EXCLUSIVE`    | one at a time, the most urgent first               | a heap by urgency and order of arrival            |
| `TURN_BY_TURN` | one at a time, a burst for each requester in turn  | two heaps by requester: this round, and the next  |
| `BY_CLASS`     | all at once, transfers of a class at the same rate | per class a heap by the service that each ends at |
| `BY_REST`      | all at once, in proportion to what is left of each | a list in order of arrival                        |
| `BY_RULE`      | as the function of a third party plans             | the same                                          |
| `BY_PATH`      | as several links allow that each crosses at once   | the same                                          |
"""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.classes import admit_by_class, deliver_to_classes, end_of_class_transfers, plan_classes
from sim.executors.compiled.clock import mark_unit, set_clock
from sim.executors.compiled.exclusive import admit_by_urgency, deliver_to_one, plan_exclusive
from sim.executors.compiled.paths import admit_to_paths, deliver_to_paths, plan_paths
from sim.executors.compiled.ports import depart, queue_arrivals
from sim.executors.compiled.rest import admit_to_list, deliver_to_list, end_of_listed, plan_list
from sim.executors.compiled.state import (
    BY_CLASS, BY_PATH, BY_REST, BY_RULE, EXCLUSIVE, K_DISCIPLINE, K_FIRED, K_NEW, K_PART, K_READS, K_SERVED, K_SINCE, K_TIMER,
    K_TURN, NEVER, NONE, NOW, P_LEFT, TURN_BY_TURN, Forms, Log, Memory,
)  # fmt: skip
from sim.executors.compiled.turns import admit_by_requester, plan_turn
from sim.executors.compiled.written import plan_written


@kernel
def timer_due(m: Memory, f: Forms, log: Log, service: Log, channel: int) -> None:
    """Deliver the work of the interval that ends now; transfers that have all of theirs depart."""
    mark_unit(m, channel)
    m[channel + K_TIMER] = NEVER
    m[channel + K_FIRED] = 1
    deliver(m, f, service, channel)
    if m[channel + K_DISCIPLINE] == BY_CLASS:
        end_of_class_transfers(m, f, log, channel)
    elif is_listed(m, channel):
        end_of_listed(m, f, log, channel)
    else:
        cell = m[channel + K_SERVED]
        m[channel + K_SERVED] = NONE
        if m[cell + m[channel + K_PART] + P_LEFT] == 0:  # else its turn is over
            m[channel + K_TURN] = NONE
            depart(m, f, log, channel, cell)


@kernel
def is_listed(m: Memory, channel: int) -> bool:
    """Whether pending transfers are in a list."""
    return m[channel + K_DISCIPLINE] in (BY_REST, BY_RULE, BY_PATH)


@kernel
def deliver(m: Memory, f: Forms, service: Log, channel: int) -> None:
    """Deliver the work of the time since the last delivery to the transfers in service."""
    since = m[channel + K_SINCE]
    m[channel + K_SINCE] = m[NOW]
    if m[NOW] == since or m[channel + K_SERVED] == NONE:
        return
    if m[channel + K_DISCIPLINE] == BY_CLASS:
        deliver_to_classes(m, f, service, channel, since)
    elif m[channel + K_DISCIPLINE] == BY_REST or m[channel + K_DISCIPLINE] == BY_RULE:
        deliver_to_list(m, service, channel, since)
    elif m[channel + K_DISCIPLINE] == BY_PATH:
        deliver_to_paths(m, service, channel, since)
    else:
        deliver_to_one(m, service, channel, since)


@kernel
def plan(m: Memory, f: Forms, service: Log, channel: int) -> None:
    """Phase 5: divide the channel anew, once all arrivals and departures of an instant are known."""
    fired = m[channel + K_FIRED]
    m[channel + K_FIRED] = 0
    queue_arrivals(m, channel)
    if m[channel + K_DISCIPLINE] == EXCLUSIVE:
        admit_by_urgency(m, f, channel)
        plan_exclusive(m, f, service, channel)
    elif m[channel + K_DISCIPLINE] == TURN_BY_TURN:
        deliver(m, f, service, channel)
        admit_by_requester(m, channel)
        plan_turn(m, channel)
    elif m[channel + K_DISCIPLINE] == BY_REST:
        deliver(m, f, service, channel)
        admit_to_list(m, channel)
        plan_list(m, channel)
    elif m[channel + K_DISCIPLINE] == BY_RULE:
        if m[channel + K_READS]:
            deliver(m, f, service, channel)
        admit_to_list(m, channel)
        plan_written(m, f, service, channel)
    elif m[channel + K_DISCIPLINE] == BY_PATH:
        if m[channel + K_READS]:
            deliver(m, f, service, channel)
        admit_to_paths(m, channel)
        plan_paths(m, f, service, channel)
    elif m[channel + K_NEW] > 0 or fired:  # else all in service go on as before
        deliver(m, f, service, channel)
        admit_by_class(m, f, channel)
        plan_classes(m, f, channel)
    m[channel + K_NEW] = 0
    set_clock(m, channel)
