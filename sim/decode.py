"""Decode as SimPy processes: a step releases its tasks and waits for its last; a sequence goes through its tokens.

sequence ─ sampled: step, step, step, ...             each a barrier for the next
         └ known:   all steps at once                 only the KV cache orders them, layer by layer
loop     ─ batched: step, step, ...                   of whoever is there; each a barrier for the next
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import simpy

from sim.errors import SimulationError
from sim.hardware.arbiters import Transfer
from sim.hardware.channel import Channel
from sim.hardware.channels import Channels
from sim.hardware.engines import EnginePool
from sim.hardware.instant import Environment
from sim.serving import Batch, Batcher
from sim.tasks import TaskGraph


@dataclass(slots=True, eq=False)
class Step:
    """One decode step while it runs: columns with one entry per task of its graph.

    sequence, token: which; where steps are batched, the number of the loop and of its step. owner: the sequence of each task,
    as arbiters see it; queues: whose DMA moves it. What serves several sequences has a number of its own in both. waiting:
    inputs that have not ended yet. sram: bytes that a task frees in SRAM when it ends. age: number of its release.
    The last five are the record.
    """

    sequence: int
    token: int
    context: int
    graph: TaskGraph
    program: int
    done: simpy.Event
    compute: list[int]
    work: list[int]
    owner: Sequence[int]
    queues: Sequence[int]
    waiting: list[int]
    outputs: list[list[int]]
    held: list[bool]
    prefetch: list[int]
    sram: dict[int, int]
    rank: Sequence[int] = ()
    chain: Sequence[int] | None = None
    home: dict[int, int] = field(default_factory=dict)
    age: int = 0
    left: int = 0
    released: int = -1
    ready: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    loaded: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    engine: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.compute)
        self.left = n
        self.ready, self.start, self.loaded, self.end, self.engine = ([-1] * n for _ in range(5))

    def __repr__(self) -> str:
        return f"Step(token {self.sequence}.{self.token}, {self.left} of {len(self.compute)} tasks left)"


class KVOrder:
    """The order that the KV cache imposes on the known tokens of a sequence.

    A token may load a layer's cache once all earlier tokens have stored their rows there.
    """

    def __init__(self, steps: Sequence[Step], ready: Callable[[Step, int], None]) -> None:
        self.steps = steps
        self.ready = ready
        self.missing = [{layer: len(tasks) for layer, tasks in step.graph.kv_stores.items()} for step in steps]
        self.frontier: dict[int, int] = {}  # layer -> tokens that have stored, without a gap
        self.layer_of = {task: layer for tasks in steps[:1] for layer, ts in tasks.graph.kv_stores.items() for task in ts}
        for before, step in pairwise(steps):
            for layer, tasks in step.graph.kv_loads.items():
                if layer in before.graph.kv_stores:  # a cache that nobody writes is there from the start
                    for task in tasks:
                        step.waiting[task] += 1

    def ended(self, step: Step, task: int) -> None:
        """A task has ended: if it was a store that others waited for, their loads may go."""
        layer = self.layer_of.get(task)
        if layer is None:
            return
        self.missing[step.token][layer] -= 1
        frontier = self.frontier.get(layer, 0)
        while frontier < len(self.steps) and not self.missing[frontier][layer]:
            frontier += 1
            if frontier < len(self.steps):
                for load in self.steps[frontier].graph.kv_loads.get(layer, ()):
                    self.ready(self.steps[frontier], load)
        self.frontier[layer] = frontier


class Decoder:
    """Runs steps on a machine: hands ready tasks to engines and DMA, and releases what waited for those that end.

    A sequence has two DMA queues: one for weights, which are prefetched in program order, one for shared transfers. What serves
    several sequences at once goes through those of their loop.
    """

    def __init__(
        self, env: Environment, *, engines: int, limit: int | None, overlap: bool, channel: Channel | Channels,
        sram: int | None, rank: Callable[[Step], None],
    ) -> None:  # fmt: skip
        self.env = env
        self.channel = channel
        self.sram = None if sram is None else simpy.Container(env, capacity=sram, init=sram)
        self.rank = rank
        self.orders: dict[int, KVOrder] = {}
        self.pool = EnginePool(
            env, engines, limit=limit, overlap=overlap, load=self._transfer, finished=self._finished
        )  # fmt: skip

    def _transfer(self, step: Step, task: int, requester: int, ended: Callable[[], Any]) -> None:
        work = step.work[task]
        transfer = Transfer(
            (step.program, task), requester, step.graph.kind_of(task), step.owner[task], step.token, work, work,
            age=step.age, moves=int(step.graph.moves[task]),
        )  # fmt: skip
        self.channel.request(transfer, ended)

    def _dma(self, step: Step, task: int, queue: int) -> None:
        step.start[task] = self.env.now
        requester = self.pool.count + 2 * step.queues[task] + queue
        self._transfer(step, task, requester, partial(self._dma_ended, step, task))

    def _dma_ended(self, step: Step, task: int) -> None:
        step.loaded[task] = self.env.now
        self._finished(step, task)

    def input_ended(self, step: Step, task: int) -> None:
        step.waiting[task] -= 1
        if not step.waiting[task]:
            self._ready(step, task)

    def _ready(self, step: Step, task: int) -> None:
        step.ready[task] = self.env.now
        if step.held[task]:
            self.pool.offer(step, task)
        else:
            self._dma(step, task, 1)

    def _finished(self, step: Step, task: int) -> None:
        now = self.env.now
        step.end[task] = now
        waiting = step.waiting
        for output in step.outputs[task]:
            left = waiting[output] = waiting[output] - 1
            if not left:  # as in `_ready`, which once more is a call per task
                step.ready[output] = now
                if step.held[output]:
                    self.pool.offer(step, output)
                else:
                    self._dma(step, output, 1)
        if self.orders:
            self.orders[step.sequence].ended(step, task)
        if step.sram and task in step.sram and self.sram is not None:
            self.sram.put(step.sram[task])
        step.left -= 1
        if not step.left:
            step.done.succeed()

    def release(self, step: Step) -> None:
        """The step may run from now on: what needs no input is ready."""
        step.released = self.env.now
        self.rank(step)
        prefetched = set(step.prefetch)
        for task, inputs in enumerate(step.waiting):
            if not inputs and task not in prefetched:
                self._ready(step, task)

    def prefetch(self, steps: Sequence[Step]) -> Generator[simpy.Event, Any, None] | None:
        """The DMA that loads private operands in program order, as soon as SRAM has room."""
        for step in steps:
            for task in step.prefetch:
                step.ready[task] = step.released
        if self.sram is None:  # always room: no need for a process
            for step in steps:
                for task in step.prefetch:
                    self._dma(step, task, 0)
            return None
        return self._prefetch(self.sram, steps)

    def _prefetch(self, sram: simpy.Container, steps: Sequence[Step]) -> Generator[simpy.Event, Any, None]:
        for step in steps:
            for task in step.prefetch:
                yield sram.get(step.sram[step.outputs[task][0]])
                self._dma(step, task, 0)

    def run(self, steps: Sequence[Step]) -> None:
        """Release steps together."""
        for step in steps:
            self.release(step)
        process = self.prefetch(steps)
        if process is not None:
            self.env.process(process)


def decode_step(decoder: Decoder, step: Step) -> Generator[simpy.Event, Any, None]:
    """One decode step: release its tasks, wait for its last."""
    decoder.run([step])
    yield step.done


def sampled_sequence(decoder: Decoder, arrival: int, steps: Iterator[Step]) -> Generator[simpy.Event, Any, None]:
    """A sequence whose next token is known only when this one's last task has ended."""
    if arrival:
        yield decoder.env.timeout(arrival)
    for step in steps:
        yield from decode_step(decoder, step)


def batched_loop(decoder: Decoder, batcher: Batcher, step_of: Callable[[Batch], Step]) -> Generator[simpy.Event, Any, None]:
    """A loop whose steps are made up of whoever is there when each begins."""
    while True:
        now = decoder.env.now
        batch = batcher.next(now)
        if batch is not None:
            yield from decode_step(decoder, step_of(batch))
            batcher.ended(batch, decoder.env.now)
        elif (arrival := batcher.arrivals.next) is None:
            return
        elif arrival > now:
            yield decoder.env.timeout(arrival - now)
        else:
            raise SimulationError(f"{len(batcher.waiting)} requests wait and none can be served")


def known_sequence(decoder: Decoder, arrival: int, steps: Sequence[Step]) -> Generator[simpy.Event, Any, None]:
    """A sequence whose tokens are given: the steps overlap as far as the KV cache allows."""
    if arrival:
        yield decoder.env.timeout(arrival)
    order = KVOrder(steps, decoder.input_ended)
    decoder.orders[steps[0].sequence] = order
    decoder.run(steps)
    for step in steps:
        yield step.done
