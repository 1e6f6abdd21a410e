"""The columnar record of a run: what ran, where and when. Everything shown to a user is derived from it.

Times are int64 picoseconds; there is no Python object per event. A task row takes 66 bytes, a service interval 34.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import Members, StepLanes
from models.lanes import kept_of
from sim.log import derived
from sim.machine.machine import Machine
from sim.mapping.tasks import TaskGraph
from sim.serving.cache import CacheUse, in_all
from sim.serving.queue import NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTable:
    """One row per task, in order of step and, within a step, of the task graph.

    step: row of the step table; task: index in the step's task graph.
    engine: the engine that ran it, -1 for a transfer that a DMA issued.
    ready: all its inputs had ended (and its step was released).
    start: an engine took it; for a DMA transfer: it was issued. Operands that it loads fit SRAM from then on.
    loaded: its operands had arrived (equals `start` where it loads nothing). Under `blocking` it computes from then on.
    end: it had finished.
    compute: its time on an engine. work: its transfer at the full speed of one channel, without latency; the
    service intervals say over how many channels it is spread. launched: the first part of `compute`, after which its engine
    issues the load; 0 where it loads nothing, or a DMA does.
    """

    step: npt.NDArray[np.int32]
    task: npt.NDArray[np.int32]
    engine: npt.NDArray[np.int16]
    ready: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    loaded: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    compute: npt.NDArray[np.int64]
    work: npt.NDArray[np.int64]
    launched: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def empty(cls) -> TaskTable:
        """Table without rows, for a run whose rows were not kept."""
        types = {"step": np.int32, "task": np.int32, "engine": np.int16}
        return cls(**{field.name: np.zeros(0, dtype=types.get(field.name, np.int64)) for field in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTable:
    """One row for each interval in which a channel served one transfer at one rate, in order of `end`.

    task: row of the task table whose bytes moved. work: picoseconds of the channel's full bandwidth delivered in [start, end).
    """

    task: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int16]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    work: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.task)

    @classmethod
    def empty(cls) -> ServiceTable:
        """Table without rows, for a run whose rows were not kept."""
        none, channel = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int16)
        return cls(task=none, channel=channel, start=none, end=none, work=none)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """One row per step, in order of sequence and token.

    sequence, token: which; where steps are batched, the number of the decode loop and of its step. context: tokens in the KV
    cache when it starts, of all its members together. graph: index into `EventLog.graphs`.
    first: row of its first task. released: the first instant at which its tasks could run, or the host began with it. end: its
    last task ended.
    """

    sequence: npt.NDArray[np.int32]
    token: npt.NDArray[np.int32]
    context: npt.NDArray[np.int64]
    graph: npt.NDArray[np.int32]
    first: npt.NDArray[np.int64]
    released: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sequence)

    @classmethod
    def empty(cls) -> StepTable:
        """Table without rows, for a run whose rows were not kept."""
        short, long = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
        return cls(sequence=short, token=short, context=long, graph=short, first=long, released=long, end=long)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberTable:
    """One row per sequence that takes part in a step, in order of the step table and of the members of its graph.

    step: row of the step table. sequence: which. context: its tokens in the KV cache when the step starts. query: tokens that
    it fed in (several in prefill and verification; 0: its cache was swapped, or it got its first token from another sample of
    its prompt). loads: cached tokens that were loaded for it alone. logits: rows of logits for it. emitted: output tokens that
    it got when the step ended. home: the device of its replica that it was on, where devices have sequences of their own.
    """

    step: npt.NDArray[np.int32]
    sequence: npt.NDArray[np.int32]
    context: npt.NDArray[np.int64]
    query: npt.NDArray[np.int32]
    loads: npt.NDArray[np.int64]
    logits: npt.NDArray[np.int32]
    emitted: npt.NDArray[np.int32]
    home: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def plain(cls, steps: StepTable) -> MemberTable:
        """Members of steps that are one sequence each, which decodes one token."""
        one = np.ones(len(steps), dtype=np.int32)
        number = np.arange(len(steps), dtype=np.int32)
        return cls(
            step=number, sequence=steps.sequence, context=steps.context, loads=steps.context, query=one, logits=one,
            emitted=one, home=np.zeros_like(one),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A whole run. bandwidth: of each channel, bytes/s.

    sram: bytes for operands in use on each device, None if unbounded. step_overhead: ps of the host, with which each step
    begins. batched: the members of each step; None where each step is one sequence that decodes one token. arrival: ps, when
    each sequence came. cache: use of the prefix cache; None without one. queue: int64 [request, reason], ps that each waited
    before its first step, by `sim.serving.queue.Reason`; None where nothing was batched. made: columns derived so far, by name
    (`sim.log.derived`).
    """

    graphs: tuple[TaskGraph, ...]
    tasks: TaskTable
    services: ServiceTable
    steps: StepTable
    machine: Machine
    bandwidth: int
    sram: tuple[int, ...] | None = None
    step_overhead: int = 0
    batched: MemberTable | None = None
    arrival: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    cache: CacheUse | None = None
    queue: npt.NDArray[np.int64] | None = None
    made: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def engines(self) -> int:
        """Number of engines."""
        return self.machine.engines

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.machine.channels)

    @property
    def members(self) -> MemberTable:
        """Members of each step."""
        if self.batched is not None:
            return self.batched
        if "members" not in self.made:
            self.made["members"] = MemberTable.plain(self.steps)
        found: MemberTable = self.made["members"]
        return found

    @property
    def started(self) -> npt.NDArray[np.int64]:
        """Release of the first step that each request takes part in, ps [request]; NEVER where it is in none."""
        members, found = self.members, np.full(len(self.arrival), NEVER)
        # Samples get a first token from a prompt that they do not feed in.
        takes_part = (members.query > 0) | (members.emitted > 0)
        np.minimum.at(found, members.sequence[takes_part], self.steps.released[members.step[takes_part]])
        return found

    def lanes(self, steps: npt.NDArray[np.integer]) -> StepLanes:
        """Parameters of the costs of some steps, all of one graph."""
        table = self.steps
        sequence, token = table.sequence[steps].astype(np.int64), table.token[steps].astype(np.int64)
        return StepLanes(sequence=sequence, token=token, context=table.context[steps], members=self._members(steps))

    def _members(self, steps: npt.NDArray[np.integer]) -> Members | None:
        if self.batched is None or not len(steps):
            return None
        members = self.graphs[int(self.steps.graph[steps[0]])].ops.members
        if members is None:
            return None
        first, last = np.searchsorted(self.batched.step, steps), np.searchsorted(self.batched.step, steps, side="right")
        most = members or int((last - first).max())  # where kernels serve all members, steps have as many as they like
        # Those of the graph come first among the rows of a step.
        rows = first + np.arange(most)[:, None]  # [member, lane]
        there = rows < last
        names = ("sequence", "context", "query", "loads", "logits", "home")
        columns = {
            name: np.where(there, getattr(self.batched, name)[np.where(there, rows, 0)], 0).astype(np.int64) for name in names
        }
        return Members(**columns, kept=kept_of(columns["context"], columns["query"], columns["logits"]))

    @property
    def makespan(self) -> int:
        """Picoseconds from 0 to the end of the last task."""
        return int(self.steps.end.max(initial=0))

    def rows(self, step: int) -> slice:
        """The rows of the task table that belong to a step."""
        first = int(self.steps.first[step])
        return slice(first, first + len(self.graphs[self.steps.graph[step]]))

    def bytes_moved(self) -> npt.NDArray[np.int64]:
        """Bytes through the channels [row]. It is kept: callers must not write to it."""
        return derived.bytes_moved(self)

    @property
    def owner_words(self) -> tuple[str, str]:
        """Names of what `StepTable.sequence` and `StepTable.token` count."""
        return ("sequence", "token") if self.batched is None else ("loop", "step")

    def name(self, row: int) -> str:
        """Name of the task of a row, such as `scores h3`."""
        graph = self.graphs[int(self.steps.graph[self.tasks.step[row]])]
        return graph.name(int(self.tasks.task[row]))

    @property
    def has_rows(self) -> bool:
        """Whether its tasks were recorded, or its steps alone."""
        return len(self.tasks) > 0

    def part(self, first: int, after: int) -> EventLog:
        """A copy of consecutive steps, whose rows begin at 0."""
        steps, row = slice(first, after), int(self.steps.first[first])
        last = after - 1
        rows = slice(row, int(self.steps.first[last]) + len(self.graphs[int(self.steps.graph[last])]))
        mine = (self.services.task >= rows.start) & (self.services.task < rows.stop)
        columns = {f.name: getattr(self.steps, f.name)[steps].copy() for f in fields(StepTable)}
        tasks = {f.name: getattr(self.tasks, f.name)[rows].copy() for f in fields(TaskTable)}
        services = {f.name: getattr(self.services, f.name)[mine] for f in fields(ServiceTable)}
        columns["first"] -= row
        tasks["step"] -= first
        services["task"] -= row
        return replace(
            self, steps=StepTable(**columns), tasks=TaskTable(**tasks), services=ServiceTable(**services),
            batched=self.batched and _members_of(self.batched, steps),
        )  # fmt: skip


