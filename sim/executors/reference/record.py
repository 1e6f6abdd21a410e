"""Record a simulation: the steps that have ended and their service intervals; then make an event log of them.

Service intervals are numbered in the order in which they end, those that end together in order of their channels, and those of
one channel in the order of its plan. A log has steps and tasks in program order, whatever the order in which they ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import IntArray
from sim.executors.reference.step import Step
from sim.executors.setup import Progress, Setup
from sim.log.tables import EventLog, MemberTable, ServiceTable, StepTable, TaskTable
from sim.machine.arbiters import Transfer
from sim.serving.batch import LEADER, Batch
from sim.serving.cache import CacheUse

_STEPS = ("sequence", "token", "context", "graph", "released", "end")
_TASKS = ("engine", "ready", "start", "loaded", "end", "compute", "work", "launched")
_SERVICE = ("task", "channel", "start", "end", "work")
_MEMBERS = ("step", "sequence", "context", "query", "loads", "logits", "emitted", "home")
_NARROW: dict[str, Any] = dict.fromkeys(("engine", "channel"), np.int16)
_NARROW |= dict.fromkeys(("step", "sequence", "token", "graph", "query", "logits", "emitted", "home"), np.int32)


class Record:
    """Service intervals and steps as they end. After the instant in which a step has ended, its tasks become an array."""

    def __init__(self, setup: Setup, progress: Progress | None = None) -> None:
        self.setup = setup
        self.progress = progress
        self.steps: list[tuple[Step, IntArray, IntArray]] = []  # that have ended, [task, column] and [service interval, column]
        self.services: dict[tuple[int, int], list[tuple[int, ...]]] = {}  # by sequence and token, of steps that run
        self.intervals = 0  # service intervals that ended before this instant
        self.now = 0
        # Of this instant, service intervals and steps that end at it:
        self.fresh: list[tuple[int, Transfer, int, int, int]] = []  # channel, transfer, start, end, work
        self.over: list[Step] = []

    def served(self, channel: int, transfer: Transfer, start: int, end: int, work: int) -> None:
        """Record that a channel has served a transfer."""
        self._at(end)
        self.fresh.append((channel, transfer, start, end, work))

    def ended(self, step: Step) -> None:
        """Record that the last task of a step has ended."""
        self._at(step.end)
        self.over.append(step)
        if self.progress is not None:
            self.progress(1 if step.batch is None else step.batch.emitted, step.end)

    def _at(self, now: int) -> None:
        if now > self.now:
            self._settle()
            self.now = now

    def _settle(self) -> None:
        """Number the service intervals of an instant that is over, and make arrays of the steps that ended in it."""
        for channel, transfer, *interval in sorted(self.fresh, key=lambda fresh: fresh[0]):
            sequence, token, task = transfer.program
            self.services.setdefault((sequence, token), []).append((self.intervals, task, channel, *interval))
            self.intervals += 1
        for step in self.over:
            tasks = [(t.engine, t.ready, t.start, t.loaded, t.end, t.compute, t.work, t.launched) for t in step.tasks]
            services = self.services.pop((step.sequence, step.token), [])
            self.steps.append((step, _rows(tasks, len(_TASKS)), _rows(services, 1 + len(_SERVICE))))
            step.tasks.clear()
        self.fresh.clear()
        self.over.clear()

    def log(self, arrival: IntArray, cache: CacheUse | None = None) -> EventLog:
        """The event log. arrival: ps [sequence]. cache: use of the prefix cache."""
        self._settle()
        self.steps.sort(key=lambda kept: (kept[0].sequence, kept[0].token))
        steps, tasks, services = zip(*self.steps, strict=True)
        graphs = {id(step.columns.graph): step.columns.graph for step in steps}  # in the order in which steps need them
        number = {key: i for i, key in enumerate(graphs)}
        size = np.array([len(each) for each in tasks], dtype=np.int64)
        first = np.cumsum(size) - size
        served = np.concatenate(
            [each + np.array([0, row, 0, 0, 0, 0]) for each, row in zip(services, first.tolist(), strict=True)]
        )
        served = served[np.argsort(served[:, 0]), 1:]
        columns = [(s.sequence, s.token, s.context, number[id(s.columns.graph)], s.released, s.end) for s in steps]
        batches = [step.batch for step in steps if step.batch is not None]
        return EventLog(
            graphs=tuple(graphs.values()), arrival=arrival, services=ServiceTable(**_columns(_SERVICE, served.T)),
            tasks=TaskTable(
                step=np.repeat(np.arange(len(steps), dtype=np.int32), size),
                task=np.concatenate([np.arange(each, dtype=np.int32) for each in size]),
                **_columns(_TASKS, np.concatenate(tasks).T),
            ),
            steps=StepTable(first=first, **_columns(_STEPS, np.array(columns, dtype=np.int64).T)),
            batched=member_table(batches) if batches else None,
            machine=self.setup.machine, bandwidth=self.setup.bandwidth, sram=self.setup.sram,
            step_overhead=self.setup.step_overhead, cache=cache,
        )  # fmt: skip


def _rows(rows: Sequence[tuple[int, ...]], columns: int) -> IntArray:
    return np.array(rows, dtype=np.int64).reshape(-1, columns)


def _columns(names: Sequence[str], columns: IntArray) -> dict[str, npt.NDArray[Any]]:
    return {name: column.astype(_NARROW.get(name, np.int64)) for name, column in zip(names, columns, strict=True)}


def member_table(batches: Sequence[Batch]) -> MemberTable:
    """The member table of consecutive steps; forks have zeros, but for the one token that they get."""
    rows: list[tuple[int, ...]] = []
    for step, batch in enumerate(batches):
        rows += [(step, *member[:LEADER], member.home) for member in (*batch.members, *batch.forked)]
    return MemberTable(**_columns(_MEMBERS, np.array(rows, dtype=np.int64).T))
