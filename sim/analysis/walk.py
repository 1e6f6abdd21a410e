"""The walk along a critical path, from the last end of a run back to 0: one kernel for any schedule.

`state` says where it is: a row, and a time; all that happened until then is still to be explained. It goes from a task on its
engine to its transfer, from there to whoever had the channel before, or to its start, and from there to whoever held it up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.analysis.context import Rules
from sim.analysis.links import Cause, Place
from sim.analysis.longest import arrivals_of
from sim.analysis.sorting import bisect_left
from sim.base.kernel import kernel, launch
from sim.log import derived
from sim.log.columns import (
    NONE,
    Forms,
    Ints,
    Services,
    Steps,
    Tasks,
    is_large,
    services_of,
    steps_of,
    tasks_of,
    viewed,
)
from sim.log.inputs import last_input, last_of_step
from sim.log.tables import EventLog

#: Columns of a link. work: on the channel, its time at full speed.
LINK_ROW, LINK_BEGIN, LINK_END, LINK_PLACE, LINK_CAUSE, LINK_WORK = range(6)
LINK_COLUMNS = 6

#: Items of the state of a walk. WHOLE: 1 if it enters a task at its end, 0 if at the end of its transfer.
ROW, TIME, WHOLE, LINKS = range(4)

MOST_AT_ONCE = 8  # links that one visit of a task adds, at most

ON_ENGINE, ON_CHANNEL, IN_LATENCY, WAITING, BEFORE_ARRIVAL = (
    int(place) for place in (Place.ENGINE, Place.CHANNEL, Place.LATENCY, Place.WAIT, Place.ARRIVAL)
)
AT_START, BY_INPUT, BY_KV_ORDER, BY_ENGINE, BY_CHANNEL, BY_POLICY, BY_SRAM, BY_STEP, BY_ARRIVAL, BY_ITSELF = (
    int(cause) for cause in Cause
)


class Index(NamedTuple):
    """What the walk looks up, int64.

    step_of: [row]. services_first: [row + 1] into `services`, those of each row in order of end. held, held_end: the
    rows that engines ran in order of their ends, and when those were; steps, steps_end: the same of steps. arrival: [sequence],
    ps. stored: see `sim.log.inputs.last_stores`.
    """

    step_of: Ints
    services_first: Ints
    services: Ints
    held: Ints
    held_end: Ints
    steps: Ints
    steps_end: Ints
    arrival: Ints
    stored: Ints


@kernel
def walk(
    t: Tasks, s: Steps, f: Forms, g: Services, index: Index, latency: int, stream: bool, links: Ints, state: Ints
) -> bool:  # fmt: skip
    """Walk until the start of the run, and return True; or False if `links` is full, to be called again with a longer one."""
    while state[LINKS] + MOST_AT_ONCE <= len(links):
        if state[WHOLE] == 1:
            leave_engine(t, stream, links, state)
        cause = leave_channel(t, g, index, latency, links, state)
        if cause == NONE:
            cause = leave_start(t, s, f, index, links, state)
        if cause == NONE:
            return True
        state[WHOLE] = 0 if cause == BY_CHANNEL else 1
        links[state[LINKS] - 1, LINK_CAUSE] = cause
    return False


@kernel
def add_link(links: Ints, state: Ints, place: int, begin: int, work: int) -> None:
    """Add a link that ends where the walk is; until more is known, it follows on another phase of its own task."""
    if begin < state[TIME]:
        i = state[LINKS]
        links[i, LINK_ROW], links[i, LINK_BEGIN], links[i, LINK_END] = state[ROW], begin, state[TIME]
        links[i, LINK_PLACE], links[i, LINK_CAUSE], links[i, LINK_WORK] = place, BY_ITSELF, work
        state[TIME] = begin
        state[LINKS] = i + 1


@kernel
def leave_engine(t: Tasks, stream: bool, links: Ints, state: Ints) -> None:
    """From the end of a task back to the end of its transfer; with loads that overlap, to the start if compute took as long."""
    row = state[ROW]
    if t.engine[row] < 0:
        return
    if not stream:
        add_link(links, state, ON_ENGINE, t.loaded[row], 0)
    elif t.compute[row] > 0 and t.start[row] + t.compute[row] == t.end[row]:
        add_link(links, state, ON_ENGINE, t.start[row], 0)


@kernel
def leave_channel(t: Tasks, g: Services, index: Index, latency: int, links: Ints, state: Ints) -> int:
    """From the end of a transfer back to its issue; or to whoever had the channel before, if it could not begin at once."""
    row, time = state[ROW], state[TIME]
    issued = t.start[row]
    if time <= issued:
        return NONE
    first, after = index.services_first[row], index.services_first[row + 1]
    last = NONE  # spread over several channels, the part that ends last decides
    for i in range(first, after):
        service = index.services[i]
        if g.end[service] <= time and (last == NONE or g.end[service] > g.end[last]):
            last = service
    if last != NONE:
        channel, began, work = g.channel[last], g.start[last], 0
        for i in range(first, after):
            service = index.services[i]
            if g.end[service] <= time and g.channel[service] == channel:
                began = min(began, g.start[service])
                work += g.work[service]
        add_link(links, state, ON_CHANNEL, began, work)
        if began > issued + latency:
            before = served_until(t, g, began, channel, row)
            if before != NONE:
                state[ROW] = before
                return BY_CHANNEL
            add_link(links, state, WAITING, issued + latency, 0)
    add_link(links, state, IN_LATENCY, issued, 0)
    return NONE


@kernel
def served_until(t: Tasks, g: Services, time: int, channel: int, row: int) -> int:
    """Another row whose service ended then: of a transfer that was complete if there is one, else the first; or -1."""
    found = complete = NONE
    i = bisect_left(g.end, time)
    while i < len(g.end) and g.end[i] == time:
        other = g.task[i]
        if g.channel[i] == channel and other != row:
            arrived = t.loaded[other] if t.engine[other] >= 0 else t.end[other]
            if arrived == time:
                complete = other if complete == NONE else min(complete, other)
            found = other if found == NONE else min(found, other)
        i += 1
    return found if complete == NONE else complete


@kernel
def leave_start(t: Tasks, s: Steps, f: Forms, index: Index, links: Ints, state: Ints) -> int:
    """From the start of a task to what held it up: an engine, SRAM, an input, or the release of its step; -1 at time 0."""
    row = state[ROW]
    step = index.step_of[row]
    if t.start[row] > t.ready[row]:
        cause = freed(t, index, row, state)
        if cause != NONE:
            return cause
        add_link(links, state, WAITING, t.ready[row], 0)
    first = s.first[step]
    source = last_input(f.first[s.graph[step]] + row - first, first, step, t.end, f, index.stored)
    if source != NONE and t.end[source] == t.ready[row]:
        state[ROW] = source
        return BY_INPUT if index.step_of[source] == step else BY_KV_ORDER
    return leave_step(t, s, f, index, step, links, state)


@kernel
def freed(t: Tasks, index: Index, row: int, state: Ints) -> int:
    """Go to the task that ended when this one started, and return what it made room for; -1 if there is none."""
    now, engine = t.start[row], t.engine[row]
    first = bisect_left(index.held_end, now)
    if first == len(index.held_end) or index.held_end[first] != now:
        return NONE
    i = first
    while engine >= 0 and i < len(index.held_end) and index.held_end[i] == now:
        if t.engine[index.held[i]] == engine:
            state[ROW] = index.held[i]
            return BY_ENGINE
        i += 1
    state[ROW] = index.held[first]
    return BY_POLICY if engine >= 0 else BY_SRAM


@kernel
def leave_step(t: Tasks, s: Steps, f: Forms, index: Index, step: int, links: Ints, state: Ints) -> int:
    """From the release of a step to the last task of the step that it waited for; else to the arrival, or to 0: -1."""
    before = step_before(s, index, step)
    if before != NONE:
        first, graph = s.first[before], s.graph[before]
        state[ROW] = last_of_step(t.end, first, first + f.first[graph + 1] - f.first[graph])
        return BY_STEP
    if s.released[step] > 0:
        links[state[LINKS] - 1, LINK_CAUSE] = BY_ARRIVAL
        state[ROW] = NONE
        add_link(links, state, BEFORE_ARRIVAL, 0, 0)
    links[state[LINKS] - 1, LINK_CAUSE] = AT_START
    return NONE


@kernel
def step_before(s: Steps, index: Index, step: int) -> int:
    """The token before it, else whichever step made room for its sequence; -1 if it began with the arrival or at 0."""
    released, sequence = s.released[step], s.sequence[step]
    first = bisect_left(index.steps_end, released)
    i = first
    while i < len(index.steps_end) and index.steps_end[i] == released:
        if s.sequence[index.steps[i]] == sequence:
            return int(index.steps[i])
        i += 1
    if i == first or released == index.arrival[sequence]:
        return NONE
    return int(index.steps[first])


def links_of(log: EventLog, rules: Rules) -> npt.NDArray[np.int64]:
    """All links of the critical path [column, link], in order of time. The log has tasks."""
    compiled = is_large(log)
    t, s, g = tasks_of(log), steps_of(log), services_of(log)
    tasks, steps, forms, services = (viewed(each, compiled=compiled) for each in (t, s, derived.forms(log).columns, g))
    index = viewed(
        Index(
            log.tasks.step.astype(np.int64), *_by_task(log, g), *_by_end(t),
            *_in_order(log.steps.end), arrivals_of(log, rules), derived.last_stores(log),
        ),
        compiled=compiled,
    )  # fmt: skip
    last = int(t.end.argmax())
    state = np.array([last, t.end[last], 1, 0], dtype=np.int64)
    links = np.empty((1024, LINK_COLUMNS), dtype=np.int64)
    go, stream = launch(walk, compiled=compiled), rules.execution == "stream"
    while not go(tasks, steps, forms, services, index, rules.latency, stream, links, state):
        links = np.concatenate([links, np.empty_like(links)])
    return np.ascontiguousarray(links[: state[LINKS]][::-1].T)


def _by_task(log: EventLog, g: Services) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`services_first` and `services` of the index."""
    counts = np.bincount(g.task, minlength=len(log.tasks))
    return np.concatenate([[0], np.cumsum(counts)]), np.argsort(g.task, kind="stable")


def _by_end(t: Tasks) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`held` and `held_end` of the index."""
    held = np.flatnonzero(t.engine >= 0)
    order, end = _in_order(t.end[held])
    return held[order], end


def _in_order(column: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The order of a column, equal items as they are, and the column in that order."""
    order = np.argsort(column, kind="stable")
    return order, column[order]