def _members_of(members: MemberTable, steps: slice) -> MemberTable:
    mine = (members.step >= steps.start) & (members.step < steps.stop)
    columns = {f.name: getattr(members, f.name)[mine] for f in fields(MemberTable)}
    columns["step"] -= steps.start
    return MemberTable(**columns)


def joined(logs: Sequence[EventLog]) -> EventLog:
    """One log of several parts that follow one another; the graphs of each begin with those of the part before."""
    step = row = 0
    tables: dict[str, list[dict[str, Any]]] = {"steps": [], "tasks": [], "services": [], "batched": []}
    for log in logs:
        moved = {"first": row, "task": row, "step": step}
        for name, table in (("steps", log.steps), ("tasks", log.tasks), ("services", log.services), ("batched", log.batched)):
            if table is not None:
                shift = moved if name != "tasks" else {"step": step}
                columns = {f.name: getattr(table, f.name) for f in fields(table)}
                tables[name].append({key: column + shift.get(key, 0) for key, column in columns.items()})
        step, row = step + len(log.steps), row + _size(log.steps, log.graphs)
    types = {"steps": StepTable, "tasks": TaskTable, "services": ServiceTable, "batched": MemberTable}
    made: dict[str, Any] = {
        name: types[name](**{key: np.concatenate([each[key] for each in parts]) for key in parts[0]}) if parts else None
        for name, parts in tables.items()
    }
    return replace(logs[-1], **made)


