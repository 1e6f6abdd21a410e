"""The program that the simulator is compared with: the same decode steps in idiomatic SimPy, as its own examples are written.

Start a process for each task, which waits for the processes of its inputs; engines, DMA queues and the channel are resources,
SRAM is a container. It covers what the compared workloads use: `prefetch`, `stream` and `blocking` execution, several
sequences, known tokens, bounded SRAM, latency, several interleaved channels, and a channel that serves transfers one by one
(`fifo`, or by urgency of their kind) or all at once (equally, or by weight). Any engine takes any task, in the order in which
they ask. Not covered: batches, ports, efficiency curves, other schedulers. Its shared channel rounds a little differently, so
makespans may differ in the ppm, and more where the order of equals decides.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import simpy

from models.graph import IntArray
from sim.base.units import ceil_div
from sim.cost import StepLanes
from sim.executors.operands import sram_use
from sim.executors.setup import Setup
from sim.mapping.operands import operands_of
from sim.workload.requests import Request

Process = Generator[simpy.Event, Any, None]


class Load(NamedTuple):
    """Bytes to move. work: ps at the full speed of one channel."""

    work: int
    kind: str


class Exclusive:
    """A channel for one transfer at a time."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.turn: Any = simpy.Resource(env, capacity=1)

    def request(self, _load: Load) -> Any:
        return self.turn.request()

    def serve(self, load: Load) -> Process:
        with self.request(load) as turn:
            yield turn
            yield self.env.timeout(load.work)


class Urgent(Exclusive):
    """The most urgent kind goes first, and is not interrupted."""

    def __init__(self, env: simpy.Environment, classes: Sequence[str]) -> None:
        super().__init__(env)
        self.turn = simpy.PriorityResource(env, capacity=1)
        self.level = {kind: level for level, kind in enumerate(classes)}

    def request(self, load: Load) -> Any:
        return self.turn.request(priority=self.level.get(load.kind, len(self.level)))


@dataclass(slots=True, eq=False)
class Job:
    """A transfer at a shared channel."""

    left: int
    weight: int
    done: simpy.Event


class Shared:
    """A channel for all transfers at once, with shares in proportion to weights: one process that serves them."""

    def __init__(self, env: simpy.Environment, weights: Mapping[str, int]) -> None:
        self.env, self.weights = env, weights
        self.arrived: list[Job] = []
        self.changed = env.event()
        env.process(self.run())

    def serve(self, load: Load) -> Process:
        job = Job(load.work, self.weights.get(load.kind, 1), self.env.event())
        self.arrived.append(job)
        if not self.changed.triggered:
            self.changed.succeed()
        yield job.done

    def run(self) -> Process:
        jobs: list[Job] = []
        while True:
            if not jobs:
                yield self.changed
            else:
                total = sum(job.weight for job in jobs)
                since = int(self.env.now)
                first = min(ceil_div(job.left * total, job.weight) for job in jobs)
                yield self.env.timeout(first) | self.changed
                for job in jobs:
                    job.left -= (int(self.env.now) - since) * job.weight // total
                    if job.left <= 0:
                        job.done.succeed()
                jobs = [job for job in jobs if job.left > 0]
            if self.changed.triggered:
                self.changed = self.env.event()
                jobs += self.arrived
                self.arrived = []


def channel(env: simpy.Environment, arbiter: str, options: Mapping[str, Any]) -> Exclusive | Shared:
    if arbiter == "fifo":
        return Exclusive(env)
    if arbiter == "priority" and not isinstance(options["classes"], str):
        return Urgent(env, options["classes"])
    if arbiter in ("processor_sharing", "weighted"):
        return Shared(env, options.get("weights", {}))
    raise NotImplementedError(f"the idiomatic program has no {arbiter} with {options}")


