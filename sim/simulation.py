"""Simulate: sequences on a machine, in SimPy, to an event log. Plain values in, columns out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from sim.cost import CostModel, StepLanes
from sim.decode import Decoder, Step, known_sequence, sampled_sequence
from sim.errors import InputError, SimulationError
from sim.eventlog import EventLog, GrantTable, StepTable, TaskTable
from sim.graph import QUANTITIES, IntArray
from sim.hardware.arbiters import Arbiter, Transfer
from sim.hardware.channel import Channel
from sim.hardware.channels import Channels, Route
from sim.hardware.instant import Environment
from sim.lowering import MOST_TILES
from sim.requests import Request
from sim.scheduling import Scheduler, StepView
from sim.tasks import TaskGraph
from sim.units import format_bytes

LANES = 64  # steps costed at once: enough to make NumPy's overhead vanish, few enough to keep the columns in cache

#: Program order packs (sequence, token, task) into one int64: 2**19 tasks a step, 2**24 tokens, 2**20 sequences.
SEQUENCE_BITS, TOKEN_BITS = 43, 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that a simulation needs.

    graph: the task graph of every step. arbiter: each channel of each run has a copy of its own. bandwidth: of each channel,
    bytes/s (kept with the log, it does not enter times). latency: ps. sram: bytes, None if unbounded.
    """

    graph: TaskGraph
    sequences: Sequence[Request]
    dependency: Literal["sampled", "known"]
    costs: CostModel
    engines: int
    scheduler: Scheduler
    overlap: bool
    arbiter: Arbiter
    bandwidth: int
    channels: int = 1
    route: Route = "interleaved"
    latency: int = 0
    sram: int | None = None


def simulate(setup: Setup) -> EventLog:
    """Run it. Raises InputError if operands cannot fit SRAM, SimulationError if the simulation cannot end."""
    env = Environment()
    record = _Record(setup)
    channels = [
        Channel(env, deepcopy(setup.arbiter), latency=setup.latency, record=partial(record.grant, number))
        for number in range(setup.channels)
    ]
    channel = channels[0] if len(channels) == 1 else Channels(channels, setup.route)
    instants: dict[int, int] = {}  # time of a release -> its number: steps released together are of one age
    chains = setup.scheduler.chains(setup.graph)

    def rank(step: Step) -> None:
        step.age = instants.setdefault(env.now, len(instants))
        view = StepView(step.graph, step.age, np.asarray(step.compute), np.asarray(step.work))
        step.rank, step.chain = setup.scheduler.ranks(view).tolist(), chains

    decoder = Decoder(
        env, engines=setup.engines, limit=setup.scheduler.engines, overlap=setup.overlap, channel=channel, sram=setup.sram,
        rank=rank,
    )  # fmt: skip
    factory = _Steps(env, setup, record)
    for number, sequence in enumerate(setup.sequences):
        steps = factory.of(number, sequence)
        process = (
            sampled_sequence(decoder, sequence.arrival, steps)
            if setup.dependency == "sampled"
            else known_sequence(decoder, sequence.arrival, list(steps))
        )
        env.process(process)
    env.run()
    return record.log()


class _Steps:
    """Makes the steps of a sequence as they are needed, costing them some lanes at a time."""

    def __init__(self, env: Environment, setup: Setup, record: _Record) -> None:
        self.env, self.setup, self.record = env, setup, record
        graph = setup.graph
        self.waiting = np.diff(graph.input_start).tolist()
        outputs, start = graph.outputs.tolist(), graph.output_start.tolist()
        self.outputs = [outputs[start[t] : start[t + 1]] for t in range(len(graph))]
        self.held = graph.engine.tolist()
        self.prefetch = np.flatnonzero(graph.prefetch).tolist()
        self.sram = sram_use(setup) if setup.sram is not None else {}

    def of(self, number: int, sequence: Request) -> Iterator[Step]:
        for first in range(0, sequence.tokens, LANES):
            tokens = np.arange(first, min(first + LANES, sequence.tokens), dtype=np.int64)
            lanes = StepLanes(sequence=np.full_like(tokens, number), token=tokens, context=sequence.context + tokens)
            compute, work = self.setup.costs.durations(self.setup.graph, lanes)
            for lane, token in enumerate(tokens.tolist()):
                step = Step(
                    sequence=number,
                    token=token,
                    context=sequence.context + token,
                    graph=self.setup.graph,
                    program=(number << SEQUENCE_BITS) + (token << TOKEN_BITS),
                    done=self.env.event(),
                    compute=compute[:, lane].tolist(),
                    work=work[:, lane].tolist(),
                    waiting=self.waiting.copy(),
                    outputs=self.outputs,
                    held=self.held,
                    prefetch=self.prefetch,
                    sram=self.sram,
                )
                self.record.expect(step)
                yield step


