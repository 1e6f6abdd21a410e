"""Simulate: sequences on a machine, in SimPy, to an event log. Plain values in, columns out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Literal

import numpy as np

from sim.batch import Shape
from sim.cost import CostModel
from sim.decode import Decoder, Step, batched_loop, known_sequence, sampled_sequence
from sim.errors import InputError
from sim.eventlog import EventLog
from sim.graph import QUANTITIES, IntArray, Members, StepLanes
from sim.hardware.arbiters import Arbiter, equal_shares
from sim.hardware.channel import Channel
from sim.hardware.channels import Channels, Route
from sim.hardware.fair import FairChannel
from sim.hardware.instant import Environment
from sim.lowering import MOST_TILES
from sim.record import SEQUENCE_BITS, TOKEN_BITS, Machine, Progress, Record, Spilled
from sim.requests import Request
from sim.scheduling import Scheduler, StepView
from sim.serving import Batch, Batcher, Batching, loops
from sim.tasks import TaskGraph
from sim.units import format_bytes

LANES = 64  # steps costed at once: enough to make NumPy's overhead vanish, few enough to keep the columns in cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that a simulation needs.

    graph: the task graph of a step of one sequence that decodes one token. batching: how steps are made up if there are others
    (prefill, several sequences, drafts), with `graphs`, which gives the task graph of each; then `concurrency` may limit how
    many requests there are at a time, each coming `think` ps after one has ended. arbiter: each channel of each run has a
    copy of its own. bandwidth: of each channel, bytes/s (kept with the log, it does not enter times). latency: ps. sram:
    bytes, None if unbounded.
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
    batching: Batching | None = None
    graphs: Callable[[Shape], TaskGraph] | None = None
    concurrency: int | None = None
    think: int = 0


def simulate(setup: Setup, progress: Progress | None = None) -> EventLog:
    """Run it. Raises InputError if operands cannot fit SRAM, SimulationError if the simulation cannot end."""
    record = Record(_machine(setup), progress)
    return record.log(_run(setup, record))


def simulate_in_parts(
    setup: Setup, file: BinaryIO, progress: Progress | None = None
) -> Iterator[tuple[EventLog, IntArray]]:  # fmt: skip
    """The same, as logs of some steps each, one at a time, with the place of each grant among those of the whole run.

    Steps are kept in a file until all have ended, since they need not end in program order.
    """
    record = Spilled(_machine(setup), file, progress)
    yield from record.logs(_run(setup, record))


def _machine(setup: Setup) -> Machine:
    return Machine(setup.engines, setup.channels, setup.bandwidth)


def _run(setup: Setup, record: Record) -> IntArray:
    """Run it; returns when each sequence came."""
    env = Environment()
    channels = [_channel(env, setup, record, number) for number in range(setup.channels)]
    channel = channels[0] if len(channels) == 1 else Channels(channels, setup.route)
    instants: dict[int, int] = {}  # time of a release -> its number: steps released together are of one age
    chains: dict[int, Sequence[int] | None] = {}

    def rank(step: Step) -> None:
        step.age = instants.setdefault(env.now, len(instants))
        view = StepView(step.graph, step.age, np.asarray(step.compute), np.asarray(step.work))
        if id(step.graph) not in chains:
            chains[id(step.graph)] = setup.scheduler.chains(step.graph)
        step.rank, step.chain = setup.scheduler.ranks(view).tolist(), chains[id(step.graph)]

    decoder = Decoder(
        env, engines=setup.engines, limit=setup.scheduler.engines, overlap=setup.overlap, channel=channel, sram=setup.sram,
        rank=rank,
    )  # fmt: skip
    factory = _Steps(env, setup, record)
    if setup.batching is not None:
        batchers = loops(setup.batching, setup.sequences, concurrency=setup.concurrency, think=setup.think)
        for number, batcher in enumerate(batchers):
            env.process(batched_loop(decoder, batcher, partial(factory.batch, number)))
        env.run()
        return _arrival(batchers, len(setup.sequences))
    for number, sequence in enumerate(setup.sequences):
        steps = factory.of(number, sequence)
        process = (
            sampled_sequence(decoder, sequence.arrival, steps)
            if setup.dependency == "sampled"
            else known_sequence(decoder, sequence.arrival, list(steps))
        )
        env.process(process)
    env.run()
    return np.array([request.arrival for request in setup.sequences], dtype=np.int64)


def _channel(env: Environment, setup: Setup, record: Record, number: int) -> Channel:
    arbiter = deepcopy(setup.arbiter)
    equal = equal_shares(arbiter)
    if equal is not None:
        return FairChannel(env, equal, latency=setup.latency, record=partial(record.grants, number))
    return Channel(env, arbiter, latency=setup.latency, record=partial(record.grant, number))


def _arrival(batchers: Sequence[Batcher], sequences: int) -> IntArray:
    """When each sequence came."""
    times: dict[int, int] = {}
    for batcher in batchers:
        times |= batcher.arrivals.times
    return np.array([times[number] for number in range(sequences)], dtype=np.int64)


class _Form:
    """What the steps of one graph have in common."""

    def __init__(self, graph: TaskGraph) -> None:
        self.graph = graph
        self.waiting = np.diff(graph.input_start).tolist()
        outputs, start = graph.outputs.tolist(), graph.output_start.tolist()
        self.outputs = [outputs[start[t] : start[t + 1]] for t in range(len(graph))]
        self.held = graph.engine.tolist()
        self.prefetch = np.flatnonzero(graph.prefetch).tolist()
        self.member = graph.ops.member[graph.op].tolist() if graph.ops.members is not None else None


class _Steps:
    """Makes the steps of a sequence as they are needed, costing them some lanes at a time."""

    def __init__(self, env: Environment, setup: Setup, record: Record) -> None:
        self.env, self.setup, self.record = env, setup, record
        self.forms: dict[int, _Form] = {}  # by graph
        self.taken: Counter[int] = Counter()  # loop -> its steps so far

    def of(self, number: int, sequence: Request) -> Iterator[Step]:
        """The steps of a sequence that decodes, one token each."""
        graph = self.setup.graph
        sram = sram_use(self.setup) if self.setup.sram is not None else {}
        for first in range(0, sequence.tokens, LANES):
            tokens = np.arange(first, min(first + LANES, sequence.tokens), dtype=np.int64)
            lanes = StepLanes(sequence=np.full_like(tokens, number), token=tokens, context=sequence.context + tokens)
            compute, work = self.setup.costs.durations(graph, lanes)
            for lane, token in enumerate(tokens.tolist()):
                yield self._step(graph, number, token, sequence.context + token, compute[:, lane], work[:, lane], sram)

    def batch(self, number: int, batch: Batch) -> Step:
        """The next step of a loop."""
        assert self.setup.graphs is not None
        graph = self.setup.graphs(batch.shape)
        lanes = lanes_of(number, self.taken[number], batch)
        self.taken[number] += 1
        compute, work = self.setup.costs.durations(graph, lanes)
        sram = sram_use(self.setup, graph, lanes) if self.setup.sram is not None else {}
        token, context = int(lanes.token[0]), int(lanes.context[0])
        step = self._step(graph, number, token, context, compute[:, 0], work[:, 0], sram, batch)
        self.record.members[step.program] = batch
        return step

    def _step(
        self, graph: TaskGraph, number: int, token: int, context: int, compute: IntArray, work: IntArray, sram: dict[int, int],
        batch: Batch | None = None,
    ) -> Step:  # fmt: skip
        if id(graph) not in self.forms:
            self.forms[id(graph)] = _Form(graph)
        form = self.forms[id(graph)]
        owner: Sequence[int]
        queues: Sequence[int]
        if form.member is None:
            owner = queues = Same(number if batch is None else batch.members[0].sequence)
        elif batch is None:  # on its own, it does not matter who takes part
            owner = queues = [member + 1 for member in form.member]
        else:
            others = len(self.setup.sequences) + number
            queues = [batch.members[member].sequence if member >= 0 else others for member in form.member]
            owner = queues if len(batch.members) > 1 else Same(batch.members[0].sequence)
        step = Step(
            sequence=number,
            token=token,
            context=context,
            graph=graph,
            program=(number << SEQUENCE_BITS) + (token << TOKEN_BITS),
            done=self.env.event(),
            compute=compute.tolist(),
            work=work.tolist(),
            owner=owner,
            queues=queues,
            waiting=form.waiting.copy(),
            outputs=form.outputs,
            held=form.held,
            prefetch=form.prefetch,
            sram=sram,
        )
        self.record.expect(step)
        return step


class Same(Sequence[int]):
    """One number for all tasks of a step."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getitem__(self, _task: Any) -> Any:
        return self.number

    def __len__(self) -> int:
        raise TypeError("one number for any task")


