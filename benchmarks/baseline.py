"""What the simulator is compared with: the same decode step written the way SimPy's own examples are written.

A process per task that waits for the processes of its inputs, `Resource.request` for engines, DMA queues and the channel. It
covers what the compared scenarios use: transfers by DMA (`prefetch`), unbounded SRAM, one `fifo` channel, any engine for any
task.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from sim.cost import StepLanes
from sim.graph import IntArray
from sim.simulation import Setup

Process = Generator[simpy.Event, Any, None]


class Machine:
    """Engines, two DMA queues (operands that are prefetched, all else) and a channel, as resources."""

    def __init__(self, env: simpy.Environment, engines: int, latency: int) -> None:
        self.env, self.latency = env, latency
        self.engines = simpy.Resource(env, capacity=engines)
        self.queues = {prefetch: simpy.Resource(env, capacity=1) for prefetch in (True, False)}
        self.channel = simpy.Resource(env, capacity=1)

    def compute(self, inputs: list[simpy.Event], time: int) -> Process:
        yield self.env.all_of(inputs)
        with self.engines.request() as engine:
            yield engine
            yield self.env.timeout(time)

    def transfer(self, inputs: list[simpy.Event], time: int, *, prefetch: bool) -> Process:
        yield self.env.all_of(inputs)
        yield self.env.timeout(self.latency)
        with self.queues[prefetch].request() as queue:
            yield queue
            with self.channel.request() as channel:
                yield channel
                yield self.env.timeout(time)


def step(env: simpy.Environment, machine: Machine, setup: Setup, compute: list[int], work: list[int]) -> Process:
    """One decode step: start a process per task and wait for all."""
    graph = setup.graph
    start, inputs = graph.input_start.tolist(), graph.inputs.tolist()
    tasks: list[simpy.Process] = []
    for task, (held, prefetch) in enumerate(zip(graph.engine.tolist(), graph.prefetch.tolist(), strict=True)):
        needed: list[simpy.Event] = [tasks[source] for source in inputs[start[task] : start[task + 1]]]
        run = machine.compute(needed, compute[task]) if held else machine.transfer(needed, work[task], prefetch=prefetch)
        tasks.append(env.process(run))
    yield env.all_of(tasks)


def simulate(setup: Setup) -> int:
    """The makespan of a setup with one sequence, in ps."""
    (request,) = setup.sequences
    env = simpy.Environment()
    machine = Machine(env, setup.engines, setup.latency)

    def sequence() -> Process:
        for token in range(request.tokens):
            context = request.context + token
            compute, work = durations(setup, context)
            yield env.process(step(env, machine, setup, compute[:, 0].tolist(), work[:, 0].tolist()))

    env.process(sequence())
    env.run()
    return int(env.now)


def durations(setup: Setup, context: int) -> tuple[IntArray, IntArray]:
    lane = StepLanes(sequence=np.array([0]), token=np.array([0]), context=np.array([context]))
    return setup.costs.durations(setup.graph, lane)


def timeouts(count: int) -> int:
    """One process that does nothing but wait: what SimPy can do at most."""
    env = simpy.Environment()

    def wait() -> Process:
        for _ in range(count):
            yield env.timeout(1)

    env.process(wait())
    env.run()
    return int(env.now)
