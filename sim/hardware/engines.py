"""Compute engines: SimPy processes that take ready tasks, one at a time each.

The pool keeps the ready tasks in order of rank. A busy engine costs one event per task and shares the dispatch event of the
instant with all others: this is what makes the simulation several times faster than a process and a request per task.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Generator, Sequence
from heapq import heappop, heappush
from typing import Any, Protocol

import simpy

from sim.hardware.instant import DISPATCH, EndOfInstant, Environment


class Work(Protocol):
    """What the pool needs of a released step: columns with one entry per task.

    rank, program: what orders its tasks among all ready ones. chain: or None if any engine will do. home: chain -> engine.
    compute, work: picoseconds on an engine and, at full speed, on the channel. start, loaded, engine: written by the pool.
    """

    rank: Sequence[int]
    program: int
    chain: Sequence[int] | None
    home: dict[int, int]
    compute: list[int]
    work: list[int]
    start: list[int]
    loaded: list[int]
    engine: list[int]


Load = Callable[[Any, int, int, Callable[[], Any]], None]


class EnginePool:
    """`count` engines.

    load(step, task, engine, ended): issue the task's private operands to the channel. overlap: compute while they load
    (`stream`) instead of after (`blocking`). finished(step, task): called when a task has ended. limit: how many engines may
    work at once.
    """

    def __init__(
        self, env: Environment, count: int, *, limit: int | None, overlap: bool, load: Load,
        finished: Callable[[Any, int], None],
    ) -> None:  # fmt: skip
        self.env = env
        self.count = count
        self.limit = count if limit is None else min(limit, count)
        self.overlap = overlap
        self.load = load
        self.finished = finished
        self.idle = list(range(count))
        self._ready: list[tuple[int, int, Work, int]] = []
        self._bound: list[list[tuple[int, int, Work, int]]] = [[] for _ in range(count)]
        self._assigned: list[tuple[Work, int] | None] = [None] * count
        self._wake: list[simpy.Event | None] = [None] * count
        self._dispatching: EndOfInstant | None = None
        for engine in range(count):
            env.process(self._run(engine))

    def __repr__(self) -> str:
        return f"EnginePool({self.count - len(self.idle)} of {self.count} busy, {len(self._ready)} ready)"

    def offer(self, step: Work, task: int) -> None:
        """A task has become ready: some engine takes it at the end of this or a later instant."""
        home = step.home.get(step.chain[task]) if step.chain is not None else None
        queue = self._ready if home is None else self._bound[home]
        heappush(queue, (step.rank[task], step.program + task, step, task))
        self._end_of_instant()

    def _end_of_instant(self) -> EndOfInstant:
        if self._dispatching is None:
            self._dispatching = EndOfInstant(self.env, DISPATCH)
            self._dispatching.callbacks.append(self._dispatch)
        return self._dispatching

    def _dispatch(self, _event: object) -> None:
        """Give ready tasks to free engines: the lowest rank first, to the lowest engine."""
        self._dispatching = None
        ready, room = self._ready, self.limit - (self.count - len(self.idle))
        still_idle = []
        for position, engine in enumerate(self.idle):
            if room <= 0:
                still_idle += self.idle[position:]
                break
            bound = self._bound[engine]
            queue = bound if bound and (not ready or bound[0] < ready[0]) else ready
            if not queue:
                still_idle.append(engine)
                continue
            _, _, step, task = heappop(queue)
            if step.chain is not None:
                self._bind(step, task, engine)
            self._assigned[engine] = (step, task)
            room -= 1
            wake = self._wake[engine]
            if wake is not None:
                self._wake[engine] = None
                wake.succeed()
        self.idle = still_idle

    def _bind(self, step: Work, task: int, engine: int) -> None:
        assert step.chain is not None
        step.home.setdefault(step.chain[task], engine)

    def _run(self, engine: int) -> Generator[simpy.Event, Any, None]:
        """One engine: take a task, load, compute, and again."""
        env = self.env
        while True:
            assigned = self._assigned[engine]
            if assigned is None:
                wake = self._wake[engine] = env.event()
                yield wake
                continue
            step, task = assigned
            step.engine[task] = engine
            step.start[task] = started = env.now
            compute = step.compute[task]
            if step.work[task]:
                loaded = env.event()
                self.load(step, task, engine, loaded.succeed)
                yield loaded
                if self.overlap:
                    compute = max(0, started + compute - env.now)
            step.loaded[task] = env.now
            if compute:
                yield env.timeout(compute)
            self._assigned[engine] = None
            insort(self.idle, engine)
            self.finished(step, task)
            yield self._end_of_instant()