class Machine:
    """Engines, two DMA queues for each sequence (operands that are prefetched, all else), channels and SRAM."""

    def __init__(self, env: simpy.Environment, setup: Setup, arbiter: str, options: Mapping[str, Any]) -> None:
        self.env = env
        self.latency: int = setup.latency
        self.overlap = setup.overlap
        self.engines = simpy.Resource(env, capacity=setup.engines)
        self.queues = [{early: simpy.Resource(env, capacity=1) for early in (True, False)} for _ in setup.sequences]
        self.channels = [channel(env, arbiter, options) for _ in range(setup.channels)]
        self.sram = None if setup.sram is None else simpy.Container(env, capacity=setup.sram[0], init=setup.sram[0])

    def move(self, load: Load) -> Process:
        """Move bytes through one channel, or in equal parts through all."""
        if len(self.channels) == 1:
            yield from self.channels[0].serve(load)
        else:
            count = len(self.channels)
            parts = [Load((load.work + i) // count, load.kind) for i in range(count)]
            yield self.env.all_of([
                self.env.process(each.serve(part)) for each, part in zip(self.channels, parts, strict=True) if part.work
            ])  # fmt: skip

    def compute(self, inputs: Sequence[simpy.Event], time: int, load: Load | None) -> Process:
        """A task on an engine, which loads the operands that are its own."""
        yield self.env.all_of(inputs)
        with self.engines.request() as engine:
            yield engine
            if load is None:
                yield self.env.timeout(time)
            elif self.overlap:
                yield self.env.all_of([self.env.process(self.operands(load)), self.env.timeout(time)])
            else:
                yield from self.operands(load)
                yield self.env.timeout(time)

    def operands(self, load: Load) -> Process:
        yield self.env.timeout(self.latency)
        yield from self.move(load)

    def transfer(self, inputs: Sequence[simpy.Event], load: Load, queue: simpy.Resource) -> Process:
        """A transfer by DMA."""
        yield self.env.all_of(inputs)
        yield self.env.timeout(self.latency)
        with queue.request() as turn:
            yield turn
            yield from self.move(load)


class Decode:
    """Decode steps on a machine."""

    def __init__(self, env: simpy.Environment, setup: Setup, arbiter: str, options: Mapping[str, Any]) -> None:
        self.env, self.setup, self.graph = env, setup, setup.graph
        self.machine = Machine(env, setup, arbiter, options)
        graph = setup.graph
        start, inputs = graph.input_start.tolist(), graph.inputs.tolist()
        self.inputs = [inputs[start[task] : start[task + 1]] for task in range(len(graph))]
        self.held, self.prefetch, self.kinds = graph.engine.tolist(), graph.prefetch.tolist(), graph.kind.tolist()
        self.groups = operands_of(graph).groups() if setup.sram is not None else []
        used, first = operands_of(graph).used.tolist(), operands_of(graph).used_start.tolist()
        self.users: dict[int, list[int]] = {load: [] for group in self.groups for load in group}
        for user in range(len(graph)) if self.groups else ():
            for load in used[first[user] : first[user + 1]]:
                self.users[load].append(user)
        self.admitting: dict[int, simpy.Process] = {}  # by sequence, the last step whose operands ask for SRAM
        self.layers = [[layer for layer, loads in graph.kv_loads.items() if task in loads] for task in range(len(graph))]

    def start(self, number: int, context: int, stored: Mapping[int, simpy.Event]) -> list[simpy.Process]:
        """A process for each task of a step. stored: events that loads of a layer's KV cache wait for, too."""
        compute, work = (column[:, 0].tolist() for column in durations(self.setup, context))
        admitted = {load: self.env.event() for load in self.users}
        machine, tasks = self.machine, list[simpy.Process]()
        for task, held in enumerate(self.held):
            needed: list[simpy.Event] = [tasks[source] for source in self.inputs[task]]
            needed += [stored[layer] for layer in self.layers[task] if layer in stored]
            needed += [admitted[task]] if task in admitted else []
            load = Load(work[task], self.graph.kinds[self.kinds[task]]) if work[task] else None
            if held:
                run = machine.compute(needed, compute[task], load)
            else:
                assert load is not None
                run = machine.transfer(needed, load, machine.queues[number][self.prefetch[task]])
            tasks.append(self.env.process(run))
        if machine.sram is not None:
            self.admitting[number] = self.env.process(
                self.admit(machine.sram, self.admitting.get(number), context, admitted, tasks)
            )
        return tasks

    def admit(
        self, sram: simpy.Container, before: simpy.Event | None, context: int, admitted: Mapping[int, simpy.Event],
        tasks: Sequence[simpy.Process],
    ) -> Process:  # fmt: skip
        """Give SRAM to the operands of a step in the order in which tasks need them, after those of the step before."""
        sizes = sram_use(self.setup, self.graph, lane(context))[:, 0].tolist()
        if before is not None:
            yield before
        of = dict(zip(self.users, sizes, strict=True))
        for group in self.groups:
            yield sram.get(sum(of[load] for load in group))
            for load in group:
                admitted[load].succeed()
                self.env.process(self.free(sram, of[load], [tasks[user] for user in self.users[load]]))

    def free(self, sram: simpy.Container, size: int, users: Sequence[simpy.Event]) -> Process:
        """Give the bytes of an operand back when all tasks that use it have ended."""
        yield self.env.all_of(users)
        yield sram.put(size)

    def sampled(self, number: int, request: Request) -> Process:
        """One token after the other."""
        yield self.env.timeout(request.arrival)
        for token in range(request.tokens):
            yield self.env.all_of(self.start(number, request.context + token, {}))

    def known(self, number: int, request: Request) -> Process:
        """All tokens at once; only the KV cache orders them, layer by layer."""
        yield self.env.timeout(request.arrival)
        stored: dict[int, simpy.Event] = {}
        every: list[simpy.Event] = []
        for token in range(request.tokens):
            tasks = self.start(number, request.context + token, stored)
            for layer, stores in self.graph.kv_stores.items():
                before = [stored[layer]] if layer in stored else []
                stored[layer] = self.env.all_of([*before, *(tasks[store] for store in stores)])
            every += tasks
        yield self.env.all_of(every)


def simulate(setup: Setup, arbiter: str = "fifo", options: Mapping[str, Any] | None = None) -> int:
    """The makespan of a setup without batches, in ps. arbiter, options: as the scenario has them."""
    env = simpy.Environment()
    decode = Decode(env, setup, arbiter, options or {})
    run = decode.sampled if setup.dependency == "sampled" else decode.known
    env.run(until=env.all_of([env.process(run(number, request)) for number, request in enumerate(setup.sequences)]))
    return int(env.now)


def durations(setup: Setup, context: int) -> tuple[IntArray, IntArray]:
    """Time of each task on an engine and on the channel, in ps, each [task, 1]."""
    return setup.costs.durations(setup.graph, lane(context))


def lane(context: int) -> StepLanes:
    """A step that decodes one token at a context."""
    return StepLanes(sequence=np.array([0]), token=np.array([0]), context=np.array([context]))


def timeouts(count: int) -> int:
    """A process that only waits: the upper bound of what SimPy can do."""
    env = simpy.Environment()

    def wait() -> Process:
        for _ in range(count):
            yield env.timeout(1)

    env.process(wait())
    env.run()
    return int(env.now)
