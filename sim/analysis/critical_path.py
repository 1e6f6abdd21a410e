"""The critical path of a schedule as it ran: from the last end back to 0, without a gap.

Each link says what held up its start: an input, the KV cache of another token, the task that freed the engine, the transfer
that freed the channel, the scheduler, room in SRAM, the step before, or the arrival of the request. Unlike the chain of a
token (`breakdown`), it follows whoever held an engine or the channel; so shortening anything that is not on it changes
nothing, until another path is as long.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sim.analysis.context import Rules
from sim.analysis.inputs import NONE, Inputs
from sim.errors import SimulationError
from sim.eventlog import EventLog

Times = npt.NDArray[np.int64]


class Place(IntEnum):
    """Where the time of a link was spent."""

    ENGINE = 0
    CHANNEL = 1  # in service, alone or sharing
    LATENCY = 2
    WAIT = 3  # for something that left no trace in the log
    ARRIVAL = 4  # before the request came


class Cause(IntEnum):
    """Why a link did not begin earlier."""

    START = 0  # it began at 0
    INPUT = 1
    KV_ORDER = 2  # a store by an earlier token of the sequence
    ENGINE = 3  # the task before it on its engine
    CHANNEL = 4  # the transfer before it on the channel
    POLICY = 5  # a task elsewhere, which the scheduler waited for although an engine was idle
    SRAM = 6  # the task that made room
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
        """Picoseconds of each kind of task, the largest first; `arrival` stands for the time before a request came."""
        sums: dict[str, int] = {}
        span, graph_of = self.end - self.begin, log.steps.graph[log.tasks.step[self.row]]
        for number, graph in enumerate(log.graphs):
            here = (graph_of == number) & (self.row != NONE)
            kind = graph.kind[log.tasks.task[self.row[here]]]
            for each in np.unique(kind).tolist():
                name = graph.kinds[each]
                sums[name] = sums.get(name, 0) + int(span[here][kind == each].sum())
        if (self.row == NONE).any():
            sums["arrival"] = int(span[self.row == NONE].sum())
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

    def by_resource(self, log: EventLog) -> dict[str, int]:
        """Picoseconds of each resource: `engine n`, `channel` at full speed, `sharing` what it lost to that, and so on."""
        span = self.end - self.begin
        sums: dict[str, int] = {}
        for engine in range(log.engines):
            on = (self.place == Place.ENGINE) & (log.tasks.engine[self.row] == engine)
            sums[f"engine {engine}"] = int(span[on].sum())
        served = self.place == Place.CHANNEL
        sums["channel"] = int(self.work[served].sum())
        sums["sharing"] = int(span[served].sum()) - sums["channel"]
        for place in (Place.LATENCY, Place.WAIT, Place.ARRIVAL):
            sums[place.name.lower()] = int(span[self.place == place].sum())
        return {name: total for name, total in sums.items() if total}

    def by_cause(self) -> dict[str, int]:
        """How many links were held up by what."""
        counts = np.bincount(self.cause, minlength=len(Cause))
        return {cause.name.lower(): int(counts[cause]) for cause in Cause if counts[cause] and cause is not Cause.ITSELF}


def _equal(column: Sequence[int], value: int) -> range:
    """Where an ascending column has that value."""
    return range(bisect_left(column, value), bisect_right(column, value))


def kind_of(log: EventLog, row: int) -> str:
    """The kind of the task of a row."""
    graph = log.graphs[int(log.steps.graph[log.tasks.step[row]])]
    return graph.kind_of(int(log.tasks.task[row]))


def critical_path(log: EventLog, rules: Rules) -> CriticalPath:
    """Walk back from the last end. Raises SimulationError if the links leave a gap."""
    links = _Walk(log, rules).links() if len(log.tasks) else []
    table = np.array(links[::-1], dtype=np.int64).reshape(len(links), 6).T
    path = CriticalPath(
        row=table[0],
        begin=table[1],
        end=table[2],
        place=table[3].astype(np.int8),
        cause=table[4].astype(np.int8),
        work=table[5],
    )
    if len(path) and (path.begin[0] or path.end[-1] != log.makespan or (path.begin[1:] != path.end[:-1]).any()):
        raise SimulationError("invariant does not hold: the critical path covers the run without a gap")
    return path


class _Walk:
    """One walk back. `_row` and `_time` say where it is; all that happened until `_time` is still to be explained."""

    def __init__(self, log: EventLog, rules: Rules) -> None:
        self._log = log
        self._stream = rules.execution == "stream"
        self._latency = rules.latency
        self._arrivals = rules.arrivals
        self._inputs = Inputs(log, rules)
        t = log.tasks
        self._ready, self._start, self._loaded, self._end = t.ready.data, t.start.data, t.loaded.data, t.end.data
        self._engine, self._compute = t.engine.data, t.compute.data
        self._by_end: Sequence[int] | None = None  # rows in order of end, and when: made if they are wanted
        self._ends: Sequence[int] = ()
        # Memoryviews give plain integers, which is what makes single look-ups fast.
        g = log.grants
        by_task = np.argsort(g.task, kind="stable")
        first = np.concatenate(([0], np.cumsum(np.bincount(g.task, minlength=len(t)))))
        self._by_task, self._first_grant = by_task.data, first.data
        self._owner, self._channel = g.task.data, g.channel.data
        self._from, self._until, self._work = g.start.data, g.end.data, g.work.data
        self._row = int(t.end.argmax())
        self._time = self._end[self._row]
        self._links: list[tuple[int, int, int, int, int, int]] = []

    def links(self) -> list[tuple[int, int, int, int, int, int]]:
        """(row, begin, end, place, cause, work), the last first."""
        whole = True  # enter a task at its end, or at the end of its transfer
        while True:
            if whole:
                self._on_engine()
            step = self._on_channel() or self._start_of_task()
            if step is None:
                return self._links
            cause, self._row = step
            whole = cause is not Cause.CHANNEL
            self._because(cause)

    def _add(self, place: Place, begin: int, work: int = 0) -> None:
        """A link that ends where the walk is; until more is known, it follows on another phase of its own task."""
        if begin < self._time:
            self._links.append((self._row, begin, self._time, place, Cause.ITSELF, work))
            self._time = begin

    def _because(self, cause: Cause) -> None:
        row, begin, end, place, _, work = self._links[-1]
        self._links[-1] = (row, begin, end, place, cause, work)

    def _on_engine(self) -> None:
        row = self._row
        if self._engine[row] < 0:
            return
        start, loaded = self._start[row], self._loaded[row]
        if not self._stream:
            self._add(Place.ENGINE, loaded)
        elif self._compute[row] and start + self._compute[row] == self._end[row]:
            self._add(Place.ENGINE, start)

    def _on_channel(self) -> tuple[Cause, int] | None:
        """The transfer of the task, back to its issue; or who had the channel before, if it could not begin at once."""
        row, issued = self._row, self._start[self._row]
        if self._time <= issued:
            return None
        mine: Sequence[int] = self._by_task[self._first_grant[row] : self._first_grant[row + 1]]
        if len(mine) > 1:
            mine = [g for g in mine if self._until[g] <= self._time]
        if mine and self._until[mine[0]] <= self._time:
            channel = self._channel[max(mine, key=self._until.__getitem__)]  # striped over several, the last part decides
            if len(mine) > 1:
                mine = [g for g in mine if self._channel[g] == channel]
            began = min(map(self._from.__getitem__, mine))
            self._add(Place.CHANNEL, began, sum(map(self._work.__getitem__, mine)))
            if began > issued + self._latency:
                before = self._served_until(began, channel)
                if before is not None:
                    return Cause.CHANNEL, before
                self._add(Place.WAIT, issued + self._latency)
        self._add(Place.LATENCY, issued)
        return None

    def _served_until(self, time: int, channel: int) -> int | None:
        """Whose service ended then: of a transfer that was complete if there is one, else of the first in program order."""
        grants = _equal(self._until, time)
        rows = [r for g in grants if self._channel[g] == channel and (r := self._owner[g]) != self._row]
        if len(rows) == 1:
            return rows[0]
        complete = [r for r in rows if (self._loaded if self._engine[r] >= 0 else self._end)[r] == time]
        return min(complete or rows, default=None)

    def _start_of_task(self) -> tuple[Cause, int] | None:
        """Who held up the start: for want of an engine or of SRAM, of an input, of the release; None at time 0."""
        row = self._row
        if self._start[row] > self._ready[row]:
            freed = self._freed_engine(row) if self._engine[row] >= 0 else self._freed_sram(row)
            if freed is not None:
                return freed
            self._add(Place.WAIT, self._ready[row])
        source, ended = self._inputs.last_of(row)
        if source != NONE and ended == self._ready[row]:
            same = self._log.tasks.step[source] == self._log.tasks.step[row]
            return (Cause.INPUT if same else Cause.KV_ORDER), source
        return self._release(row)

    def _ended_at(self, time: int, keep: Callable[[int], bool]) -> int | None:
        if self._by_end is None:
            end = self._log.tasks.end
            by_end = np.argsort(end, kind="stable")
            self._by_end, self._ends = by_end.data, end[by_end].data
        return min((r for i in _equal(self._ends, time) if keep(r := self._by_end[i])), default=None)

    def _freed_engine(self, row: int) -> tuple[Cause, int] | None:
        engine, start = self._engine[row], self._start[row]
        before = self._ended_at(start, lambda r: self._engine[r] == engine)
        if before is not None:
            return Cause.ENGINE, before
        elsewhere = self._ended_at(start, lambda r: self._engine[r] >= 0)
        return None if elsewhere is None else (Cause.POLICY, elsewhere)

    def _freed_sram(self, row: int) -> tuple[Cause, int] | None:
        before = self._ended_at(self._start[row], lambda r: self._engine[r] >= 0)
        return None if before is None else (Cause.SRAM, before)

    def _release(self, row: int) -> tuple[Cause, int] | None:
        log = self._log
        step = int(log.tasks.step[row])
        released = int(log.steps.released[step])
        sequence = int(log.steps.sequence[step])
        before = np.flatnonzero(log.steps.end == released)
        own = before[log.steps.sequence[before] == sequence]
        if not len(own) and released == self._arrivals[sequence]:
            before = own
        if len(before):  # the token before it; else whichever made room for its sequence
            rows = log.rows(int((own if len(own) else before)[0]))
            return Cause.STEP, rows.start + int(log.tasks.end[rows].argmax())
        if released:
            self._because(Cause.ARRIVAL)
            self._row = NONE
            self._add(Place.ARRIVAL, 0)
        self._because(Cause.START)
        return None
