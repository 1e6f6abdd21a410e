"""Critical paths of steps that follow one another, side by side: `sim.analysis.walk` on lanes, one for each step.

Where a step is released only when all before it have ended, nothing in it is held up by another, so its links can be found
alone. The links are those that the walk finds, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sim.analysis.columns import NONE
from sim.analysis.context import Rules
from sim.analysis.inputs import Inputs
from sim.analysis.links import Cause, Place, Releases
from sim.eventlog import EventLog

Rows = npt.NDArray[np.int64]
FAR = np.iinfo(np.int64).max


def apart(log: EventLog, rules: Rules) -> bool:
    """Whether each step is released when all before it have ended."""
    ended = np.maximum.accumulate(log.steps.end)
    return rules.dependency == "sampled" and bool((log.steps.released[1:] >= ended[:-1]).all())


@dataclass(slots=True)
class _Links:
    """Links as they are found: for each lane from its last to its first. `newest`: the number of the last one of each lane."""

    lanes: int
    columns: list[tuple[Rows, ...]] = field(default_factory=list)  # lane, row, begin, end, place, work
    causes: list[tuple[Rows, Cause]] = field(default_factory=list)
    count: int = 0
    newest: Rows = field(init=False)

    def __post_init__(self) -> None:
        self.newest = np.full(self.lanes, NONE, dtype=np.int64)

    def add(self, lane: Rows, row: Rows, begin: Rows, end: Rows, place: Place, work: Rows | None = None) -> None:
        self.columns.append((lane, row, begin, end, np.full(len(lane), place), np.zeros_like(row) if work is None else work))
        self.newest[lane] = self.count + np.arange(len(lane))
        self.count += len(lane)

    def because(self, lane: Rows, cause: Cause) -> None:
        self.causes.append((self.newest[lane], cause))

    def table(self) -> npt.NDArray[np.int64]:
        """(row, begin, end, place, cause, work) of all links [column, link], in order of lane and from first to last."""
        lane, row, begin, end, place, work = (np.concatenate(parts) for parts in zip(*self.columns, strict=True))
        cause = np.full(self.count, Cause.ITSELF, dtype=np.int64)
        for links, each in self.causes:
            cause[links] = each
        order = np.lexsort((-np.arange(self.count), lane))
        return np.stack([row, begin, end, place, cause, work])[:, order]


class Walks:
    """Walks back through the steps that lead to the last end, from the last end of each to its release.

    `_row` and `_time` say where each lane is.
    """

    def __init__(self, log: EventLog, rules: Rules) -> None:
        self._log, self._tasks, self._latency = log, log.tasks, rules.latency
        self._stream = rules.execution == "stream"
        self._inputs = Inputs(log, rules)
        g = log.grants
        self._by_task = np.argsort(g.task, kind="stable")
        self._first_grant = np.concatenate(([0], np.cumsum(np.bincount(g.task, minlength=len(log.tasks)))))
        self._by_end: Rows | None = None  # rows in order of end, and when: made if they are wanted
        self._ends = np.zeros(0, dtype=np.int64)
        steps = self._leading(Releases(log, rules.arrivals))
        self._released = int(log.steps.released[steps[0]])
        self._row = np.array([(rows := log.rows(step)).start + int(self._tasks.end[rows].argmax()) for step in steps])
        self._time = self._tasks.end[self._row]
        self._links = _Links(len(steps))

    def _leading(self, releases: Releases) -> list[int]:
        """Each step that the next one waited for, up to the last to end."""
        steps = []
        step: int | None = int(self._tasks.step[self._tasks.end.argmax()])
        while step is not None:
            steps.append(step)
            step = releases.before(step)
        return steps[::-1]

    def table(self) -> npt.NDArray[np.int64]:
        """(row, begin, end, place, cause, work) of all links [column, link], in order of time."""
        self._walk()
        lanes = np.arange(len(self._row))
        self._links.because(lanes[1:], Cause.STEP)
        self._links.because(lanes[:1], Cause.ARRIVAL if self._released else Cause.START)
        table = self._links.table()
        if not self._released:
            return table
        arrival = np.array([NONE, 0, self._released, Place.ARRIVAL, Cause.START, 0], dtype=np.int64)
        return np.column_stack([arrival, table])

    def _walk(self) -> None:
        lanes = np.arange(len(self._row))
        whole = np.ones(len(lanes), dtype=np.bool_)  # enters its task at the end, not at the end of the transfer
        while len(lanes):
            self._on_engine(lanes[whole])
            held = self._on_channel(lanes)
            rest = lanes[~held]
            going = self._start_of_task(rest)
            lanes = np.concatenate([lanes[held], rest[going]])
            whole = np.arange(len(lanes)) >= held.sum()

    def _add(self, lanes: Rows, place: Place, begin: Rows, work: Rows | None = None) -> None:
        some = begin < self._time[lanes]
        lanes, begin = lanes[some], begin[some]
        self._links.add(lanes, self._row[lanes], begin, self._time[lanes], place, None if work is None else work[some])
        self._time[lanes] = begin

    def _on_engine(self, lanes: Rows) -> None:
        t = self._tasks
        lanes = lanes[t.engine[self._row[lanes]] >= 0]
        row = self._row[lanes]
        if self._stream:
            computed = (t.compute[row] > 0) & (t.start[row] + t.compute[row] == t.end[row])
            self._add(lanes[computed], Place.ENGINE, t.start[row[computed]])
        else:
            self._add(lanes, Place.ENGINE, t.loaded[row])

    def _on_channel(self, lanes: Rows) -> npt.NDArray[np.bool_]:
        """Back to the issue of transfers; True for those that go on at whoever had the channel before."""
        issued = self._tasks.start[self._row[lanes]]
        held = np.zeros(len(lanes), dtype=np.bool_)
        late = np.flatnonzero(self._time[lanes] > issued)
        which, began, channel, work = self._service(lanes[late])
        which = late[which]
        self._add(lanes[which], Place.CHANNEL, began, work)
        waited = began > issued[which] + self._latency
        which, began, channel = which[waited], began[waited], channel[waited]
        before = self._served_until(began, channel, self._row[lanes[which]])
        found = before != NONE
        held[which[found]] = True
        self._links.because(lanes[which[found]], Cause.CHANNEL)
        self._row[lanes[which[found]]] = before[found]
        self._add(lanes[which[~found]], Place.WAIT, (issued[which] + self._latency)[~found])
        late = late[~held[late]]
        self._add(lanes[late], Place.LATENCY, issued[late])
        return held

    def _service(self, lanes: Rows) -> tuple[Rows, Rows, Rows, Rows]:
        """Of those of the lanes whose transfer was served by now: which, since when, on which channel, and its work there."""
        g, row = self._log.grants, self._row[lanes]
        lane, at = _ranges(self._first_grant[row], self._first_grant[row + 1])
        grant = self._by_task[at]
        now = g.end[grant] <= self._time[lanes][lane]
        lane, grant = lane[now], grant[now]
        which, first = np.unique(lane, return_index=True)
        if not len(which):
            return which, which, which, which
        group = np.repeat(np.arange(len(which)), np.diff(np.append(first, len(lane))))
        last = np.maximum.reduceat(g.end[grant], first)
        place = np.where(g.end[grant] == last[group], np.arange(len(grant)), len(grant))
        channel = g.channel[grant[np.minimum.reduceat(place, first)]].astype(np.int64)  # striped: the last part decides
        mine = g.channel[grant] == channel[group]
        began = np.minimum.reduceat(np.where(mine, g.start[grant], FAR), first)
        return which, began, channel, np.add.reduceat(np.where(mine, g.work[grant], 0), first)

    def _served_until(self, time: Rows, channel: Rows, row: Rows) -> Rows:
        """Whose service ended then: of a transfer that was complete if there is one, else of the first in program order."""
        g, t = self._log.grants, self._tasks
        lane, grant = _ranges(np.searchsorted(g.end, time, "left"), np.searchsorted(g.end, time, "right"))
        owner = g.task[grant].astype(np.int64)
        other = (g.channel[grant] == channel[lane]) & (owner != row[lane])
        lane, owner = lane[other], owner[other]
        complete = np.where(t.engine[owner] >= 0, t.loaded[owner], t.end[owner]) == time[lane]
        first, best = np.full((2, len(time)), FAR)
        np.minimum.at(first, lane, owner)
        np.minimum.at(best, lane[complete], owner[complete])
        found = np.where(best == FAR, first, best)
        return np.where(found == FAR, NONE, found)

    def _start_of_task(self, lanes: Rows) -> npt.NDArray[np.bool_]:
        """Who held up the start; False for those that began with their step."""
        t = self._tasks
        row = self._row[lanes]
        going = np.zeros(len(lanes), dtype=np.bool_)
        waited = np.flatnonzero(t.start[row] > t.ready[row])
        if len(waited):
            on_engine = t.engine[row[waited]] >= 0
            of_engine, of_dma = waited[on_engine], waited[~on_engine]
            for cause, held_up in ((Cause.ENGINE, of_engine), (Cause.POLICY, of_engine), (Cause.SRAM, of_dma)):
                some = held_up[~going[held_up]]
                before = self._freed(row[some], same_engine=cause is Cause.ENGINE)
                found = before != NONE
                self._go(lanes[some[found]], before[found], cause)
                going[some[found]] = True
            waited = waited[~going[waited]]
            self._add(lanes[waited], Place.WAIT, t.ready[row[waited]])
        rest = np.flatnonzero(~going)
        source, ended = self._inputs.last(row[rest])
        by_input = (source != NONE) & (ended == t.ready[row[rest]])
        self._go(lanes[rest[by_input]], source[by_input], Cause.INPUT)
        going[rest[by_input]] = True
        return going

    def _go(self, lanes: Rows, row: Rows, cause: Cause) -> None:
        self._links.because(lanes, cause)
        self._row[lanes] = row

    def _freed(self, row: Rows, *, same_engine: bool) -> Rows:
        """The first task on an engine (or on that of the task) that ended when it started."""
        t = self._tasks
        if self._by_end is None:
            self._by_end = np.argsort(t.end, kind="stable")
            self._ends = t.end[self._by_end]
        time = t.start[row]
        lane, at = _ranges(np.searchsorted(self._ends, time, "left"), np.searchsorted(self._ends, time, "right"))
        other = self._by_end[at]
        kept = t.engine[other] == t.engine[row[lane]] if same_engine else t.engine[other] >= 0
        found = np.full(len(row), FAR)
        np.minimum.at(found, lane[kept], other[kept])
        return np.where(found == FAR, NONE, found)


def _ranges(first: Rows, after: Rows) -> tuple[Rows, Rows]:
    """All numbers from each first until the one after the last: (which range, number)."""
    count = after - first
    which = np.repeat(np.arange(len(first)), count)
    return which, np.arange(len(which)) + (first - np.cumsum(count) + count)[which]