def lanes_of(number: int, token: int, batch: Batch) -> StepLanes:
    """A step of a loop, to be costed."""
    columns = [np.array(column, dtype=np.int64)[:, None] for column in zip(*batch.members, strict=True)]
    sequence, context, query, loads, logits = columns[:5]
    return StepLanes(
        sequence=np.array([number]), token=np.array([token]), context=context.sum(axis=0),
        members=Members(sequence=sequence, context=context, query=query, loads=loads, logits=logits.sum(axis=0)),
    )  # fmt: skip


def side_by_side(steps: Sequence[StepLanes]) -> StepLanes:
    """Steps of one graph as lanes."""
    members = [step.members for step in steps if step.members is not None]
    joined = None
    if members:
        columns = {
            name: np.concatenate([getattr(m, name) for m in members], axis=-1)
            for name in ("sequence", "context", "query", "loads", "logits")
        }
        joined = Members(**columns)
    sequence, token, context = (
        np.concatenate([getattr(step, name) for step in steps]) for name in ("sequence", "token", "context")
    )
    return StepLanes(sequence=sequence, token=token, context=context, members=joined)


class SramError(InputError):
    """Operands of a step do not fit SRAM."""


def sram_use(setup: Setup, graph: TaskGraph | None = None, lanes: StepLanes | None = None) -> dict[int, int]:
    """Bytes of SRAM that the operand of each computing task takes; raises SramError if one does not fit.

    Of the step that decodes one token, or of this one.
    """
    graph = setup.graph if graph is None else graph
    costs = graph.ops.costs(0) if lanes is None else graph.ops.costs_of(lanes)[:, :, 0]
    moved = graph.bytes_moved(costs)
    use: dict[int, int] = {}
    for task in np.flatnonzero(graph.prefetch).tolist():
        consumer = int(graph.outputs[graph.output_start[task]])
        use[consumer] = use.get(consumer, 0) + max(1, int(moved[task]))
    if setup.sram is not None and max(use.values(), default=0) > setup.sram:
        tokens = 1 if lanes is None or lanes.members is None else int(lanes.members.query.sum())
        raise SramError(_what_would_fit(graph, costs, use, setup.sram, tokens))
    return use


def _what_would_fit(graph: TaskGraph, costs: IntArray, use: dict[int, int], sram: int, tokens: int) -> str:
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
        if most := tokens * sram // least if tokens > 1 else 0:  # rows of the embedding: one for each new token
            advice += f", a step of {most} new tokens instead of {tokens} would (workload.prefill.chunk)"
    else:
        by_kind = ", ".join(f"{kind}: {count}" for kind, count in tiles.items())
        advice = f"mapping.tiles of {max(tiles.values())} would fit" + (f", or of {{{by_kind}}}" if len(tiles) > 1 else "")
    largest = max(use, key=lambda task: use[task])
    return f"{graph.name(largest)} needs {format_bytes(use[largest])} at once, SRAM has {format_bytes(sram)}; {advice}"
