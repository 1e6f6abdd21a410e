"""The critical path of any schedule, link by link."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sim.analysis.columns import NONE
from sim.analysis.context import Rules
from sim.analysis.inputs import Inputs
from sim.analysis.links import Cause, Place, Releases, equal
from sim.eventlog import EventLog


class Walk:
    """One walk back. `_row` and `_time` say where it is; all that happened until `_time` is still to be explained."""

    def __init__(self, log: EventLog, rules: Rules) -> None:
        self._log = log
        self._stream = rules.execution == "stream"
        self._latency = rules.latency
        self._releases = Releases(log, rules.arrivals)
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

    def table(self) -> npt.NDArray[np.int64]:
        """(row, begin, end, place, cause, work) of all links [column, link], in order of time."""
        self._walk()
        return np.array(self._links[::-1], dtype=np.int64).reshape(len(self._links), 6).T

    def _walk(self) -> None:
        whole = True  # enter a task at its end, or at the end of its transfer
        while True:
            if whole:
                self._on_engine()
            step = self._on_channel() or self._start_of_task()
            if step is None:
                return
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
        grants = equal(self._until, time)
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
        return min((r for i in equal(self._ends, time) if keep(r := self._by_end[i])), default=None)

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
        before = self._releases.before(step)
        if before is not None:
            rows = log.rows(before)
            return Cause.STEP, rows.start + int(log.tasks.end[rows].argmax())
        if log.steps.released[step]:
            self._because(Cause.ARRIVAL)
            self._row = NONE
            self._add(Place.ARRIVAL, 0)
        self._because(Cause.START)
        return None
