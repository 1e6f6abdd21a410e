"""Decode: a machine that runs released steps, and the processes that release them.

sequence ─ sampled: step, step, step, ...             each a barrier for the next
         └ known:   all steps at once                 only the KV cache orders them, layer by layer
loop     ─ batched: step, step, ...                   of the requests that are there; each a barrier for the next
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import pairwise
from typing import Any

import simpy

from sim.base.errors import SimulationError
from sim.executors.reference.channel import Channels
from sim.executors.reference.engines import EnginePool, engine
from sim.executors.reference.instant import Environment, Turns
from sim.executors.reference.sram import Sram
from sim.executors.reference.step import Group, Step, Task
from sim.machine.arbiters import Transfer
from sim.serving.batch import Batch
from sim.serving.batcher import Batcher

Process = Generator[simpy.Event, Any, None]

PREFETCHED, OTHERS = 0, 1  # the two queues of a DMA: one for operands that are prefetched, one for all other transfers


class Machine:
    """Engines, channels and SRAM, and the steps that run on them.

    A task goes through `start` once all of its inputs have ended (at its release if it has none), through `begin` once its
    operands have SRAM, too (`admit`), and ends in `finished`. Between the last two it waits in the pool for an engine, which
    calls `load` for its operands, or a DMA moves it (`transfer`).

    devices: the engines of each. limit: engines of a device that may work at once, None for all. overlap: engines compute while
    they load. sram: of all devices, None if unbounded. ended: called with each step when its last task has ended.
    """

    def __init__(
        self, env: Environment, *, devices: Sequence[range], limit: int | None, overlap: bool, channels: Channels,
        sram: Sram | None, ended: Callable[[Step], None],
    ) -> None:  # fmt: skip
        self.env = env
        self.channels = channels
        self.sram = sram
        self.ended = ended
        self.orders: dict[int, KVOrder] = {}  # by sequence, of those whose tokens are known
        self.turns = Turns(env)
        self.news = env.event()  # happens when a step of a batched loop has ended
        self.engines = sum(map(len, devices))
        self.pools = [EnginePool(env, len(engines), limit=limit) for engines in devices]
        for pool, engines in zip(self.pools, devices, strict=True):
            for number in engines:
                env.process(engine(env, number, pool, self.load, self.finished, overlap=overlap))

    def tell(self) -> None:
        """Let loops that have nothing to do look again: in this instant, after those whose turn it is."""
        news, self.news = self.news, self.env.event()
        news.succeed()

    def release(self, *steps: Step) -> None:
        """Let steps run from now on: tasks without inputs are ready, and operands ask for SRAM."""
        for step in steps:
            for task in step.tasks:
                if not task.waiting:
                    self.start(task)
        if self.sram is not None:
            for device in range(len(steps[0].columns.groups)):
                self.env.process(self.admit(steps, device, self.sram))

    def admit(self, steps: Sequence[Step], device: int, sram: Sram) -> Process:
        """Give operands SRAM of a device in the order in which tasks need them, those at once that are needed together.

        A group is requested once what comes before it on other devices has been admitted there. A load whose inputs have ended
        begins when it is admitted. `finished` of the last task that uses an operand frees its bytes. device: of the replica.
        """
        for earlier, step in zip((None, *steps), steps, strict=False):
            for group in step.columns.groups[device]:
                while (first := comes_first(earlier, step, group)) is not None:
                    yield first.more_admitted
                size = sum(step.sram[number] for number in group.tasks)
                yield sram.get(step.columns.device[group.tasks[0]], step.sequence, size)
                for number in group.tasks:
                    task = step.tasks[number]
                    task.admitted = True
                    if not task.waiting:
                        self.begin(task)
                step.admitted[device] = group.after
                if len(step.admitted) == 1:
                    continue  # no other device waits for it
                news, step.more_admitted = step.more_admitted, self.env.event()
                news.succeed()

    def start(self, task: Task) -> None:
        """Note that all inputs of a task have ended; it begins once its operands, if it loads any, have their SRAM."""
        task.ready = self.env.now
        if task.admitted:
            self.begin(task)

    def begin(self, task: Task) -> None:
        """Have a task wait for an engine, or begin its transfer."""
        if task.on_engine:
            self.pools[task.step.columns.device[task.number]].put(task)
        else:
            self.transfer(task, PREFETCHED if task.step.columns.prefetch[task.number] else OTHERS)

    def transfer(self, task: Task, queue: int) -> None:
        """Have the DMA of a task move its bytes, in the given one of its two queues; the task ends when they have arrived."""
        task.start = self.env.now
        loaded = self.load(task, self.engines + 2 * task.dma + queue)
        loaded.callbacks.append(lambda _: self.transferred(task))

    def transferred(self, task: Task) -> None:
        """Note that the last byte of a DMA's task has arrived."""
        task.loaded = self.env.now
        self.finished(task)

    def load(self, task: Task, requester: int) -> simpy.Event:
        """Request the channels to move the bytes of a task.

        requester: number of the port or queue that it uses: first the ports of all engines, then two queues for each DMA.
        """
        step, columns = task.step, task.step.columns
        transfer = Transfer(
            program=task.program, requester=requester, kind=columns.kind[task.number], sequence=task.owner,
            token=step.token, work=task.work, remaining=task.work, age=step.age, moves=columns.moves[task.number],
            path=columns.path[task.number],
        )  # fmt: skip
        return self.channels.request(transfer, columns.device[task.number])

    def finished(self, task: Task) -> None:
        """Note that a task has ended: its outputs may start, its bytes of SRAM are free, and with it the step may end."""
        step = task.step
        task.end = self.env.now
        for number in step.columns.outputs[task.number]:
            self.input_ended(step.tasks[number])
        if step.sequence in self.orders:
            self.orders[step.sequence].ended(task)
        for number in step.columns.used[task.number]:
            self.used(step.tasks[number])
        step.left -= 1
        if not step.left:
            step.end = self.env.now
            self.ended(step)
            step.done.succeed()

    def used(self, load: Task) -> None:
        """Note that a task has ended which used the operands of another; with the last of them their bytes are free."""
        load.users -= 1
        if not load.users and self.sram is not None:
            self.sram.put(load.step.columns.device[load.number], load.step.sram[load.number])

    def input_ended(self, task: Task) -> None:
        """Note that an input of a task has ended; with the last of them the task may start."""
        task.waiting -= 1
        if not task.waiting:
            self.start(task)


