"""A channel divides its bandwidth: admit what arrived, plan, deliver. The rules are those of `sim.hardware.arbiters.rules`.

Four disciplines, each in time that grows with the logarithm of what is pending:

| discipline     | serves                                                | pending transfers are in                                   |
| -------------- | ----------------------------------------------------- | ---------------------------------------------------------- |
| `EXCLUSIVE`    | one at a time, the most urgent first                  | a heap by urgency and order of arrival                     |
| `TURN_BY_TURN` | one at a time, a burst for each requester in turn     | two heaps by requester: of this round, and of the next     |
| `BY_CLASS`     | all at once, transfers of a class at the same rate    | per class a heap by what the class will have got at an end |
| `GENERAL`      | as the arbiter's own kernel says, in linear time      | a list in order of arrival                                 |

By class: in each interval all of a class get the same, but for the transfer that came last of all, which takes what the
floors leave over. So the order in which the others end never changes. The last is counted on its own, until another comes.
"""

from __future__ import annotations

from typing import Any

from sim.base.integers import mul_div, mul_div_up
from sim.base.kernel import kernel
from sim.executors.compiled.heaps import before, pop, push
from sim.executors.compiled.record import record
from sim.executors.compiled.state import (
    BEHIND, BURST, BY_AGE, BY_CLASS, BY_KIND, BY_SEQUENCE, CAP, CAP_OF, CLASSES, DENOMINATOR, DERATED, DISCIPLINE, EARLIER, EXCLUSIVE,
    FIXED_RATES, GENERAL, K_ARRIVED, K_FIRED, K_FIRST, K_FROM, K_HEADS, K_HEAP, K_LAST, K_LAST_PORT, K_LATER, K_ORDER, K_PENDING,
    K_SERVED, K_SINCE, K_TIMER, K_TURN, K_UNTIL, K_WHOLE, LATER, LEVEL, NEVER, NONE, NOW, PREEMPTIVE, QUANTUM_DOWN, QUANTUM_UP,
    RECORDED, REQUESTER, S_AGE, S_BASE, S_FORM, S_KEY, S_ROW, SHARE, SLOT, TURN_BY_TURN, URGENCY, W_GOT, W_HEAP, W_MANY, W_SHARE,
    W_WEIGHT, WHOLE, State,
)  # fmt: skip
from sim.executors.compiled.tasks import owner_of, part_arrived
from sim.hardware.arbiters.rules import derate, rates, turn_is_over, turn_until, max_min


# Phase 1: the timer of a channel is due


@kernel
def timer_due(run: State, channel: int) -> None:
    """Credit the interval that ends now; transfers that are served go, and those behind them come to the channel."""
    run.channel[K_TIMER, channel] = NEVER
    run.channel[K_FIRED, channel] = 1
    deliver(run, channel)
    if run.m[DISCIPLINE] == BY_CLASS:
        end_of_class_transfers(run, channel)
    elif run.m[DISCIPLINE] == GENERAL:
        end_of_listed_transfers(run, channel)
    else:
        cell = run.channel[K_SERVED, channel]
        run.channel[K_SERVED, channel] = NONE
        if run.remaining[channel, cell] == 0:  # else its turn is over
            run.channel[K_TURN, channel] = NONE
            depart(run, channel, cell)


@kernel
def depart(run: State, channel: int, cell: int) -> None:
    """A transfer has been served: the next in its queue comes to the channel, and its task goes on."""
    requester = run.cell[REQUESTER, cell]
    behind = run.at[channel, BEHIND, cell]
    run.queue[channel, 0, requester] = behind
    if behind == NONE:
        run.queue[channel, 1, requester] = NONE
    else:
        run.heads[channel, run.channel[K_HEADS, channel]] = behind
        run.channel[K_HEADS, channel] += 1
    run.channel[K_PENDING, channel] -= 1
    part_arrived(run, cell)


# Phase 5: admit, then plan