def _size(steps: StepTable, graphs: Sequence[TaskGraph]) -> int:
    """Tasks of steps whose rows begin at 0, also where they are not kept."""
    return int(steps.first[-1]) + len(graphs[int(steps.graph[-1])]) if len(steps) else 0


def beside(logs: Sequence[EventLog]) -> EventLog:
    """One log of several runs at a time that share no loop, engine or channel, in order of their loops."""
    graphs: tuple[TaskGraph, ...] = ()
    moved = []
    for log in logs:
        steps = replace(log.steps, graph=log.steps.graph + np.int32(len(graphs)))
        graphs += log.graphs
        moved.append(replace(log, graphs=graphs, steps=steps))
    queues = [log.queue for log in logs if log.queue is not None]
    queue = np.sum(queues, axis=0) if queues else None
    return replace(_in_order_of_ends(joined(moved)), cache=in_all(log.cache for log in logs), queue=queue)


def _in_order_of_ends(log: EventLog) -> EventLog:
    """The log with its service intervals in order of their ends, and at one time in order of channels."""
    order = np.lexsort((log.services.channel, log.services.end))
    columns = {f.name: getattr(log.services, f.name)[order] for f in fields(ServiceTable)}
    return replace(log, services=ServiceTable(**columns))


def in_loop_order(log: EventLog) -> EventLog:
    """The log with its steps in order of loops and tokens; itself if they are. Parts of a run come in order of time."""
    order = np.lexsort((log.steps.token, log.steps.sequence))
    if (np.diff(order) == 1).all():
        return log
    size = np.array([len(graph) for graph in log.graphs], dtype=np.int64)[log.steps.graph[order]]
    first = np.cumsum(size) - size
    rows = np.arange(len(log.tasks)) + np.repeat(log.steps.first[order] - first, size)  # of the log, in the new order
    row, place = np.empty_like(rows), np.empty_like(order)
    row[rows], place[order] = np.arange(len(rows)), np.arange(len(order))
    steps = {f.name: getattr(log.steps, f.name)[order] for f in fields(StepTable)} | {"first": first}
    tasks = {f.name: getattr(log.tasks, f.name)[rows] for f in fields(TaskTable)}
    tasks["step"] = place[tasks["step"]].astype(np.int32)
    members = log.batched
    if members is not None:
        by_step = np.argsort(place[members.step], kind="stable")
        columns = {f.name: getattr(members, f.name)[by_step] for f in fields(MemberTable)}
        members = MemberTable(**columns | {"step": place[columns["step"]].astype(np.int32)})
    return replace(
        log, steps=StepTable(**steps), tasks=TaskTable(**tasks), services=replace(log.services, task=row[log.services.task]),
        batched=members,
    )  # fmt: skip


class Window:
    """Collects the steps of a run that are under way at some time, from parts as they come. start, end: ps."""

    def __init__(self, start: int, end: int | None) -> None:
        self.start, self.end = start, end
        self._parts: list[EventLog] = []

    def add(self, part: EventLog) -> None:
        """The next part; what is wanted of it is copied."""
        under_way = part.steps.end > self.start
        if self.end is not None:
            under_way &= part.steps.released < self.end
        steps = np.flatnonzero(under_way)
        if len(steps):
            loop = part.steps.sequence[steps]
            first = np.flatnonzero(np.diff(loop, prepend=-1))  # of each loop, of which a part may have several
            for begin, after in pairwise([*first.tolist(), len(steps)]):
                self._parts.append(part.part(int(steps[begin]), int(steps[after - 1]) + 1))

    def log(self) -> EventLog | None:
        """The log of these steps, without the waits of requests before them; None if there are none."""
        if not self._parts:
            return None
        log = in_loop_order(_in_order_of_ends(joined(self._parts)))
        used, graph = np.unique(log.steps.graph, return_inverse=True)
        return replace(
            log, graphs=tuple(log.graphs[number] for number in used.tolist()), queue=None,
            steps=replace(log.steps, graph=graph.astype(np.int32)),
        )  # fmt: skip
