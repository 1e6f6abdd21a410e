"""Simulate: sequences on a machine, in SimPy, to an event log. Plain values in, columns out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from sim.batch import Shape
from sim.cost import CostModel
from sim.decode import Decoder, Step, batched_loop, known_sequence, sampled_sequence
from sim.errors import InputError, SimulationError
from sim.eventlog import EventLog, GrantTable, MemberTable, StepTable, TaskTable
from sim.graph import QUANTITIES, IntArray, Members, StepLanes
from sim.hardware.arbiters import Arbiter, Transfer
from sim.hardware.channel import Channel
from sim.hardware.channels import Channels, Route
from sim.hardware.instant import Environment
from sim.lowering import MOST_TILES
from sim.requests import Request
from sim.scheduling import Scheduler, StepView
from sim.serving import Batch, Batcher, Batching, loops
from sim.tasks import TaskGraph
from sim.units import format_bytes

LANES = 64  # steps costed at once: enough to make NumPy's overhead vanish, few enough to keep the columns in cache

#: Program order packs (sequence, token, task) into one int64: 2**19 tasks a step, 2**24 tokens, 2**20 sequences.
SEQUENCE_BITS, TOKEN_BITS = 43, 19


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
        return record.log(_arrival(batchers, len(setup.sequences)))
    for number, sequence in enumerate(setup.sequences):
        steps = factory.of(number, sequence)
        process = (
            sampled_sequence(decoder, sequence.arrival, steps)
            if setup.dependency == "sampled"
            else known_sequence(decoder, sequence.arrival, list(steps))
        )
        env.process(process)
    env.run()
    return record.log(np.array([request.arrival for request in setup.sequences], dtype=np.int64))


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

    def __init__(self, env: Environment, setup: Setup, record: _Record) -> None:
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


class _Record:
    """Collects what happens; steps become columns as soon as they end."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.steps: dict[int, Step] = {}  # by program order, until they end
        self.done: dict[int, tuple[Step, tuple[IntArray, ...]]] = {}
        self.grants: list[tuple[int, int, int, int, int, int]] = []
        self.members: dict[int, Batch] = {}  # by program order, of all steps that are batched

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

    def log(self, arrival: IntArray) -> EventLog:
        if self.steps:
            raise SimulationError(f"the simulation ended with work left: {next(iter(self.steps.values()))}")
        programs = sorted(self.done)
        steps = [self.done[program][0] for program in programs]
        graphs = {id(step.graph): step.graph for step in steps}
        numbers = {key: number for number, key in enumerate(graphs)}
        size = np.array([len(step.graph) for step in steps], dtype=np.int64)
        first = np.cumsum(size) - size
        columns = [np.concatenate([self.done[p][1][i] for p in programs]) for i in range(7)]
        engine, ready, start, loaded, end, compute, work = columns
        number = np.repeat(np.arange(len(steps), dtype=np.int32), size)
        tasks = TaskTable(
            step=number, task=(np.arange(len(number)) - first[number]).astype(np.int32),
            engine=engine.astype(np.int16), ready=ready, start=start, loaded=loaded, end=end, compute=compute, work=work,
        )  # fmt: skip
        table = StepTable(
            sequence=np.array([s.sequence for s in steps], dtype=np.int32),
            token=np.array([s.token for s in steps], dtype=np.int32),
            context=np.array([s.context for s in steps], dtype=np.int64),
            graph=np.array([numbers[id(s.graph)] for s in steps], dtype=np.int32),
            first=first,
            released=np.array([s.released for s in steps], dtype=np.int64),
            end=np.maximum.reduceat(end, first),
        )
        grants = np.array(self.grants, dtype=np.int64).reshape(len(self.grants), 6)
        row = first[np.searchsorted(np.array(programs, dtype=np.int64), grants[:, 0])] + grants[:, 1]
        served = GrantTable(
            task=row, channel=grants[:, 2].astype(np.int16),
            start=grants[:, 3].copy(), end=grants[:, 4].copy(), work=grants[:, 5].copy(),
        )  # fmt: skip
        return EventLog(
            graphs=tuple(graphs.values()), tasks=tasks, grants=served, steps=table,
            engines=self.setup.engines, channels=self.setup.channels, bandwidth=self.setup.bandwidth,
            batched=member_table([self.members[p] for p in programs]) if self.members else None, arrival=arrival,
        )  # fmt: skip


def member_table(batches: Sequence[Batch]) -> MemberTable:
    """Who took part in some steps that follow one another."""
    rows: list[tuple[int, ...]] = []
    for step, batch in enumerate(batches):
        rows += [(step, *member[:6]) for member in batch.members]
        rows += [(step, sequence, 0, 0, 0, 0, 1) for sequence in batch.forks]
    step, sequence, context, query, loads, logits, emitted = np.array(rows, dtype=np.int64).T
    return MemberTable(
        step=step.astype(np.int32), sequence=sequence.astype(np.int32), context=context, query=query.astype(np.int32),
        loads=loads, logits=logits.astype(np.int32), emitted=emitted.astype(np.int32),
    )  # fmt: skip
