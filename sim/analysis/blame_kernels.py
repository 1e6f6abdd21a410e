"""Kernels of `sim.analysis.blame`: causes of waits, summed by group of tasks."""

from __future__ import annotations

from sim.analysis.parts import Latency, alone, on_link, service
from sim.analysis.sram_waits import Causes, served
from sim.base.integers import ceil_div, mul_div, mul_div_up
from sim.base.kernel import kernel
from sim.log.columns import NONE, Ints, Services, Tasks

#: Rows of the sums of a group that holds engines: how many of its tasks do, and how long they have, but for `many` times the
#: clock: tasks that have ended count from start to end, those that have not count less the clock at their start.
MANY, HELD = 0, 1

#: Rows of waits for the channel: the task, when its transfer could begin and when all had arrived, the part of the
#: wait that no other transfer caused, the rest, what others received meanwhile, and the device for whose memory it was not
#: issued yet (-1 if it was): while SRAM was full and the channel served others; then from `ready` to `start`.
TASK, ISSUED, ARRIVED, WAITED_ALONE, REST, OTHERS, NOT_ISSUED = range(7)
WAIT_ROWS = 7


@kernel
def overlap_engines(
    t: Tasks, by_ready: Ints, by_taken: Ints, by_start: Ints, by_end: Ints, engines: int, group: Ints, shift: int, holds: Ints,
    waiting: Ints, seen: Ints, overlap: Ints,
) -> None:  # fmt: skip
    """Add to `overlap` [waiting, holding] the time in which tasks of each pair of groups overlap while all engines are busy.

    by_ready, by_taken: rows that waited, by when they were ready and by their start. by_start, by_end: rows that engines ran.
    group: [row]. Times are divided by 2^shift. holds: [MANY or HELD, group], waiting: [group], how many wait, seen: [waiting,
    holding], what the others had held when it was last looked at; all to work with, and 0.
    """
    waits, count = len(by_ready), len(by_start)
    clock = now = 0  # the clock runs while all engines are busy
    i = j = k = taken = busy = 0
    while k < count:
        time = t.end[by_end[k]]
        if j < count:
            time = min(time, t.start[by_start[j]])
        if i < waits:
            time = min(time, t.ready[by_ready[i]])
        if taken < waits:
            time = min(time, t.start[by_taken[taken]])
        if busy == engines:
            clock += (time >> shift) - (now >> shift)
        now = time
        while k < count and t.end[by_end[k]] == time:
            mine = group[by_end[k]]
            holds[MANY, mine] -= 1
            holds[HELD, mine] += clock
            busy -= 1
            k += 1
        while i < waits and t.ready[by_ready[i]] == time:
            change_waiting(holds, waiting, seen, overlap, group[by_ready[i]], clock, 1)
            i += 1
        while taken < i and t.start[by_taken[taken]] == time:
            change_waiting(holds, waiting, seen, overlap, group[by_taken[taken]], clock, -1)
            taken += 1
        while j < count and t.start[by_start[j]] == time:
            mine = group[by_start[j]]
            holds[MANY, mine] += 1
            holds[HELD, mine] -= clock
            busy += 1
            j += 1


@kernel
def change_waiting(holds: Ints, waiting: Ints, seen: Ints, overlap: Ints, delayed: int, clock: int, by: int) -> None:
    """Add what has been held since the last change for those of a group that waited; from now on they are more or fewer."""
    for cause in range(len(waiting)):
        held = holds[HELD, cause] + holds[MANY, cause] * clock
        overlap[delayed, cause] += waiting[delayed] * (held - seen[delayed, cause])
        seen[delayed, cause] = held
    waiting[delayed] += by


@kernel
def channel_waits(
    t: Tasks, latency: Latency, stripes: int, numerator: int, denominator: int, stream: bool,
    waited_for: Causes, device: Ints, waits: Ints, place: Ints,
) -> int:  # fmt: skip
    """Fill the first rows of `waits` [.., wait] for each transfer that waited; returns how many. place: [row], its wait or -1.

    One that also waited for SRAM has a second entry, of its time before it was issued.

    numerator / denominator: the largest share of a channel that one transfer can get. device: [row], empty if SRAM is
    unbounded.
    """
    count = 0
    for row in range(len(t.work)):
        place[row] = NONE
        if t.work[row] == 0:
            continue
        held, link, transfer = t.engine[row] >= 0, on_link(t, row), alone(t, row, latency, stripes)
        if not held and t.start[row] > t.ready[row]:
            by_channel = served(waited_for, device[row], t.ready[row], t.start[row])
            waits[TASK, count], waits[ISSUED, count], waits[ARRIVED, count] = row, t.ready[row], t.start[row]
            waits[WAITED_ALONE, count], waits[REST, count], waits[OTHERS, count] = 0, by_channel, 0
            waits[NOT_ISSUED, count] = device[row]
            count += 1
        first = t.launched[row]
        computed, moved = service(held, t.start[row], t.loaded[row], t.end[row], t.compute[row], transfer, first, stream)
        wait = t.end[row] - t.start[row] - computed - moved
        if wait <= 0:
            continue
        at_port = transfer
        if numerator != denominator and not link:
            at_port = latency[0] + mul_div_up(ceil_div(t.work[row], stripes), denominator, numerator)
        at_best = moved
        if stream:
            at_best += computed
            if held:
                at_port = max(first + at_port, t.compute[row])
        by_port = min(max(at_port - at_best, 0), wait)
        waits[TASK, count], waits[ISSUED, count] = row, t.start[row] + first + latency[link]
        waits[ARRIVED, count] = t.loaded[row] if held else t.end[row]
        waits[WAITED_ALONE, count], waits[REST, count], waits[OTHERS, count] = by_port, wait - by_port, 0
        waits[NOT_ISSUED, count] = NONE
        place[row] = count
        count += 1
    return count


