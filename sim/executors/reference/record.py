"""What a simulation leaves behind: the rows of steps that have ended, in memory or in a file, until they are an event log.

Service intervals are numbered as they end, and those that end at one time in order of their channels. A log has steps and
tasks in program order, whatever the order in which they ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sim.eventlog import EventLog, GrantTable, MemberTable, StepTable, TaskTable
from sim.executors.reference.step import Program, Step
from sim.executors.setup import Progress, Setup
from sim.graph import IntArray
from sim.serving import Batch
from sim.tasks import TaskGraph

ROWS = 1 << 18  # of tasks in a part of a log, about

_TASKS = ("engine", "ready", "start", "loaded", "end", "compute", "work")
_STEPS = ("sequence", "token", "context", "released", "end")
_GRANTS = ("task", "channel", "start", "end", "work")
_NARROW = {"engine": np.int16, "channel": np.int16, "sequence": np.int32, "token": np.int32, "graph": np.int32}


class Rows(NamedTuple):
    """The rows of a step. tasks: [task, column]. grants: [service interval, column], of which the first is its number in the
    whole run, and the second the task's number in the step.
    """

    tasks: IntArray
    grants: IntArray


class Shelf(Protocol):
    """Where the rows of steps are kept until all have ended."""

    def put(self, rows: Rows) -> None: ...
    def get(self, number: int) -> Rows: ...


class Memory:
    """Rows of steps, in memory."""

    def __init__(self) -> None:
        self.rows: list[Rows] = []

    def put(self, rows: Rows) -> None:
        self.rows.append(rows)

    def get(self, number: int) -> Rows:
        return self.rows[number]


class Disk:
    """Rows of steps, in a file: memory does not grow with the tasks of steps that have ended."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.places: list[tuple[int, int, int]] = []  # where the rows of a step begin, tasks, service intervals

    def put(self, rows: Rows) -> None:
        self.places.append((self.file.tell(), len(rows.tasks), len(rows.grants)))
        for part in rows:
            self.file.write(part.tobytes())

    def get(self, number: int) -> Rows:
        place, tasks, grants = self.places[number]
        self.file.seek(place)
        return Rows(self._read(tasks, len(_TASKS)), self._read(grants, 1 + len(_GRANTS)))

    def _read(self, rows: int, columns: int) -> IntArray:
        return np.frombuffer(self.file.read(8 * rows * columns), dtype=np.int64).reshape(rows, columns)


class Ended(NamedTuple):
    """A step that has ended. number: of its rows on the shelf."""

    sequence: int
    token: int
    context: int
    graph: TaskGraph
    released: int
    end: int
    batch: Batch | None
    number: int


