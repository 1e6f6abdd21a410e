"""Compute engines: processes that take ready tasks from a pool, one at a time each, launch them, load operands, compute.

The pool gives tasks to engines once an instant, in the phase `DISPATCH`:

1. Free engines take one after another, in order of their numbers, until as many work as may at once, or no task is ready.
2. Each takes the first of the tasks that are bound to it and of those that any engine may run: the lowest rank, and among
   equals program order. If there is none, it stays free.
3. A task is bound if another task of its chain has been given to an engine before this one became ready: to that engine.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any

import simpy

from sim.executors.reference.instant import DISPATCH, Environment, Phase
from sim.executors.reference.step import Task
from sim.machine.arbiters.contract import Program

#: A heap of ready tasks: rank, program order, task.
Ready = list[tuple[int, Program, Task]]


class EnginePool:
    """Ready tasks of a device, and its engines that wait for one. limit: engines that may work at once, None for all."""

    def __init__(self, env: Environment, count: int, *, limit: int | None = None) -> None:
        self.env = env
        self.count = count
        self.limit = count if limit is None else min(limit, count)
        self.free: list[int] = []  # engines, in order
        self.given: dict[int, simpy.Event] = {}  # engine -> the event that gives it a task
        self.ready: Ready = []  # for any engine
        self.bound: dict[int, Ready] = {}  # for one engine: that of their chain
        self.phase = Phase(env, DISPATCH, self._dispatch)

    def __repr__(self) -> str:
        return f"EnginePool({self.count - len(self.free)} of {self.count} busy, {len(self.ready)} ready)"

    def put(self, task: Task) -> None:
        """Add a task that has become ready."""
        home = None if task.chain is None else task.step.home.get(task.chain)
        queue = self.ready if home is None else self.bound.setdefault(home, [])
        heappush(queue, (task.rank, task.program, task))
        self.phase.call()

    def get(self, engine: int) -> simpy.Event:
        """Wait for a task: the value of the event. The engine is free until then."""
        insort(self.free, engine)
        self.given[engine] = event = self.env.event()
        if self.ready or self.bound:
            self.phase.call()
        return event

    def _dispatch(self) -> None:
        """Give ready tasks to free engines."""
        may_start = self.limit - (self.count - len(self.free))  # engines
        for engine in self.free[:]:
            if not may_start or not (self.ready or self.bound):
                return
            if task := self._next(engine):
                if task.chain is not None:
                    task.step.home.setdefault(task.chain, engine)
                self.free.remove(engine)
                self.given.pop(engine).succeed(task)
                may_start -= 1

    def _next(self, engine: int) -> Task | None:
        """The first of the tasks that are bound to an engine and of those for any engine."""
        bound = self.bound.get(engine)
        if bound and not (self.ready and self.ready[0] < bound[0]):
            task = heappop(bound)[-1]
            if not bound:
                del self.bound[engine]
            return task
        return heappop(self.ready)[-1] if self.ready else None


def engine(
    env: Environment, number: int, pool: EnginePool, load: Callable[[Task, int], simpy.Event], finished: Callable[[Task], None],
    *, overlap: bool,
) -> Generator[simpy.Event, Any, None]:  # fmt: skip
    """One engine: take a task, launch it, load its private operands, compute, and again.

    load: issues the transfer of a task's operands for the port of this engine; its event happens when they have arrived.
    finished: called with each task at its end. overlap: the engine computes while operands load, so that the task ends with
    the later of the two; otherwise it computes the rest after they have arrived.
    """
    while True:
        task: Task = yield pool.get(number)
        task.engine, task.start = number, env.now
        if task.launched:
            yield env.timeout(task.launched)
        if task.work:
            yield load(task, number)
        now = task.loaded = env.now
        end = task.start + task.compute if overlap else now + task.compute - task.launched
        if end > now:
            yield env.timeout(end - now)
        finished(task)