@kernel
def plan(run: State, channel: int) -> None:
    """Divide the channel anew, once all arrivals and departures of an instant are known."""
    fired = run.channel[K_FIRED, channel]
    if run.channel[K_ARRIVED, channel] == 0 and not fired:
        return
    run.channel[K_FIRED, channel] = 0
    discipline = run.m[DISCIPLINE]
    queue_arrivals(run, channel)
    new = run.channel[K_HEADS, channel]
    if discipline == EXCLUSIVE:
        admit_by_urgency(run, channel)
        plan_exclusive(run, channel)
    elif discipline == TURN_BY_TURN:
        deliver(run, channel)
        admit_by_requester(run, channel)
        plan_turn(run, channel)
    elif discipline == BY_CLASS:
        if new or fired:
            deliver(run, channel)
            admit_by_class(run, channel)
            plan_classes(run, channel)
    run.channel[K_HEADS, channel] = 0


@kernel
def comes_before(run: State, a: int, b: int) -> bool:
    """Whether cell a comes before b in program order."""
    slot_a, slot_b = run.cell[SLOT, a], run.cell[SLOT, b]
    if slot_a == slot_b:
        return a < b
    return run.slot[S_KEY, slot_a] < run.slot[S_KEY, slot_b]


@kernel
def sort_cells(run: State, cells: Any, channel: int, count: int) -> None:
    """Put cells into program order: nearly sorted ones by insertion, others by heap sort."""
    moves = 0
    for i in range(1, count):
        cell, j = cells[channel, i], i - 1
        while j >= 0 and comes_before(run, cell, cells[channel, j]):
            cells[channel, j + 1] = cells[channel, j]
            j -= 1
        cells[channel, j + 1] = cell
        moves += i - 1 - j
        if moves > 32 * count:
            heap_sort(run, cells, channel, count)
            return


