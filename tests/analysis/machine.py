"""A machine whose times can be done in one's head: an op takes as many ps as it has FLOPs, and as it has bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from models.graph import QUANTITIES, IntArray, OpGraph
from sim.analysis.rules import Rules
from sim.cost import StepLanes
from sim.executors.reference import simulate
from sim.executors.setup import Link, Setup
from sim.log.tables import EventLog
from sim.machine.arbiters import ARBITERS
from sim.machine.machine import alike_devices
from sim.machine.schedulers import SCHEDULERS
from sim.mapping.lowering import lower
from sim.mapping.operands import operand_bytes, operands_of
from sim.mapping.settings import ModelMapping
from sim.mapping.tasks import TaskGraph
from sim.workload.requests import Request


class UnitCosts:
    """1 FLOP takes 1 ps on an engine, 1 byte takes 1 ps on a free channel. launch: ps before a task loads operands."""

    launch = 0

    def launches(self, graph: TaskGraph) -> IntArray:
        return np.full(len(graph), self.launch, dtype=np.int64)

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        costs = graph.ops.costs(steps.context)
        flops = graph.share(costs[QUANTITIES.index("flops")])
        return (flops.clip(1) * graph.computes[:, None], graph.bytes_moved(costs).clip(1) * (graph.moves != 0)[:, None])


class UnevenCosts(UnitCosts):
    """Each token computes at its own pace, so that stores of one token may end before those of the tokens before it.

    paces: how many times longer than others; token t takes that at t, modulo their number.
    """

    def __init__(self, *paces: int) -> None:
        self._paces = np.array(paces, dtype=np.int64)

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work = super().durations(graph, steps)
        return compute * self._paces[steps.token % len(self._paces)], work


def least_sram(graph: TaskGraph) -> int:
    """Bytes of SRAM that hold any operands that are needed together."""
    operands = operands_of(graph)
    return int(operands.in_groups(operand_bytes(graph, operands, graph.ops.costs(0))).max(initial=0))


def setup(
    ops: OpGraph, *, execution: str = "prefetch", engines: int = 1, arbiter: str = "fifo", scheduler: str = "earliest",
    dependency: str = "sampled", requests: Sequence[tuple[int, int]] = ((1, 0),), latency: int = 0,
    cap: tuple[int, int] = (1, 1), sram: int | None = None, spare: int | None = None, weights: str = "streamed",
    channels: int = 1, route: str = "interleaved", costs: UnitCosts | None = None, launch: int = 0,
    **options: object,
) -> Setup:  # fmt: skip
    """requests: (tokens, arrival) of each sequence. spare: bytes of SRAM beside the least with which the graph can run.

    Ops on several devices pass results from one to the other at once; their links have no transfers.
    """
    devices = 1 + int(ops.device.max(initial=0))
    made = alike_devices(devices, engines=engines, channels=channels, link=1)
    graph = lower(ops, ModelMapping(execution=execution, weights=weights))
    costs = costs or UnitCosts()
    costs.launch = launch
    if spare is not None:
        sram = least_sram(graph) + spare
    return Setup(
        graph=graph,
        sequences=[Request(context=0, tokens=tokens, arrival=arrival) for tokens, arrival in requests],
        dependency=dependency, costs=costs, machine=made,
        links=tuple(Link(arbiter=ARBITERS.make("fifo", {}), bandwidth=1, latency=0) for _ in made.links),
        scheduler=SCHEDULERS.make(scheduler, {}), overlap=execution == "stream",
        arbiter=ARBITERS.make(arbiter, {"cap": cap, **options}), bandwidth=10**12,
        route=route, latency=latency, sram=None if sram is None else (sram,) * devices, resident=(0,) * devices,
    )  # fmt: skip


def with_sram(made: Setup, sram: int) -> Setup:
    """The same setup with so many bytes of SRAM for operands on each device."""
    return replace(made, sram=(sram,) * made.devices)


def kind_of(log: EventLog, row: int) -> str:
    """Kind of the task of a row."""
    return log.graphs[log.steps.graph[log.tasks.step[row]]].kind_of(int(log.tasks.task[row]))


def rules_of(made: Setup, execution: str) -> Rules:
    return Rules(
        arrivals=tuple(request.arrival for request in made.sequences), dependency=made.dependency, execution=execution,
        latency=made.latency, cap=made.arbiter.cap, sram=made.sram,
        stripes=made.memory_channels_each if made.route == "interleaved" else 1, efficiency=(Fraction(1), Fraction(1)),
        work_conserving_channel=made.arbiter.work_conserving, work_conserving_scheduler=made.scheduler.work_conserving,
    )  # fmt: skip


def run(ops: OpGraph, *, execution: str = "prefetch", **rest: object) -> tuple[EventLog, Rules]:
    made = setup(ops, execution=execution, **rest)
    return simulate(made), rules_of(made, execution)