@kernel
def channel_intervals(g: Services, channel: int, mine: Ints, first: Ints) -> int:
    """Fill `mine` with the services of a channel, and `first` [interval + 1] with where each interval begins there.

    Several services that are the same stretch of time are one interval. Returns how many intervals there are.
    """
    services = intervals = 0
    last = NONE
    for i in range(len(g.task)):
        if g.channel[i] == channel:
            if last == NONE or g.start[i] != g.start[last]:
                first[intervals] = services
                intervals += 1
            mine[services] = i
            services += 1
            last = i
    first[intervals] = services
    return intervals


@kernel
def locate(g: Services, mine: Ints, first: Ints, intervals: int, times: Ints, row: int, found: Ints) -> None:
    """Fill `found` [wait]: for times[row, wait] the last interval that has begun by then, or -1."""
    for wait in range(len(found)):
        time, low, high = times[row, wait], 0, intervals
        while low < high:
            half = (low + high) >> 1
            if g.start[mine[first[half]]] <= time:
                low = half + 1
            else:
                high = half
        found[wait] = low - 1


@kernel
def own_work(g: Services, mine: Ints, services: int, place: Ints, own: Ints) -> None:
    """Fill `own` [wait]: what each waiting transfer received on a channel."""
    for wait in range(len(own)):
        own[wait] = 0
    for i in range(services):
        wait = place[g.task[mine[i]]]
        if wait != NONE:
            own[wait] += g.work[mine[i]]


@kernel
def add_up(g: Services, mine: Ints, first: Ints, intervals: int, group: Ints, cause: int, before: Ints, span: Ints) -> None:
    """Fill `before` [interval + 1]: what a group of tasks (or with -1, all) had received on a channel when each began.

    span: the first and the last interval in which it received something.
    """
    total = 0
    span[0], span[1] = intervals, NONE
    for k in range(intervals):
        before[k] = total
        for i in range(first[k], first[k + 1]):
            if cause == NONE or group[g.task[mine[i]]] == cause:
                total += g.work[mine[i]]
        if total > before[k]:
            span[0], span[1] = min(span[0], k), k
    before[intervals] = total


@kernel
def received_by(g: Services, mine: Ints, first: Ints, before: Ints, interval: int, time: int) -> int:
    """Work received by a time in or after an interval, before the next one; rounded down."""
    if interval < 0:
        return 0
    one = mine[first[interval]]
    begin, end = g.start[one], g.end[one]
    if time >= end:
        return int(before[interval + 1])
    return int(before[interval] + mul_div(before[interval + 1] - before[interval], time - begin, end - begin))


@kernel
def receive(
    g: Services, mine: Ints, first: Ints, before: Ints, waits: Ints, own: Ints, since: Ints, until: Ints, group: Ints,
    cause: int, span: Ints, shift: int, memory: int, weights: Ints,
) -> None:  # fmt: skip
    """Add to each wait what others received meanwhile; or to `weights` [waiting, cause] the share of the group `cause`.

    memory: the device to whose memory the channel leads, -1 if it is a link.
    own: [wait], what the transfer itself received on this channel. since, until: [wait], intervals of ISSUED and ARRIVED.
    """
    for wait in range(len(own)):
        not_issued = waits[NOT_ISSUED, wait]
        elsewhere = own[wait] == 0 if not_issued == NONE else not_issued != memory  # on another channel
        if elsewhere or until[wait] < span[0] or since[wait] > span[1]:
            continue
        received = received_by(g, mine, first, before, until[wait], waits[ARRIVED, wait])
        received -= received_by(g, mine, first, before, since[wait], waits[ISSUED, wait])
        if cause == NONE:
            waits[OTHERS, wait] += received - own[wait]
            continue
        delayed = group[waits[TASK, wait]]
        if delayed == cause:
            received -= own[wait]
        if received > 0 and waits[REST, wait] > 0:
            weights[delayed, cause] += mul_div_up(received, waits[REST, wait] >> shift, waits[OTHERS, wait])


@kernel
def receive_on(
    g: Services, channel: int, mine: Ints, first: Ints, before: Ints, span: Ints, place: Ints, waits: Ints, own: Ints,
    since: Ints, until: Ints, group: Ints, groups: int, shift: int, memory: int, weights: Ints,
) -> None:  # fmt: skip
    """Add what others received on a channel during each wait to `weights` [waiting, cause]; without groups, to OTHERS.

    memory: the device to whose memory it leads, -1 if it is a link.
    """
    intervals = channel_intervals(g, channel, mine, first)
    own_work(g, mine, first[intervals], place, own)
    locate(g, mine, first, intervals, waits, ISSUED, since)
    locate(g, mine, first, intervals, waits, ARRIVED, until)
    for cause in range(NONE if groups == 0 else 0, groups):
        add_up(g, mine, first, intervals, group, cause, before, span)
        if before[intervals] > 0:
            receive(g, mine, first, before, waits, own, since, until, group, cause, span, shift, memory, weights)
