"""What a simulation leaves behind: the rows of steps that have ended, in a file, until they are made into an event log.

Service intervals are numbered in the order in which they end, those that end together in order of their channels, and those of
one channel in the order of its plan. A log has steps and tasks in program order, whatever the order in which they ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from sim.eventlog import EventLog, GrantTable, MemberTable, StepTable, TaskTable
from sim.executors.reference.step import Step
from sim.executors.setup import Progress, Setup
from sim.graph import IntArray
from sim.hardware.arbiters import Transfer
from sim.serving import Batch

_STEPS = ("sequence", "token", "context", "graph", "released", "end")
_TASKS = ("engine", "ready", "start", "loaded", "end", "compute", "work")
_GRANTS = ("task", "channel", "start", "end", "work")
_MEMBERS = ("step", "sequence", "context", "query", "loads", "logits", "emitted")
_NARROW: dict[str, Any] = dict.fromkeys(("engine", "channel"), np.int16)
_NARROW |= dict.fromkeys(("step", "sequence", "token", "graph", "query", "logits", "emitted"), np.int32)


class Record:
    """Collects what happens. The rows of a step go to the file once the instant is over in which it has ended."""

    def __init__(self, setup: Setup, file: BinaryIO, progress: Progress | None = None) -> None:
        self.setup = setup
        self.file = file
        self.progress = progress
        self.steps: list[tuple[Step, int, int]] = []  # place of its rows in the file, and how many service intervals there are
        self.grants: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # by sequence and token, of steps that run
        self.intervals = 0  # service intervals that ended before this instant
        self.now = 0
        self.fresh: list[tuple[int, Transfer, int, int, int]] = []  # service intervals that end at this instant
        self.over: list[Step] = []  # steps that end at this instant

    def served(self, channel: int, transfer: Transfer, start: int, end: int, work: int) -> None:
        """A channel has served a transfer."""
        self._at(end)
        self.fresh.append((channel, transfer, start, end, work))

    def ended(self, step: Step) -> None:
        """The last task of a step has ended."""
        self._at(step.end)
        self.over.append(step)
        if self.progress is not None:
            self.progress(1 if step.batch is None else step.batch.emitted, step.end)

    def _at(self, now: int) -> None:
        if now > self.now:
            self._settle()
            self.now = now

    def _settle(self) -> None:
        """The instant is over: number its service intervals, and put away the steps that ended in it."""
        for channel, transfer, *interval in sorted(self.fresh, key=lambda fresh: fresh[0]):
            *step_of, task = transfer.row
            self.grants.setdefault(tuple(step_of), []).append((self.intervals, task, channel, *interval))
            self.intervals += 1
        for step in self.over:
            grants = self.grants.pop((step.sequence, step.token), [])
            self.steps.append((step, self.file.tell(), len(grants)))
            self._write([(t.engine, t.ready, t.start, t.loaded, t.end, t.compute, t.work) for t in step.tasks])
            self._write(grants)
            step.tasks.clear()
        self.fresh.clear()
        self.over.clear()

    def _write(self, rows: Sequence[tuple[int, ...]]) -> None:
        self.file.write(np.array(rows, dtype=np.int64).tobytes())

    def _read(self, rows: int, columns: int) -> IntArray:
        return np.frombuffer(self.file.read(8 * rows * columns), dtype=np.int64).reshape(rows, columns)

    def parts(self, arrival: IntArray, rows: int | None = None) -> Iterator[tuple[EventLog, IntArray]]:
        """Logs of some steps each, in program order, with the number of each service interval in the whole run.

        arrival: when each sequence came. rows: of tasks in a part, about; None for one part.
        """
        self._settle()
        self.steps.sort(key=lambda kept: (kept[0].sequence, kept[0].token))
        graphs = {id(step.form.graph): step.form.graph for step, *_ in self.steps}  # in the order in which steps need them
        number = {key: i for i, key in enumerate(graphs)}
        size = np.array([len(step.form.graph) for step, *_ in self.steps], dtype=np.int64)
        first = np.cumsum(size) - size
        cuts = np.flatnonzero(np.diff(first // rows)) + 1 if rows is not None else np.zeros(0, dtype=np.int64)
        for begin, end in pairwise([0, *cuts.tolist(), len(self.steps)]):
            steps = [step for step, *_ in self.steps[begin:end]]
            columns = [(s.sequence, s.token, s.context, number[id(s.form.graph)], s.released, s.end) for s in steps]
            tasks, grants = self._rows(begin, first[begin:end])
            batches = [step.batch for step in steps if step.batch is not None]
            log = EventLog(
                graphs=tuple(graphs.values()), arrival=arrival, tasks=tasks, grants=GrantTable(**_columns(_GRANTS, grants[1:])),
                steps=StepTable(first=first[begin:end], **_columns(_STEPS, np.array(columns, dtype=np.int64).T)),
                batched=member_table(batches, begin) if batches else None,
                engines=self.setup.engines, channels=self.setup.channels, bandwidth=self.setup.bandwidth,
            )  # fmt: skip
            yield log, grants[0]

    def _rows(self, begin: int, first: IntArray) -> tuple[TaskTable, IntArray]:
        """The task table of some steps, and [number and columns, service interval]. first: row of the first task of each."""
        tasks, grants = [], []
        for (step, place, count), row in zip(self.steps[begin:], first.tolist(), strict=False):
            self.file.seek(place)
            tasks.append(self._read(len(step.form.graph), len(_TASKS)))
            grants.append(self._read(count, 1 + len(_GRANTS)) + np.array([0, row, 0, 0, 0, 0]))
        size = [len(each) for each in tasks]
        table = TaskTable(
            step=np.repeat(np.arange(begin, begin + len(size), dtype=np.int32), size),
            task=np.concatenate([np.arange(each, dtype=np.int32) for each in size]),
            **_columns(_TASKS, np.concatenate(tasks).T),
        )
        together = np.concatenate(grants)
        return table, together[np.argsort(together[:, 0])].T


def _columns(names: Sequence[str], columns: IntArray) -> dict[str, npt.NDArray[Any]]:
    return {name: column.astype(_NARROW.get(name, np.int64)) for name, column in zip(names, columns, strict=True)}


def member_table(batches: Sequence[Batch], first: int = 0) -> MemberTable:
    """The members of some steps that follow one another; `first` numbers the first of them."""
    rows: list[tuple[int, ...]] = []
    for step, batch in enumerate(batches, first):
        rows += [(step, *member[:6]) for member in batch.members]
        rows += [(step, sequence, 0, 0, 0, 0, 1) for sequence in batch.forks]
    return MemberTable(**_columns(_MEMBERS, np.array(rows, dtype=np.int64).T))
