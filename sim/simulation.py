"""Simulate: sequences on a machine, in SimPy, to an event log. Plain values in, columns out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from sim.decode import Decoder, Step, batched_loop, known_sequence, sampled_sequence
from sim.eventlog import EventLog
from sim.executors.setup import Setup, lanes_of, sram_use
from sim.graph import IntArray, Members, StepLanes
from sim.hardware.arbiters import equal_shares
from sim.hardware.channel import Channel
from sim.hardware.channels import Channels
from sim.hardware.fair import FairChannel
from sim.hardware.instant import Environment
from sim.record import SEQUENCE_BITS, TOKEN_BITS, Machine, Progress, Record, Spilled
from sim.requests import Request
from sim.scheduling import StepView
from sim.serving import Batch, Batcher, loops
from sim.tasks import TaskGraph

LANES = 64  # steps costed at once: enough to make NumPy's overhead vanish, few enough to keep the columns in cache


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


def side_by_side(steps: Sequence[StepLanes]) -> StepLanes:
    """Steps of one graph as lanes."""
    members = [step.members for step in steps if step.members is not None]
    joined = Members.side_by_side(members) if members else None
    sequence, token, context = (
        np.concatenate([getattr(step, name) for step in steps]) for name in ("sequence", "token", "context")
    )
    return StepLanes(sequence=sequence, token=token, context=context, members=joined)
