"""Steps and tasks while they run, and how a step is made: its costs, its ranks, and the owners of its tasks.

Program order is that of (sequence, token, task): sequences as the scenario lists them, then tokens, then the tasks of a step.
Where steps are batched, the loop and its step stand for sequence and token. The age of a step is the number of the instant of
its release, from 0, among all instants at which steps are released: smaller is older.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import simpy

from models.graph import IntArray, StepLanes
from sim.executors.operands import sram_use
from sim.executors.reference.instant import Environment
from sim.executors.setup import Setup, lanes_of
from sim.machine.arbiters.contract import Program
from sim.machine.schedulers import StepView
from sim.mapping.operands import Operands, operands_of
from sim.mapping.tasks import TaskGraph
from sim.serving.batch import Batch
from sim.workload.requests import Request

LANES = 64  # steps of a sequence that are costed at once: cost models take vectors of steps


@dataclass(slots=True, eq=False)
class Task:
    """One task of a step.

    number: its place in the task graph. program: its place in program order. rank: its scheduler's; the lowest goes first.
    chain: the chain that it belongs to, None if any engine will do. owner: the sequence that it is for, as arbiters and
    routes see it. dma: number of the DMA that moves it, that of its sequence (or loop). compute, work: ps on an engine, and
    on the channel at full speed. launch: ps of `compute` before its engine loads operands. waiting: inputs that have not
    ended. on_engine: an engine runs it, else a DMA. admitted: its operands have their bytes of SRAM, or need none. users:
    tasks that use them and have not ended. engine, ready, start, loaded, end: as in the log, -1 until known.
    """

    step: Step
    number: int
    program: Program
    rank: int
    chain: int | None
    owner: int
    dma: int
    compute: int
    work: int
    launch: int
    waiting: int
    on_engine: bool
    admitted: bool = True
    users: int = 0
    engine: int = -1
    ready: int = -1
    start: int = -1
    loaded: int = -1
    end: int = -1

    @property
    def launched(self) -> int:
        """Picoseconds from its start to the issue of its load."""
        return min(self.launch, self.compute) if self.work else 0

    def __repr__(self) -> str:
        return f"Task({self.step.columns.graph.name(self.number)} of token {self.step.sequence}.{self.step.token})"


@dataclass(slots=True, eq=False)
class Step:
    """One step, from its release on.

    sequence, token: its numbers; where steps are batched, those of the loop and of its step. context: tokens in the KV cache.
    columns: of its graph. age: of its release, smaller is older. batch: its members, None for a sequence on its own. sram:
    bytes of SRAM that operands take, by number of the task that loads them; empty if SRAM is unbounded. admitted: [device of
    the replica], the first operand there that does not have its bytes yet; more_admitted: happens when another one gets them.
    home: the engine of each chain that has begun. left: tasks that have not ended. done: happens with the last of them, at
    `end`.
    """

    sequence: int
    token: int
    context: int
    columns: GraphColumns
    age: int
    released: int
    batch: Batch | None
    sram: dict[int, int]
    admitted: list[int]
    more_admitted: simpy.Event
    done: simpy.Event
    tasks: list[Task] = field(default_factory=list)
    home: dict[int, int] = field(default_factory=dict)
    left: int = 0
    end: int = -1

    def is_admitted(self, device: int) -> bool:
        """Whether all of its operands on a device of the replica have been admitted."""
        return self.admitted[device] == self.columns.start[device + 1]

    def __repr__(self) -> str:
        return f"Step(token {self.sequence}.{self.token}, {self.left} of {len(self.tasks)} tasks left)"


class Group(NamedTuple):
    """Operands that are admitted to SRAM together. tasks: that load them. after: the operand after them. before: [device of
    the replica], the operand up to which all have to be admitted there before them, as in `Operands.before`.
    """

    tasks: list[int]
    after: int
    before: list[int]


class GraphColumns:
    """A task graph as lists [task] of Python values, shared by all its steps."""

    def __init__(self, graph: TaskGraph, setup: Setup) -> None:
        self.graph = graph
        self.inputs: list[int] = np.diff(graph.input_start).tolist()  # how many
        outputs, first = graph.outputs.tolist(), graph.output_start.tolist()
        self.outputs: list[list[int]] = [outputs[first[t] : first[t + 1]] for t in range(len(graph))]
        self.on_engine: list[bool] = graph.engine.tolist()
        self.moves: list[int] = graph.moves.tolist()
        self.device: list[int] = graph.device.tolist()
        self.path = [setup.machine.crossed(device, to) for device, to in zip(self.device, graph.to.tolist(), strict=True)]
        kinds = graph.plain_kinds
        self.kind = [kinds[kind] for kind in graph.kind.tolist()]
        self.launch: list[int] = setup.launches(graph).tolist()
        self.prefetch: list[bool] = graph.prefetch.tolist()
        self.member: list[int] | None = graph.ops.member[graph.op].tolist() if graph.ops.members is not None else None
        chains = setup.scheduler.chains(graph)
        self.chain: list[int | None] = [None] * len(graph) if chains is None else [int(chain) for chain in chains]
        self.groups: list[list[Group]] = []  # of each device of the replica, in order
        self.start: list[int] = [0]  # the first operand of each of these devices, and how many operands there are
        self.users: dict[int, int] = {}  # by loading task, how many tasks use its operands
        self.used: list[list[int]] = [[] for _ in range(len(graph))]  # the loading tasks of what each task uses
        if setup.sram is not None:
            operands = operands_of(graph)
            self.start = operands.start.tolist()
            self.groups = _groups(operands)
            self.users = dict(zip(operands.task.tolist(), operands.users.tolist(), strict=True))
            self.used = [each.tolist() for each in np.split(operands.used, operands.used_start[1:-1])]


def _groups(operands: Operands) -> list[list[Group]]:
    """The groups of operands of each device, in order."""
    found: list[list[Group]] = [[] for _ in operands.start[1:]]
    after = [*operands.first.tolist(), len(operands.task)][1:]
    device = (np.searchsorted(operands.start, operands.first, side="right") - 1).tolist()
    for number, tasks, end, before in zip(device, operands.groups(), after, operands.before.tolist(), strict=True):
        found[number].append(Group(tasks, end, before))
    return found


class Steps:
    """Makes steps; each at the instant at which it is released."""

    def __init__(self, env: Environment, setup: Setup) -> None:
        self.env = env
        self.setup = setup
        self.columns: dict[int, GraphColumns] = {}  # by id of their graph
        self.released: Counter[int] = Counter()  # loop -> its steps so far
        self.age = -1
        self.last_release = -1

    def of_sequence(self, number: int, sequence: Request) -> Iterator[Step]:
        """The steps of a sequence that decodes, one token each."""
        graph = self.setup.graph
        for first in range(0, sequence.tokens, LANES):
            tokens = np.arange(first, min(first + LANES, sequence.tokens), dtype=np.int64)
            lanes = StepLanes(sequence=np.full_like(tokens, number), token=tokens, context=sequence.context + tokens)
            compute, work = self.setup.costs.durations(graph, lanes)
            sram = self._sram(graph, lanes)
            for lane, token in enumerate(tokens.tolist()):
                of_lane = sram[:, lane]
                yield self._step(graph, number, token, sequence.context + token, compute[:, lane], work[:, lane], of_lane)

    def of_batch(self, loop: int, batch: Batch) -> Step:
        """The next step of a loop."""
        assert self.setup.graphs is not None
        graph = self.setup.graphs(batch.shape)
        lanes = lanes_of(loop, self.released[loop], batch)
        self.released[loop] += 1
        compute, work = self.setup.costs.durations(graph, lanes)
        token, context = int(lanes.token[0]), int(lanes.context[0])
        return self._step(graph, loop, token, context, compute[:, 0], work[:, 0], self._sram(graph, lanes)[:, 0], batch)

    def _sram(self, graph: TaskGraph, lanes: StepLanes) -> IntArray:
        """Bytes that operands take in SRAM [operand, lane]; no operands if it is unbounded."""
        if self.setup.sram is None:
            return np.zeros((0, len(lanes.context)), dtype=np.int64)
        return sram_use(self.setup, graph, lanes)

    def _step(
        self, graph: TaskGraph, number: int, token: int, context: int, compute: IntArray, work: IntArray, sram: IntArray,
        batch: Batch | None = None,
    ) -> Step:  # fmt: skip
        """A step that is released now. compute, work: ps [task]. sram: bytes [operand]."""
        columns = self.columns.get(id(graph))
        if columns is None:
            columns = self.columns[id(graph)] = GraphColumns(graph, self.setup)
        step = Step(
            sequence=number, token=token, context=context, columns=columns, age=self._age(), released=self.env.now, batch=batch,
            sram=dict(zip(columns.users, sram.tolist(), strict=True)), admitted=columns.start[:-1],
            more_admitted=self.env.event(), done=self.env.event(), left=len(graph),
        )  # fmt: skip
        rank = self.setup.scheduler.ranks(StepView(graph, step.age, compute, work)).tolist()
        owner, dma = self._owners(columns, number, batch)
        each = zip(
            rank,
            columns.chain,
            owner,
            dma,
            compute.tolist(),
            work.tolist(),
            columns.launch,
            columns.inputs,
            columns.on_engine,
            strict=True,
        )
        step.tasks = [Task(step, task, (number, token, task), *values) for task, values in enumerate(each)]
        for task, users in columns.users.items():
            step.tasks[task].admitted, step.tasks[task].users = False, users
        return step

    def _age(self) -> int:
        """The age of a step that is released now: the same for all steps of an instant."""
        if self.env.now != self.last_release:
            self.age, self.last_release = self.age + 1, self.env.now
        return self.age

    def _owners(self, columns: GraphColumns, number: int, batch: Batch | None) -> tuple[list[int], list[int]]:
        """The owner of each task, and the DMA that moves it, as numbers [task].

        In a batch, a task that serves one member is owned by its sequence and moved by its DMA. Tasks that serve several
        belong to the loop, whose number comes after those of all sequences. The only member of a batch owns all tasks, but
        they are still moved by two DMAs.
        """
        if columns.member is None:
            same = [number if batch is None else batch.members[0].sequence] * len(columns.inputs)
            return same, same
        if batch is None:  # a step without its batch, alone: members only need numbers that differ
            dma = [member + 1 for member in columns.member]
            return dma, dma
        loop = len(self.setup.sequences) + number
        dma = [batch.members[member].sequence if member >= 0 else loop for member in columns.member]
        return dma if len(batch.members) > 1 else [batch.members[0].sequence] * len(dma), dma
