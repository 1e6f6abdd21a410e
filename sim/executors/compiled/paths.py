"""Links that are divided together, because transfers cross several of them at once: `sim.machine.arbiters.paths`."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.classes import class_of
from sim.executors.compiled.exclusive import urgency
from sim.executors.compiled.ports import kept, record_in, time_for
from sim.executors.compiled.state import (
    FORM, K_HEADS, K_HEAP, K_LATER, K_LINKS, K_LINK_COUNT, K_MOST, K_NEW, K_NUMBER, K_ONE, K_PART, K_PATHS, K_PREEMPTIVE,
    K_READS, K_RECORDS, K_SERVED, K_SINCE, K_TIMER, NEVER, NONE, NOW, PATH, P_LEFT, P_SERVED, SERVICES, SLOT, S_FORM, TASK,
    W_WEIGHT, Forms, Log, Memory,
)  # fmt: skip
from sim.machine.arbiters.paths import (
    AMOUNT, BEGIN, END, FLOW, LINK, NEXT, RATE, ROW, WEIGHT, WHOLE, divide_time, fill, first_on_all, places_of, weight_by_rest,
)  # fmt: skip


@kernel
def admit_to_paths(m: Memory, channel: int) -> None:
    """New transfers come to the end of the list."""
    heap = m[channel + K_HEAP]
    for i in range(m[channel + K_NEW]):
        cell = m[m[channel + K_HEADS] + i]
        m[cell + m[channel + K_PART] + P_SERVED] = 0
        m[m[channel + K_RECORDS] + m[heap] * FLOW + RATE] = 0
        m[heap + 1 + m[heap]] = cell
        m[heap] += 1


@kernel
def plan_paths(m: Memory, f: Forms, service: Log, channel: int) -> None:
    """Set the share of each transfer; if one is another, the service so far is an interval, and they hold from now on."""
    heap, flows = m[channel + K_HEAP], m[channel + K_RECORDS]
    count, links, number = m[heap], m[channel + K_LINKS], m[channel + K_LINK_COUNT]
    if count == 0:
        return
    largest = 0
    if m[channel + K_READS]:
        for i in range(count):
            largest = max(largest, m[m[heap + 1 + i] + m[channel + K_PART] + P_LEFT])
    places = places_of(largest)
    for i in range(count):
        describe_flow(m, f, channel, m[heap + 1 + i], flows + i * FLOW, places)
    if m[channel + K_ONE]:
        first_on_all(m, flows, count, links, number, m[channel + K_LATER])
    else:
        fill(m, flows, count, links, number, m[channel + K_MOST])
    same = m[channel + K_SERVED] != NONE and not m[channel + K_READS]
    for i in range(count):
        same = same and m[flows + i * FLOW + NEXT] == m[flows + i * FLOW + RATE]
    if not same:
        serve_paths(m, service, channel)


@kernel
def describe_flow(m: Memory, f: Forms, channel: int, cell: int, flow: int, places: int) -> None:
    """Write the path of a transfer, and its weight or urgency; one that is served goes on, unless it may be pre-empted."""
    path = m[channel + K_PATHS] + 2 * f[m[m[cell + SLOT] + S_FORM] + m[cell + TASK] * FORM + PATH]
    m[flow + BEGIN] = m[path]
    m[flow + END] = m[path + 1]
    if m[channel + K_READS]:
        m[flow + WEIGHT] = weight_by_rest(m[cell + m[channel + K_PART] + P_LEFT], places)
    elif not m[channel + K_ONE]:
        m[flow + WEIGHT] = m[class_of(m, f, channel, cell) + W_WEIGHT]
    elif m[cell + m[channel + K_PART] + P_SERVED] and not m[channel + K_PREEMPTIVE]:
        m[flow + WEIGHT] = -1
    else:
        m[flow + WEIGHT] = urgency(m, f, channel, cell)


@kernel
def serve_paths(m: Memory, service: Log, channel: int) -> None:
    """Serve by new shares, up to the first end of a transfer."""
    heap, flows, wait = m[channel + K_HEAP], m[channel + K_RECORDS], NEVER
    if m[channel + K_SERVED] != NONE and m[NOW] > m[channel + K_SINCE]:
        deliver_to_paths(m, service, channel, m[channel + K_SINCE])
    m[channel + K_SINCE] = m[NOW]
    m[channel + K_SERVED] = NONE
    for i in range(m[heap]):
        share, part = m[flows + i * FLOW + NEXT], m[heap + 1 + i] + m[channel + K_PART]
        m[flows + i * FLOW + RATE] = share
        m[part + P_SERVED] = int(share > 0)
        if share > 0:
            m[channel + K_SERVED] = m[heap + 1 + i]
            if m[part + P_LEFT] // share < NEVER // WHOLE - 1:  # else it does not end in any time that there is
                wait = min(wait, time_for(m[part + P_LEFT], share, WHOLE))
    m[channel + K_TIMER] = m[NOW] + wait if wait < NEVER else NEVER


@kernel
def deliver_to_paths(m: Memory, service: Log, channel: int, since: int) -> None:
    """Each transfer gets its share of the time on all links of its path; rows of intervals are in order of links."""
    heap, flows, links, first = m[channel + K_HEAP], m[channel + K_RECORDS], m[channel + K_LINKS], m[channel + K_NUMBER]
    divide_time(m, flows, m[heap], links, m[channel + K_LINK_COUNT], m[NOW] - since)
    number_rows(m, channel)
    for i in range(m[heap]):
        flow, cell = flows + i * FLOW, m[heap + 1 + i]
        if m[flow + RATE] == 0:
            continue
        part = cell + m[channel + K_PART]
        work = min(m[flow + AMOUNT], m[part + P_LEFT] - kept(m, channel))
        m[part + P_LEFT] -= work
        for j in range(m[flow + BEGIN], m[flow + END]):
            row = links + m[j] * LINK + ROW
            record_in(m, service, m[row], first + m[j], cell, since, work)
            m[row] += 1


@kernel
def number_rows(m: Memory, channel: int) -> None:
    """Write the ROW of each link at which service intervals of its transfers begin (a counting sort), and take them all."""
    heap, flows, links = m[channel + K_HEAP], m[channel + K_RECORDS], m[channel + K_LINKS]
    for link in range(m[channel + K_LINK_COUNT]):
        m[links + link * LINK + ROW] = 0
    for i in range(m[heap]):
        flow = flows + i * FLOW
        if m[flow + RATE] > 0:
            for j in range(m[flow + BEGIN], m[flow + END]):
                m[links + m[j] * LINK + ROW] += 1
    row = m[SERVICES]
    for link in range(m[channel + K_LINK_COUNT]):
        count = m[links + link * LINK + ROW]
        m[links + link * LINK + ROW] = row
        row += count
    m[SERVICES] = row