class Record:
    """Collects what happens. A step goes to the shelf once the instant is over in which it has ended."""

    def __init__(self, setup: Setup, shelf: Shelf, progress: Progress | None = None) -> None:
        self.setup = setup
        self.shelf = shelf
        self.progress = progress
        self.steps: list[Ended] = []
        self.intervals = 0  # service intervals that have ended before this instant
        self.grants: dict[tuple[int, int], list[tuple[int, ...]]] = {}  # by sequence and token, of steps that run
        self.now = 0
        self.fresh: list[tuple[int, Program, int, int, int]] = []  # service intervals that end at this instant
        self.over: list[Step] = []  # steps that do

    def served(self, channel: int, program: Program, start: int, end: int, work: int) -> None:
        """A channel has served the transfer of a task."""
        self._at(end)
        self.fresh.append((channel, program, start, end, work))

    def ended(self, step: Step, now: int) -> None:
        """The last task of a step has ended."""
        self._at(now)
        self.over.append(step)
        if self.progress is not None:
            self.progress(1 if step.batch is None else step.batch.emitted, now)

    def _at(self, now: int) -> None:
        if now > self.now:
            self._settle()
            self.now = now

    def _settle(self) -> None:
        """The instant is over: number its service intervals, and put away the steps that ended in it."""
        for channel, (sequence, token, task), start, end, work in sorted(self.fresh, key=lambda interval: interval[0]):
            self.grants.setdefault((sequence, token), []).append((self.intervals, task, channel, start, end, work))
            self.intervals += 1
        for step in self.over:
            tasks = [(t.engine, t.ready, t.start, t.loaded, t.end, t.compute, t.work) for t in step.tasks]
            grants = self.grants.pop((step.sequence, step.token), [])
            self.shelf.put(Rows(_matrix(tasks, len(_TASKS)), _matrix(grants, 1 + len(_GRANTS))))
            self.steps.append(
                Ended(
                    step.sequence, step.token, step.context, step.form.graph, step.released, self.now, step.batch,
                    len(self.steps),
                )
            )  # fmt: skip
            step.tasks.clear()
        self.fresh.clear()
        self.over.clear()

    def log(self, arrival: IntArray) -> EventLog:
        """All of it. arrival: when each sequence came."""
        self._settle()
        self.steps.sort(key=lambda step: step[:2])
        log, _ = self._part(self._table(), slice(0, len(self.steps)), arrival)
        return log

    def parts(self, arrival: IntArray) -> Iterator[tuple[EventLog, IntArray]]:
        """Logs of some steps each, in program order, with the number of each service interval in the whole run."""
        self._settle()
        self.steps.sort(key=lambda step: step[:2])
        table = self._table()
        cuts = [0, *(np.flatnonzero(np.diff(table.first // ROWS)) + 1).tolist(), len(self.steps)]
        for begin, end in pairwise(cuts):
            yield self._part(table, slice(begin, end), arrival)

    def _table(self) -> StepTable:
        """The table of all steps; graphs are numbered in the order in which steps need them."""
        numbers: dict[int, int] = {}
        for step in self.steps:
            numbers.setdefault(id(step.graph), len(numbers))
        size = np.array([len(step.graph) for step in self.steps], dtype=np.int64)
        columns = {name: [getattr(step, name) for step in self.steps] for name in _STEPS}
        columns["graph"] = [numbers[id(step.graph)] for step in self.steps]
        return StepTable(first=np.cumsum(size) - size, **{name: _column(name, values) for name, values in columns.items()})

    def _part(self, table: StepTable, part: slice, arrival: IntArray) -> tuple[EventLog, IntArray]:
        """The log of some steps; rows and steps are numbered through the whole run."""
        steps = self.steps[part]
        rows = [self.shelf.get(step.number) for step in steps]
        size = [len(each.tasks) for each in rows]
        tasks = np.concatenate([each.tasks for each in rows])
        grants = np.concatenate([each.grants for each in rows])
        grants[:, 1] += np.repeat(table.first[part], [len(each.grants) for each in rows])
        grants = grants[np.argsort(grants[:, 0])]
        batches = [step.batch for step in steps if step.batch is not None]
        log = EventLog(
            graphs=tuple({id(step.graph): step.graph for step in self.steps}.values()),
            steps=StepTable(**{each.name: getattr(table, each.name)[part] for each in fields(StepTable)}),
            tasks=TaskTable(
                step=np.repeat(np.arange(part.start, part.stop, dtype=np.int32), size),
                task=np.concatenate([np.arange(each, dtype=np.int32) for each in size]),
                **{name: _column(name, tasks[:, i]) for i, name in enumerate(_TASKS)},
            ),
            grants=GrantTable(**{name: _column(name, grants[:, i]) for i, name in enumerate(_GRANTS, 1)}),
            engines=self.setup.engines, channels=self.setup.channels, bandwidth=self.setup.bandwidth, arrival=arrival,
            batched=member_table(batches, part.start) if batches else None,
        )  # fmt: skip
        return log, grants[:, 0]


def _matrix(rows: Sequence[tuple[int, ...]], columns: int) -> IntArray:
    return np.array(rows, dtype=np.int64).reshape(len(rows), columns)


def _column(name: str, values: Sequence[int] | IntArray) -> npt.NDArray[Any]:
    return np.array(values, dtype=_NARROW.get(name, np.int64))


def member_table(batches: Sequence[Batch], first: int = 0) -> MemberTable:
    """Who took part in some steps that follow one another; `first` numbers the first of them."""
    rows: list[tuple[int, ...]] = []
    for step, batch in enumerate(batches, first):
        rows += [(step, *member[:6]) for member in batch.members]
        rows += [(step, sequence, 0, 0, 0, 0, 1) for sequence in batch.forks]
    step, sequence, context, query, loads, logits, emitted = np.array(rows, dtype=np.int64).T
    return MemberTable(
        step=step.astype(np.int32), sequence=sequence.astype(np.int32), context=context, query=query.astype(np.int32),
        loads=loads, logits=logits.astype(np.int32), emitted=emitted.astype(np.int32),
    )  # fmt: skip