@kernel
def heap_sort(run: State, cells: Any, channel: int, count: int) -> None:
    """Put cells into program order, whatever their order."""
    for start in range(count // 2 - 1, -1, -1):
        sift_down(run, cells, channel, start, count)
    for end in range(count - 1, 0, -1):
        cells[channel, 0], cells[channel, end] = cells[channel, end], cells[channel, 0]
        sift_down(run, cells, channel, 0, end)


@kernel
def sift_down(run: State, cells: Any, channel: int, i: int, count: int) -> None:
    """Restore a heap whose root may be too early; the last in program order is at its top."""
    while 2 * i + 1 < count:
        child = 2 * i + 1
        if child + 1 < count and comes_before(run, cells[channel, child], cells[channel, child + 1]):
            child += 1
        if not comes_before(run, cells[channel, i], cells[channel, child]):
            return
        cells[channel, i], cells[channel, child] = cells[channel, child], cells[channel, i]
        i = child


@kernel
def queue_arrivals(run: State, channel: int) -> None:
    """Let those that arrived at this instant queue behind their requesters; then number the heads of queues: all in program order."""
    count = run.channel[K_ARRIVED, channel]
    run.channel[K_ARRIVED, channel] = 0
    sort_cells(run, run.arrived, channel, count)
    for i in range(count):
        cell = run.arrived[channel, i]
        requester = run.cell[REQUESTER, cell]
        run.at[channel, BEHIND, cell] = NONE
        tail = run.queue[channel, 1, requester]
        run.queue[channel, 1, requester] = cell
        if tail == NONE:
            run.queue[channel, 0, requester] = cell
            run.heads[channel, run.channel[K_HEADS, channel]] = cell
            run.channel[K_HEADS, channel] += 1
        else:
            run.at[channel, BEHIND, tail] = cell
    new = run.channel[K_HEADS, channel]
    sort_cells(run, run.heads, channel, new)
    for i in range(new):
        run.order[channel, run.heads[channel, i]] = run.channel[K_ORDER, channel]
        run.channel[K_ORDER, channel] += 1
    run.channel[K_PENDING, channel] += new


@kernel
def deliver(run: State, channel: int) -> None:
    """Credit the time since the last delivery to those in service."""
    since, now = run.channel[K_SINCE, channel], run.m[NOW]
    run.channel[K_SINCE, channel] = now
    if now == since or run.channel[K_SERVED, channel] == NONE:
        return
    if run.m[DISCIPLINE] == BY_CLASS:
        deliver_to_classes(run, channel, since)
        return
    cell = run.channel[K_SERVED, channel]
    work = min(at_rate(now - since, run.m[SHARE], run.m[DENOMINATOR]), run.remaining[channel, cell])
    run.remaining[channel, cell] -= work
    record(run, channel, cell, since, work)


@kernel
def at_rate(time: int, share: int, denominator: int) -> int:
    """The work that a share of the channel does in a time, rounded down."""
    return time if share == denominator else mul_div(time, share, denominator)


@kernel
def time_for(work: int, share: int, denominator: int) -> int:
    """The time that a share of the channel takes for some work, rounded up."""
    return work if share == denominator else mul_div_up(work, denominator, share)


# One at a time, by urgency


@kernel
def urgency(run: State, cell: int) -> int:
    """The class of a transfer under `fifo` and `priority`; the lowest goes first."""
    slot = run.cell[SLOT, cell]
    if run.m[URGENCY] == BY_AGE:
        return run.slot[S_AGE, slot]
    return run.form[LEVEL, run.slot[S_FORM, slot] + cell - run.slot[S_BASE, slot]]


@kernel
def admit_by_urgency(run: State, channel: int) -> None:
    for i in range(run.channel[K_HEADS, channel]):
        cell = run.heads[channel, i]
        put_by_urgency(run, channel, cell)


@kernel
def put_by_urgency(run: State, channel: int, cell: int) -> None:
    run.channel[K_HEAP, channel] = push(
        run.pending[channel], run.channel[K_HEAP, channel], urgency(run, cell), run.order[channel, cell], cell
    )


@kernel
def plan_exclusive(run: State, channel: int) -> None:
    """Whoever is served goes on, unless pre-emption lets a more urgent one take over."""
    served = run.channel[K_SERVED, channel]
    if run.channel[K_HEAP, channel] == 0:
        return
    if served != NONE:
        if not run.m[PREEMPTIVE] or not before(
            run.pending[channel], 0, urgency(run, served), run.order[channel, served], served
        ):
            return
        deliver(run, channel)
        cell = run.pending[channel, 2, 0]
        run.channel[K_HEAP, channel] = pop(run.pending[channel], run.channel[K_HEAP, channel])
        put_by_urgency(run, channel, served)
    else:
        cell = run.pending[channel, 2, 0]
        run.channel[K_HEAP, channel] = pop(run.pending[channel], run.channel[K_HEAP, channel])
    run.channel[K_SERVED, channel] = cell
    run.channel[K_SINCE, channel] = run.m[NOW]
    run.channel[K_TIMER, channel] = run.m[NOW] + time_for(run.remaining[channel, cell], run.m[SHARE], run.m[DENOMINATOR])


# One at a time, turn by turn


@kernel
def admit_by_requester(run: State, channel: int) -> None:
    for i in range(run.channel[K_HEADS, channel]):
        put_by_requester(run, channel, run.heads[channel, i])


@kernel
def put_by_requester(run: State, channel: int, cell: int) -> None:
    """A requester takes its turn in this round if its number is above that of the last one, else in the next."""
    requester = run.cell[REQUESTER, cell]
    if requester > run.channel[K_LAST_PORT, channel]:
        run.channel[K_HEAP, channel] = push(run.pending[channel], run.channel[K_HEAP, channel], requester, 0, cell)
    else:
        run.channel[K_LATER, channel] = push(run.later[channel], run.channel[K_LATER, channel], requester, 0, cell)


@kernel
def plan_turn(run: State, channel: int) -> None:
    """Go on with the turn, or begin the next one."""
    pending = run.channel[K_PENDING, channel]
    if pending == 0:
        run.channel[K_SERVED, channel] = NONE
        return
    alone = pending == 1
    turn, until = run.channel[K_TURN, channel], run.channel[K_UNTIL, channel]
    left = run.remaining[channel, turn] if turn != NONE else 0
    if left > 0 and until == NEVER and not alone:
        until = turn_until(run.channel[K_FROM, channel], left, run.m[BURST])
    if turn_is_over(left, until):
        if left > 0:
            put_by_requester(run, channel, turn)
        turn = next_turn(run, channel)
        left = run.remaining[channel, turn]
        run.channel[K_FROM, channel] = left
        until = NEVER if alone else left - run.m[BURST]
    run.channel[K_TURN, channel] = turn
    run.channel[K_UNTIL, channel] = until
    run.channel[K_SERVED, channel] = turn
    wait = time_for(left, run.m[SHARE], run.m[DENOMINATOR])
    if until != NEVER:
        quantum = mul_div_up(left - until, run.m[CAP_OF], run.m[CAP])
        if run.m[DERATED]:
            quantum = mul_div_up(quantum, run.m[QUANTUM_UP], run.m[QUANTUM_DOWN])
        wait = min(wait, quantum)
    run.channel[K_TIMER, channel] = run.m[NOW] + wait


@kernel
def next_turn(run: State, channel: int) -> int:
    """The pending requester with the lowest number above the last one's; if there is none, a new round begins."""
    if run.channel[K_HEAP, channel] == 0:
        run.channel[K_LAST_PORT, channel] = NONE
        while run.channel[K_LATER, channel] > 0:
            cell = run.later[channel, 2, 0]
            run.channel[K_LATER, channel] = pop(run.later[channel], run.channel[K_LATER, channel])
            put_by_requester(run, channel, cell)
    cell = run.pending[channel, 2, 0]
    run.channel[K_HEAP, channel] = pop(run.pending[channel], run.channel[K_HEAP, channel])
    run.channel[K_LAST_PORT, channel] = run.cell[REQUESTER, cell]
    return cell


# All at once, by class


@kernel
def class_of(run: State, cell: int) -> int:
    """The class of a transfer: that of its kind, or of its sequence."""
    slot = run.cell[SLOT, cell]
    if run.m[URGENCY] == BY_SEQUENCE:
        owner = owner_of(run, slot, cell - run.slot[S_BASE, slot])
        return run.sequence_class[owner]
    return run.form[LEVEL, run.slot[S_FORM, slot] + cell - run.slot[S_BASE, slot]]


@kernel
def put_into_class(run: State, channel: int, cell: int) -> None:
    """From now on a transfer gets what its class gets."""
    number = class_of(run, cell)
    end = run.classes[channel, W_GOT, number] + run.remaining[channel, cell]
    run.remaining[channel, cell] = end
    heap, count = run.class_heap[channel, number], run.classes[channel, W_HEAP, number]
    if count == heap.shape[1]:
        count = without_stale(run, channel, number)
    run.classes[channel, W_HEAP, number] = push(heap, count, end, run.order[channel, cell], cell)


@kernel
def counts(run: State, channel: int, number: int, i: int) -> bool:
    """Whether an entry of a heap counts: its transfer is at the channel, and has been in its class since."""
    heap = run.class_heap[channel, number]
    cell = heap[2, i]
    return (
        cell != run.channel[K_LAST, channel]
        and run.order[channel, cell] == heap[1, i]
        and run.remaining[channel, cell] == heap[0, i]
    )


@kernel
def without_stale(run: State, channel: int, number: int) -> int:
    """Drop the entries of a full heap that do not count; returns how many are left."""
    heap, kept = run.class_heap[channel, number], 0
    for i in range(run.classes[channel, W_HEAP, number]):
        if counts(run, channel, number, i):  # entries before i have been read
            kept = push(heap, kept, heap[0, i], heap[1, i], heap[2, i])
    return kept


@kernel
def least_of_class(run: State, channel: int, number: int) -> int:
    """What the class still has to get until its next transfer ends; NEVER if it has none beside the last."""
    heap = run.class_heap[channel, number]
    while run.classes[channel, W_HEAP, number] > 0:
        if counts(run, channel, number, 0):
            return heap[0, 0] - run.classes[channel, W_GOT, number]
        run.classes[channel, W_HEAP, number] = pop(heap, run.classes[channel, W_HEAP, number])
    return NEVER


@kernel
def admit_by_class(run: State, channel: int) -> None:
    """New transfers come to the end of the list of arrivals; the last of them takes what the floors leave over."""
    for i in range(run.channel[K_HEADS, channel]):
        cell, last = run.heads[channel, i], run.channel[K_LAST, channel]
        run.at[channel, EARLIER, cell] = last
        run.at[channel, LATER, cell] = NONE
        if last == NONE:
            run.channel[K_FIRST, channel] = cell
        else:
            run.at[channel, LATER, last] = cell
        run.channel[K_LAST, channel] = cell
        if last != NONE:
            put_into_class(run, channel, last)
        run.classes[channel, W_MANY, class_of(run, cell)] += 1


@kernel
def plan_classes(run: State, channel: int) -> None:
    """Set the rates, and the time until the next transfer ends."""
    last = run.channel[K_LAST, channel]
    run.channel[K_SERVED, channel] = last
    run.channel[K_TIMER, channel] = NEVER
    if last == NONE:
        return
    set_rates(run, channel)
    denominator, wait = run.channel[K_WHOLE, channel], NEVER
    for number in range(run.m[CLASSES]):
        if run.classes[channel, W_MANY, number] > 0:
            least = least_of_class(run, channel, number)
            if least != NEVER:
                wait = min(wait, time_for(least, run.classes[channel, W_SHARE, number], denominator))
    share = run.classes[channel, W_SHARE, class_of(run, last)]
    wait = min(wait, time_for(run.remaining[channel, last], share, denominator))
    run.channel[K_TIMER, channel] = run.m[NOW] + wait


@kernel
def set_rates(run: State, channel: int) -> None:
    """The share of each transfer of each class, over their common denominator."""
    table = run.classes[channel]
    if run.m[FIXED_RATES]:
        denominator = rates(table, run.m[CLASSES], run.m[WHOLE])
    else:
        denominator = max_min(table, run.m[CLASSES], run.m[CAP], run.m[CAP_OF])
    if run.m[DERATED]:
        pending = run.channel[K_PENDING, channel]
        i = min(pending, run.efficiency.shape[1] - 1)
        denominator = derate(table, run.m[CLASSES], denominator, run.efficiency[0, i], run.efficiency[1, i])
    run.channel[K_WHOLE, channel] = denominator


@kernel
def deliver_to_classes(run: State, channel: int, since: int) -> None:
    """Each transfer of a class gets as much; the one that came last of all also gets what the floors leave over."""
    now, last, denominator = run.m[NOW], run.channel[K_LAST, channel], run.channel[K_WHOLE, channel]
    elapsed, of_last, wanted, given = now - since, class_of(run, last), 0, 0
    for number in range(run.m[CLASSES]):
        many, share = run.classes[channel, W_MANY, number], run.classes[channel, W_SHARE, number]
        if many > 0:
            each = at_rate(elapsed, share, denominator)
            run.classes[channel, W_GOT, number] += each
            wanted += many * share
            given += each * (many - (1 if number == of_last else 0))
    over = min(at_rate(elapsed, wanted, denominator) - given, run.remaining[channel, last])
    run.remaining[channel, last] -= over
    if run.m[RECORDED]:
        cell = run.channel[K_FIRST, channel]
        while cell != last:
            record(run, channel, cell, since, at_rate(elapsed, run.classes[channel, W_SHARE, class_of(run, cell)], denominator))
            cell = run.at[channel, LATER, cell]
        record(run, channel, last, since, over)


@kernel
def end_of_class_transfers(run: State, channel: int) -> None:
    """All transfers that have got all of theirs depart."""
    run.channel[K_SERVED, channel] = NONE
    for number in range(run.m[CLASSES]):
        while least_of_class(run, channel, number) == 0:
            heap = run.class_heap[channel, number]
            cell = heap[2, 0]
            run.classes[channel, W_HEAP, number] = pop(heap, run.classes[channel, W_HEAP, number])
            leave_class(run, channel, cell)
    last = run.channel[K_LAST, channel]
    if run.remaining[channel, last] == 0:
        leave_class(run, channel, last)
        previous = run.channel[K_LAST, channel]
        if previous != NONE:  # from now on it is the last, and counted on its own
            run.remaining[channel, previous] -= run.classes[channel, W_GOT, class_of(run, previous)]


@kernel
def leave_class(run: State, channel: int, cell: int) -> None:
    """A transfer leaves the list of arrivals and departs."""
    earlier, later = run.at[channel, EARLIER, cell], run.at[channel, LATER, cell]
    if earlier == NONE:
        run.channel[K_FIRST, channel] = later
    else:
        run.at[channel, LATER, earlier] = later
    if later == NONE:
        run.channel[K_LAST, channel] = earlier
    else:
        run.at[channel, EARLIER, later] = earlier
    run.classes[channel, W_MANY, class_of(run, cell)] -= 1
    run.remaining[channel, cell] = NONE
    depart(run, channel, cell)
