"""The critical path of a schedule as it ran: from the last end back to 0, without a gap.

Each link says what held up its start: an input, the KV cache of another token, the task that freed the engine, the transfer
that freed the channel, the scheduler, the task that freed space in SRAM, the step before, or the arrival of the request. Unlike
the chain of a token (`breakdown`), the path follows the task that held an engine and the transfer that held the channel. So
shortening anything that is not on it changes nothing, until another path is as long.

One kernel walks back through any schedule. Its `state` is a row and a time; all that happened until then is still to be
explained. It goes from a task on its engine to its transfer, from there to the transfer that the channel served before or to
the start of the task, and from there to the task that held it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.analysis.longest_path import arrivals_of
from sim.analysis.parts import Latency, on_link
from sim.analysis.rules import Rules
from sim.analysis.sorting import bisect_left
from sim.analysis.sums import sum_by
from sim.base.errors import SimulationError
from sim.base.kernel import kernel, launch
from sim.log import derived
from sim.log.columns import NONE, Forms, Ints, Services, Steps, Tasks, is_large, services_of, steps_of, tasks_of, viewed
from sim.log.inputs import last_input, last_of_step
from sim.log.tables import EventLog
from sim.machine.machine import PATHS
from sim.mapping.operands import operands_of

Times = npt.NDArray[np.int64]


class Place(IntEnum):
    """Where the time of a link was spent."""

    ENGINE = 0
    CHANNEL = 1  # in service, alone or sharing
    LATENCY = 2
    WAIT = 3  # for something that left no trace in the log
    ARRIVAL = 4  # before the request came
    HOST = 5  # the host prepared the step


class Cause(IntEnum):
    """Why a link did not begin earlier."""

    START = 0  # it began at 0
    INPUT = 1
    KV_ORDER = 2  # a store by an earlier token of the sequence
    ENGINE = 3  # the task before it on its engine
    CHANNEL = 4  # the transfer before it on the channel
    POLICY = 5  # a task elsewhere, which the scheduler waited for although an engine was idle
    SRAM = 6  # the task that freed space
    STEP = 7  # the step before
    ARRIVAL = 8  # of the request
    ITSELF = 9  # the same task, one phase earlier


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPath:
    """Links in order of time; each begins where the one before ends, the first at 0, and the last ends the run.

    row: of the task table, -1 before an arrival. begin, end: ps. place: see `Place`. cause: see `Cause`.
    work: of a link on the channel, its time at full speed; the rest of it was lost to sharing and to the port.
    """

    row: Times
    begin: Times
    end: Times
    place: npt.NDArray[np.int8]
    cause: npt.NDArray[np.int8]
    work: Times

    def __len__(self) -> int:
        return len(self.row)

    @property
    def rows(self) -> Times:
        """The tasks on it in order of time, each once."""
        tasks = self.row[self.row != NONE]
        return np.asarray(tasks[np.append(True, tasks[1:] != tasks[:-1])[: len(tasks)]])

    def by_kind(self, log: EventLog) -> dict[str, int]:
        """Picoseconds of each kind of task, the largest first; of `host`, and of `arrival`, the time before a request came."""
        host = self.place == Place.HOST
        forms, span, of_task = derived.forms(log), self.end - self.begin, (self.row != NONE) & ~host
        kind = derived.kind(log)[self.row[of_task]]
        sums = dict.fromkeys((forms.kinds[each] for each in np.unique(kind).tolist()), 0)
        for number, total in enumerate(sum_by(span[of_task], kind, len(forms.kinds)).tolist()):
            if forms.kinds[number] in sums:
                sums[forms.kinds[number]] = total
        for name, links in (("arrival", ~of_task & ~host), ("host", host)):
            if links.any():
                sums[name] = int(span[links].sum())
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

    def by_resource(self, log: EventLog, rules: Rules) -> dict[str, int]:
        """Picoseconds of each resource: `engine n`, and at full speed those of `Machine.path_names`,
        what transfers lost to that, and so on.

        Lost to `port` or `efficiency` is what a transfer of the memory loses that is alone, to `sharing` the rest.
        """
        span = self.end - self.begin
        on = self.place == Place.ENGINE
        of_engine = sum_by(span[on], log.tasks.engine[self.row[on]], log.engines).tolist()
        sums = dict(zip(log.machine.engine_names, of_engine, strict=True))
        served, links = self.place == Place.CHANNEL, tasks_of(log).link
        path = links[self.row[served]] if len(links) else np.zeros(int(served.sum()), dtype=np.int8)
        sums |= zip(log.machine.path_names, sum_by(self.work[served], path, len(PATHS)).tolist(), strict=True)
        lost, best = (span - self.work)[served], rules.fastest
        alone = -(-self.work[served] * (best.denominator - best.numerator) // best.numerator)
        sums[rules.limit] = int(np.minimum(lost, alone)[path == 0].sum())
        sums["sharing"] = int(lost.sum()) - sums[rules.limit]
        for place in (Place.LATENCY, Place.WAIT, Place.ARRIVAL, Place.HOST):
            sums[place.name.lower()] = int(span[self.place == place].sum())
        return {name: total for name, total in sums.items() if total}

    def by_cause(self) -> dict[str, int]:
        """How many links were held up by what."""
        counts = np.bincount(self.cause, minlength=len(Cause))
        return {cause.name.lower(): int(counts[cause]) for cause in Cause if counts[cause] and cause is not Cause.ITSELF}


def critical_path(log: EventLog, rules: Rules) -> CriticalPath:
    """Walk back from the last end. Raises SimulationError if the links leave a gap."""
    if not len(log.tasks):
        row, begin, end, place, cause, work = np.zeros((6, 0), dtype=np.int64)
    else:
        row, begin, end, place, cause, work = links_of(log, rules)
    path = CriticalPath(
        row=row, begin=begin, end=end, place=place.astype(np.int8), cause=cause.astype(np.int8), work=work,
    )  # fmt: skip
    if len(path) and (path.begin[0] or path.end[-1] != log.makespan or (path.begin[1:] != path.end[:-1]).any()):
        raise SimulationError("invariant does not hold: the critical path covers the run without a gap")
    return path


# The walk

#: Columns of a link. work: on the channel, its time at full speed.
LINK_ROW, LINK_BEGIN, LINK_END, LINK_PLACE, LINK_CAUSE, LINK_WORK = range(6)
LINK_COLUMNS = 6

#: Items of the state of a walk. WHOLE: 1 if it enters a task at its end, 0 if at the end of its transfer.
ROW, TIME, WHOLE, LINKS = range(4)

MOST_AT_ONCE = 9  # links that one visit of a task adds, at most

ON_ENGINE, ON_CHANNEL, IN_LATENCY, WAITING, BEFORE_ARRIVAL, ON_HOST = (
    int(place) for place in (Place.ENGINE, Place.CHANNEL, Place.LATENCY, Place.WAIT, Place.ARRIVAL, Place.HOST)
)
AT_START, BY_INPUT, BY_KV_ORDER, BY_ENGINE, BY_CHANNEL, BY_POLICY, BY_SRAM, BY_STEP, BY_ARRIVAL, BY_ITSELF = (
    int(cause) for cause in Cause
)


class Index(NamedTuple):
    """Tables for lookups, int64.

    step_of: [row]. services_first: [row + 1] into `services`, the service intervals of each row in order of end. held,
    held_end: rows that engines ran, or that used operands in bounded SRAM, in order of end, and these ends in ps; steps,
    steps_end: the same for steps. device: [row], empty where there is one, or SRAM is unbounded. arrival: [sequence], ps.
    stored: [step, layer] of `sim.log.inputs.last_stores`.
    """

    step_of: Ints
    services_first: Ints
    services: Ints
    held: Ints
    held_end: Ints
    steps: Ints
    steps_end: Ints
    device: Ints
    arrival: Ints
    stored: Ints


@kernel
def walk(
    t: Tasks, s: Steps, f: Forms, g: Services, index: Index, latency: Latency, stream: bool, for_sram: bool,
    links: Ints, state: Ints,
) -> bool:  # fmt: skip
    """Walk until the start of the run, and return True; or False if `links` is full, to be called again with a longer one."""
    while state[LINKS] + MOST_AT_ONCE <= len(links):
        if state[WHOLE] == 1:
            leave_engine(t, stream, links, state)
        cause = leave_channel(t, g, index, latency, links, state)
        if cause == NONE:
            cause = leave_start(t, s, f, index, for_sram, links, state)
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
def leave_channel(t: Tasks, g: Services, index: Index, latency: Latency, links: Ints, state: Ints) -> int:
    """From the end of a transfer back to the start; if it could not begin when issued, to the transfer served before it."""
    row, time = state[ROW], state[TIME]
    issued = t.start[row] + t.launched[row]
    if time <= t.start[row]:
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
        if began > issued + latency[on_link(t, row)]:
            before = served_until(t, g, began, channel, row)
            for i in range(first, after):  # one link of its path may have been free, and another not
                if before == NONE and on_link(t, row) and g.start[index.services[i]] == began:
                    before = served_until(t, g, began, g.channel[index.services[i]], row)
            if before != NONE:
                state[ROW] = before
                return BY_CHANNEL
            add_link(links, state, WAITING, issued + latency[on_link(t, row)], 0)
    add_link(links, state, IN_LATENCY, issued, 0)
    add_link(links, state, ON_ENGINE, t.start[row], 0)
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
def leave_start(t: Tasks, s: Steps, f: Forms, index: Index, for_sram: bool, links: Ints, state: Ints) -> int:
    """From the start of a task to what held it up: an engine, SRAM, an input, or the release of its step; -1 at time 0."""
    row = state[ROW]
    step = index.step_of[row]
    if t.start[row] > t.ready[row]:
        cause = freed(t, index, row, for_sram, state)
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
def freed(t: Tasks, index: Index, row: int, for_sram: bool, state: Ints) -> int:
    """Go to the task that ended when this one started, and return which resource that freed; -1 if there is none."""
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
    if engine >= 0 and not (for_sram and t.work[row] > 0):
        return BY_POLICY
    i = first
    while len(index.device) > 0 and i < len(index.held_end) and index.held_end[i] == now:
        if index.device[index.held[i]] == index.device[row]:  # else it waited for what comes before it on another device
            state[ROW] = index.held[i]
            return BY_SRAM
        i += 1
    return BY_SRAM


@kernel
def leave_step(t: Tasks, s: Steps, f: Forms, index: Index, step: int, links: Ints, state: Ints) -> int:
    """From the release of a step to the last task of the step that it waited for; else to the arrival, or to 0: -1."""
    add_link(links, state, ON_HOST, s.released[step], 0)
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
    """Step of the token before, else a step whose end let the sequence in; -1 if the step began with the arrival or at 0."""
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


def links_of(log: EventLog, rules: Rules) -> Times:
    """All links of the critical path [column, link], in order of time. The log has tasks."""
    compiled = is_large(log)
    t, s, g = tasks_of(log), steps_of(log), services_of(log)
    tasks, steps, forms, services = (viewed(each, compiled=compiled) for each in (t, s, derived.forms(log).columns, g))
    index = viewed(
        Index(
            log.tasks.step.astype(np.int64), *_by_task(log, g), *_by_end(t, log, rules),
            *_in_order(log.steps.end), _devices(log, rules), arrivals_of(log, rules), derived.last_stores(log),
        ),
        compiled=compiled,
    )  # fmt: skip
    last = int(t.end.argmax())
    state = np.array([last, t.end[last], 1, 0], dtype=np.int64)
    links = np.empty((1024, LINK_COLUMNS), dtype=np.int64)
    go, stream = launch(walk, compiled=compiled), rules.execution == "stream"
    while not go(tasks, steps, forms, services, index, rules.latencies, stream, rules.waits_for_sram, links, state):
        links = np.concatenate([links, np.empty_like(links)])
    return np.ascontiguousarray(links[: state[LINKS]][::-1].T)


def _devices(log: EventLog, rules: Rules) -> Times:
    """`device` of the index."""
    several = rules.sram is not None and len(log.machine.devices) > 1
    return derived.device(log).astype(np.int64) if several else np.zeros(0, dtype=np.int64)


def _by_task(log: EventLog, g: Services) -> tuple[Times, Times]:
    """`services_first` and `services` of the index."""
    counts = np.bincount(g.task, minlength=len(log.tasks))
    return np.concatenate([[0], np.cumsum(counts)]), np.argsort(g.task, kind="stable")


def _by_end(t: Tasks, log: EventLog, rules: Rules) -> tuple[Times, Times]:
    """`held` and `held_end` of the index."""
    frees = t.engine >= 0
    if rules.sram is not None:
        frees |= np.concatenate([np.diff(operands_of(graph).used_start) > 0 for graph in log.graphs])[derived.form(log)]
    held = np.flatnonzero(frees)
    order, end = _in_order(t.end[held])
    return held[order], end


def _in_order(column: Times) -> tuple[Times, Times]:
    """Stable order of a column, and the column in that order."""
    order = np.argsort(column, kind="stable")
    return order, column[order]