def comes_first(earlier: Step | None, step: Step, group: Group) -> Step | None:
    """The step of which more operands have to be admitted, on other devices, before a group is requested; None if of none.

    earlier: the step of the token before, None if the first of these steps is the one of the group.
    """
    for device, needed in enumerate(group.before):
        if needed >= 0 and earlier is not None and not earlier.is_admitted(device):
            return earlier
        if step.admitted[device] < needed:
            return step
    return None


class KVOrder:
    """The order that the KV cache imposes on the known tokens of a sequence.

    A token may load a layer's cache once all earlier tokens have stored their rows there: one more input for each such load.
    """

    def __init__(self, steps: Sequence[Step], input_ended: Callable[[Task], None]) -> None:
        self.steps = steps
        self.input_ended = input_ended
        self.missing = [{layer: len(tasks) for layer, tasks in step.columns.graph.kv_stores.items()} for step in steps]
        self.stored: dict[int, int] = {}  # layer -> tokens that have stored their rows, without a gap
        self.layer_of = {task: layer for layer, tasks in steps[0].columns.graph.kv_stores.items() for task in tasks}
        for before, step in pairwise(steps):
            for layer, tasks in step.columns.graph.kv_loads.items():
                if layer in before.columns.graph.kv_stores:  # a cache that no task writes is there from the start
                    for task in tasks:
                        step.tasks[task].waiting += 1

    def ended(self, task: Task) -> None:
        """Note that a task has ended: if later tokens waited for this store, their loads may start."""
        layer = self.layer_of.get(task.number)
        if layer is None:
            return
        self.missing[task.step.token][layer] -= 1
        stored = self.stored.get(layer, 0)
        while stored < len(self.steps) and not self.missing[stored][layer]:
            stored += 1
            if stored < len(self.steps):
                step = self.steps[stored]
                for number in step.columns.graph.kv_loads.get(layer, ()):
                    self.input_ended(step.tasks[number])
        self.stored[layer] = stored


def sampled_sequence(machine: Machine, number: int, arrival: int, steps: Iterator[Step]) -> Process:
    """A sequence that samples its tokens: each step begins when the last task of the one before has ended."""
    yield machine.env.timeout(arrival)
    yield machine.turns.turn(number)
    for step in steps:
        machine.release(step)
        yield step.done
        yield machine.turns.turn(number)


def known_sequence(machine: Machine, number: int, arrival: int, steps: Iterator[Step]) -> Process:
    """A sequence whose tokens are given: the steps overlap as far as the KV cache allows."""
    yield machine.env.timeout(arrival)
    yield machine.turns.turn(number)
    together = list(steps)
    machine.orders[number] = KVOrder(together, machine.input_ended)
    machine.release(*together)
    yield machine.env.all_of([step.done for step in together])


def batched_loop(
    machine: Machine, number: int, batcher: Batcher, step_of: Callable[[int, Batch], Step], overhead: int = 0
) -> Process:  # fmt: skip
    """A loop whose batcher makes up each step when it begins, from the requests that are there. overhead: ps of the host."""
    env = machine.env
    yield machine.turns.turn(number)
    while True:
        batch = batcher.next(env.now)
        if batcher.queued:
            machine.tell()
        if batch is not None:
            step = step_of(number, batch)
            if overhead:
                yield env.timeout(overhead)
                yield machine.turns.turn(number)
            machine.release(step)
            yield step.done
            yield machine.turns.turn(number)
            batcher.ended(batch, env.now)
            machine.tell()
            continue
        arrival = batcher.next_arrival
        if arrival is None and not batcher.listens:
            return
        if arrival is not None and arrival <= env.now:
            raise SimulationError(f"{len(batcher.waiting)} requests wait and none can be served")
        events = [] if arrival is None else [env.timeout(arrival - env.now)]
        yield env.any_of([*events, machine.news] if batcher.listens else events)
        yield machine.turns.turn(number)
