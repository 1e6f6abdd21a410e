"""What a simulation leaves behind: the rows of the steps that have ended, in memory or on disk, until they are an event log.

Rows come in the order in which steps end. A log has them in program order, so what is on disk is read in that order.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.decode import Step
from sim.errors import SimulationError
from sim.eventlog import EventLog, GrantTable, MemberTable, StepTable, TaskTable
from sim.graph import IntArray
from sim.hardware.arbiters import Transfer
from sim.serving import Batch
from sim.tasks import TaskGraph

#: Program order packs (sequence, token, task) into one int64: 2**19 tasks a step, 2**24 tokens, 2**20 sequences.
SEQUENCE_BITS, TOKEN_BITS = 43, 19
_TASK = (1 << TOKEN_BITS) - 1

ROWS = 1 << 18  # put into order, or read, at a time
SPARE = 8  # room is made for an eighth more rows than there are: what is spare counts as used memory

_TASKS = {"engine": np.int16} | dict.fromkeys(("ready", "start", "loaded", "end", "compute", "work"), np.int64)
_GRANTS = {"task": np.int64, "channel": np.int16} | dict.fromkeys(("start", "end", "work"), np.int64)


class Machine(NamedTuple):
    """What an event log says of the machine."""

    engines: int
    channels: int
    bandwidth: int


class _Columns:
    """Columns that grow at the end; they are hardly ever copied, since the operating system moves large ones by their pages."""

    def __init__(self, types: dict[str, Any]) -> None:
        self.rows = self._room = 0
        self._columns: dict[str, npt.NDArray[Any]] = {name: np.empty(0, dtype=dtype) for name, dtype in types.items()}

    def extend(self, rows: int, values: Sequence[Any]) -> None:
        """Add some rows, given a sequence for each column."""
        first, self.rows = self.rows, self.rows + rows
        if self.rows > self._room:
            self._resize(max(self.rows, self._room + self._room // SPARE))
        for column, part in zip(self._columns.values(), values, strict=True):
            column[first : self.rows] = part

    def _resize(self, rows: int) -> None:
        self._room = rows
        for column in self._columns.values():
            column.resize(rows, refcheck=False)

    def take(self) -> dict[str, npt.NDArray[Any]]:
        """The columns; then they are gone from here."""
        self._resize(self.rows)
        columns, self._columns = self._columns, {}
        return columns


#: Told of output tokens that have come since it was told last, and of the picosecond at which the last of them came.
Progress = Callable[[int, int], None]


class Record:
    """Collects what happens; a step becomes rows as soon as it ends."""

    def __init__(self, machine: Machine, progress: Progress | None = None) -> None:
        self.machine, self._progress = machine, progress
        self.steps: dict[int, Step] = {}  # by program order, until they end
        self.members: dict[int, Batch] = {}  # by program order, of all steps that are batched
        self.graphs: list[TaskGraph] = []
        self._numbers: dict[int, int] = {}  # id of a graph -> its place there
        self._ended: list[array[int]] = [
            array("q") for _ in range(7)
        ]  # program, sequence, token, context, graph, released, end
        self._fresh: tuple[array[int], ...] = tuple(array(code) for code in "qhqqq")  # grants, a while
        self._tasks, self._grants = _Columns(_TASKS), _Columns(_GRANTS)

    def expect(self, step: Step) -> None:
        """A step will run."""
        self.steps[step.program] = step
        step.done.callbacks.append(lambda _event: self._end(step))

    def grant(self, channel: int, transfer: Transfer, start: int, end: int, work: int) -> None:
        """A channel served a transfer."""
        for column, value in zip(self._fresh, (sum(transfer.row), channel, start, end, work), strict=True):
            column.append(value)
        if len(self._fresh[0]) >= ROWS:
            self._put_grants_away()

    def grants(self, channel: int, rows: array[int], start: int, end: int, work: int, last: int) -> None:
        """A channel served several, all with as much work but the last."""
        count = len(rows)
        for column, value in zip(self._fresh[1:], (channel, start, end, work), strict=True):
            column.extend(array(column.typecode, (value,)) * count)
        self._fresh[0].extend(rows)
        self._fresh[4][-1] = last
        if len(self._fresh[0]) >= ROWS:
            self._put_grants_away()

    def _end(self, step: Step) -> None:
        number = self._numbers.setdefault(id(step.graph), len(self.graphs))
        if number == len(self.graphs):
            self.graphs.append(step.graph)
        about = (step.program, step.sequence, step.token, step.context, number, step.released, max(step.end))
        for column, value in zip(self._ended, about, strict=True):
            column.append(value)
        columns = (step.engine, step.ready, step.start, step.loaded, step.end, step.compute, step.work)
        self._put_grants_away()
        self._keep(step.program, columns)
        for each in columns:
            each.clear()
        del self.steps[step.program]
        if self._progress is not None:
            batch = self.members.get(step.program)
            self._progress(1 if batch is None else batch.emitted, about[-1])

    def _keep(self, _program: int, columns: Sequence[list[int]]) -> None:
        self._tasks.extend(len(columns[0]), columns)

    def _put_grants_away(self) -> None:
        self._grants.extend(len(self._fresh[0]), self._fresh)
        for column in self._fresh:
            del column[:]

    def _sorted(self) -> _Ended:
        """The steps that have ended, in program order."""
        if self.steps:
            raise SimulationError(f"the simulation ended with work left: {next(iter(self.steps.values()))}")
        columns = [np.array(column, dtype=np.int64) for column in self._ended]
        order = np.argsort(columns[0])
        program, sequence, token, context, graph, released, end = (column[order] for column in columns)
        size = np.array([len(each) for each in self.graphs], dtype=np.int64)[graph]
        seen, first, number = np.unique(graph, return_index=True, return_inverse=True)
        by_use = np.argsort(first)  # graphs are numbered in the order in which the log needs them
        steps = StepTable(
            sequence=sequence.astype(np.int32), token=token.astype(np.int32), context=context,
            graph=np.argsort(by_use).astype(np.int32)[number], first=np.cumsum(size) - size, released=released, end=end,
        )  # fmt: skip
        return _Ended(order, program, size, tuple(self.graphs[seen[i]] for i in by_use), steps)

    def log(self, arrival: IntArray) -> EventLog:
        """All of it; then nothing is left here. arrival: when each sequence came."""
        ended = self._sorted()
        tasks, grants = self._tasks.take(), self._grants.take()
        if (np.diff(ended.order) < 0).any():
            place = np.empty_like(ended.size)
            place[ended.order] = ended.size
            place = (np.cumsum(place) - place)[ended.order]
            for name in tasks:
                tasks[name] = _gathered(tasks[name], place, ended.size)
        return self._part(ended, slice(0, len(ended.order)), tasks, grants, arrival)

    def _part(
        self, ended: _Ended, part: slice, tasks: dict[str, Any], grants: dict[str, Any], arrival: IntArray
    ) -> EventLog:  # fmt: skip
        """The log of some steps; rows and steps are numbered through the whole run. Grants know tasks by program order."""
        size, first, program = ended.size[part], ended.steps.first, ended.program
        number = np.repeat(np.arange(part.start, part.stop, dtype=np.int32), size)
        row = grants["task"]
        for at in range(0, len(row), ROWS):
            here = row[at : at + ROWS]
            here[:] = first[np.searchsorted(program, here & ~_TASK)] + (here & _TASK)
        return EventLog(
            graphs=ended.graphs, steps=StepTable(**{f.name: getattr(ended.steps, f.name)[part] for f in fields(StepTable)}),
            tasks=TaskTable(step=number, task=_counted(size), **tasks), grants=GrantTable(**grants), arrival=arrival,
            batched=member_table([self.members[p] for p in program[part].tolist()], part.start) if self.members else None,
            **self.machine._asdict(),
        )  # fmt: skip


class Spilled(Record):
    """The same on disk: what is in memory does not grow with the tasks of steps that have ended."""

    def __init__(self, machine: Machine, file: BinaryIO, progress: Progress | None = None) -> None:
        super().__init__(machine, progress)
        self._file = file
        self._at: array[int] = array("q")  # where each step begins in the file, as they ended
        self._granted = 0
        self._waiting: dict[int, list[IntArray]] = {}  # grants [column, row] of steps that have not ended, by program order

    def _keep(self, program: int, columns: Sequence[list[int]]) -> None:
        self._at.append(self._file.tell())
        for column, dtype in zip(columns, _TASKS.values(), strict=True):
            self._file.write(np.array(column, dtype=dtype).tobytes())
        grants = np.concatenate([np.zeros((6, 0), dtype=np.int64), *self._waiting.pop(program, ())], axis=1)
        self._file.write(np.int64(grants.shape[1]).tobytes() + grants.tobytes())

    def _put_grants_away(self) -> None:
        """Sort them to their steps."""
        fresh = np.array([np.arange(len(self._fresh[0])) + self._granted, *self._fresh], dtype=np.int64)
        self._granted += fresh.shape[1]
        for column in self._fresh:
            del column[:]
        program = fresh[1] & ~_TASK
        order = np.argsort(program, kind="stable")
        cuts = np.flatnonzero(np.diff(program[order])) + 1
        for part in np.split(order, cuts):
            if len(part):
                self._waiting.setdefault(int(program[part[0]]), []).append(fresh[:, part])

    def logs(self, arrival: IntArray) -> Iterator[tuple[EventLog, IntArray]]:
        """Logs of some steps each, in program order, with the place of each grant among those of the whole run."""
        ended = self._sorted()
        bounds = ended.steps.first // ROWS
        cuts = [0, *(np.flatnonzero(np.diff(bounds)) + 1).tolist(), len(bounds)]
        for begin, end in pairwise(cuts):
            read = [self._read(int(ended.order[step]), int(ended.size[step])) for step in range(begin, end)]
            tasks = {name: np.concatenate([columns[i] for columns, _ in read]) for i, name in enumerate(_TASKS)}
            grants = np.concatenate([each for _, each in read], axis=1)
            grants = grants[:, np.argsort(grants[0])]
            columns = {name: grants[i + 1].astype(dtype) for i, (name, dtype) in enumerate(_GRANTS.items())}
            yield self._part(ended, slice(begin, end), tasks, columns, arrival), grants[0]

    def _read(self, number: int, size: int) -> tuple[list[npt.NDArray[Any]], IntArray]:
        """The columns and grants of the step that ended as the `number`th."""
        self._file.seek(self._at[number])
        columns = [_from(self._file, dtype, size) for dtype in _TASKS.values()]
        (grants,) = _from(self._file, np.int64, 1).tolist()
        return columns, _from(self._file, np.int64, 6 * grants).reshape(6, grants)


class _Ended(NamedTuple):
    """Steps in program order. order: of their endings."""

    order: IntArray
    program: IntArray
    size: IntArray
    graphs: tuple[TaskGraph, ...]
    steps: StepTable


def _from(file: BinaryIO, dtype: Any, count: int) -> npt.NDArray[Any]:
    return np.frombuffer(file.read(np.dtype(dtype).itemsize * count), dtype=dtype)


def _counted(size: IntArray) -> npt.NDArray[np.int32]:
    """0, 1, 2, ... for each of some steps of so many tasks."""
    step = np.ones(int(size.sum()), dtype=np.int32)
    step[:1] = 0
    step[np.cumsum(size)[:-1]] -= size[:-1].astype(np.int32)
    return np.cumsum(step, dtype=np.int32, out=step)


def _gathered(column: npt.NDArray[Any], place: IntArray, size: IntArray) -> npt.NDArray[Any]:
    """Runs of so many rows, which are at these places of a column, one after another."""
    out = np.empty_like(column)
    first = np.cumsum(size) - size
    cuts = [0, *(np.flatnonzero(np.diff(first // ROWS)) + 1).tolist(), len(size)]
    for begin, end in pairwise(cuts):
        runs = slice(begin, end)
        to = first[begin] + np.arange(size[runs].sum())
        np.take(column, to + np.repeat(place[runs] - first[runs], size[runs]), out=out[to[0] : to[-1] + 1])
    return out


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