def sram_use(setup: Setup) -> dict[int, int]:
    """Bytes of SRAM that the operand of each computing task takes; raises InputError if one does not fit."""
    graph = setup.graph
    costs = graph.ops.costs(0)
    moved = graph.bytes_moved(costs)
    use: dict[int, int] = {}
    for task in np.flatnonzero(graph.prefetch).tolist():
        consumer = int(graph.outputs[graph.output_start[task]])
        use[consumer] = use.get(consumer, 0) + max(1, int(moved[task]))
    if setup.sram is not None and max(use.values(), default=0) > setup.sram:
        raise InputError(_what_would_fit(graph, costs, use, setup.sram))
    return use


def _what_would_fit(graph: TaskGraph, costs: IntArray, use: dict[int, int], sram: int) -> str:
    flops, weights = costs[QUANTITIES.index("flops")].tolist(), costs[QUANTITIES.index("weight")].tolist()
    tiles: dict[str, int] = {}
    least = 0  # bytes that tiling cannot go below
    for task, size in use.items():
        op = int(graph.op[task])
        tiled = flops[op] and graph.head[task] < 0  # only products by weights
        least = max(least, -(-weights[op] // MOST_TILES) if tiled else size)
        if size > sram:
            tiles[graph.kind_of(task)] = max(tiles.get(graph.kind_of(task), 1), -(-weights[op] // max(sram, 1)))
    if least > sram:
        advice = f"tiling does not cut it below {format_bytes(least)}"
    else:
        by_kind = ", ".join(f"{kind}: {count}" for kind, count in tiles.items())
        advice = f"mapping.tiles of {max(tiles.values())} would fit" + (f", or of {{{by_kind}}}" if len(tiles) > 1 else "")
    largest = max(use, key=lambda task: use[task])
    return f"{graph.name(largest)} needs {format_bytes(use[largest])} at once, SRAM has {format_bytes(sram)}; {advice}"


class _Record:
    """Collects what happens; steps become columns as soon as they end."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.steps: dict[int, Step] = {}  # by program order, until they end
        self.done: dict[int, tuple[Step, tuple[IntArray, ...]]] = {}
        self.grants: list[tuple[int, int, int, int, int, int]] = []

    def expect(self, step: Step) -> None:
        self.steps[step.program] = step
        step.done.callbacks.append(lambda _event: self._ended(step))

    def grant(self, channel: int, transfer: Transfer, start: int, end: int, work: int) -> None:
        self.grants.append((*transfer.row, channel, start, end, work))

    def _ended(self, step: Step) -> None:
        columns = (step.engine, step.ready, step.start, step.loaded, step.end, step.compute, step.work)
        self.done[step.program] = (step, tuple(np.array(column, dtype=np.int64) for column in columns))
        for column in columns:
            column.clear()
        del self.steps[step.program]

    def log(self) -> EventLog:
        if self.steps:
            raise SimulationError(f"the simulation ended with work left: {next(iter(self.steps.values()))}")
        programs = sorted(self.done)
        steps = [self.done[program][0] for program in programs]
        n = len(self.setup.graph)
        first = np.arange(len(steps), dtype=np.int64) * n
        columns = [np.concatenate([self.done[p][1][i] for p in programs]) for i in range(7)]
        engine, ready, start, loaded, end, compute, work = columns
        tasks = TaskTable(
            step=np.repeat(np.arange(len(steps), dtype=np.int32), n),
            task=np.tile(np.arange(n, dtype=np.int32), len(steps)),
            engine=engine.astype(np.int16), ready=ready, start=start, loaded=loaded, end=end, compute=compute, work=work,
        )  # fmt: skip
        table = StepTable(
            sequence=np.array([s.sequence for s in steps], dtype=np.int32),
            token=np.array([s.token for s in steps], dtype=np.int32),
            context=np.array([s.context for s in steps], dtype=np.int64),
            graph=np.zeros(len(steps), dtype=np.int32),
            first=first,
            released=np.array([s.released for s in steps], dtype=np.int64),
            end=end.reshape(len(steps), n).max(axis=1),
        )
        grants = np.array(self.grants, dtype=np.int64).reshape(len(self.grants), 6)
        row = first[np.searchsorted(np.array(programs, dtype=np.int64), grants[:, 0])] + grants[:, 1]
        served = GrantTable(
            task=row, channel=grants[:, 2].astype(np.int16),
            start=grants[:, 3].copy(), end=grants[:, 4].copy(), work=grants[:, 5].copy(),
        )  # fmt: skip
        return EventLog(
            graphs=(self.setup.graph,), tasks=tasks, grants=served, steps=table,
            engines=self.setup.engines, channels=self.setup.channels, bandwidth=self.setup.bandwidth,
        )  # fmt: skip
