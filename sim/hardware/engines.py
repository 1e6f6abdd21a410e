"""Compute engines: they take ready tasks, one at a time each.

The pool keeps the ready tasks in order of rank. A task costs one event, its end; all that ends at an instant shares one
dispatch event, if anything waits for an engine then. An engine is driven by plain callbacks: a generator for each would be
resumed twice a task, a third of the time of a run.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, Protocol

from sim.hardware.instant import DISPATCH, Alarm, Environment


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
Ready = tuple[int, int, Work, int]  # rank, place in program order, and the task


class _Engine:
    """One engine: take a task, load, compute."""

    __slots__ = ("alarm", "number", "pool", "step", "task")

    def __init__(self, pool: EnginePool, number: int) -> None:
        self.pool, self.number = pool, number
        self.alarm = Alarm(pool.env, self._computed)
        self.step: Work
        self.task: int

    def take(self, step: Work, task: int) -> None:
        self.step, self.task = step, task
        step.engine[task] = self.number
        step.start[task] = step.loaded[task] = self.pool.env.now
        if step.work[task]:
            self.pool.load(step, task, self.number, self._loaded)
        else:
            self.alarm.set(step.compute[task])

    def _loaded(self) -> None:
        step, task, now = self.step, self.task, self.pool.env.now
        step.loaded[task] = now
        compute = step.compute[task]
        if self.pool.overlap:
            compute = max(0, step.start[task] + compute - now)
        if compute:
            self.alarm.set(compute)
        else:
            self._computed()

    def _computed(self, _event: object = None) -> None:
        self.pool.ended(self.number, self.step, self.task)


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
        self.engines = [_Engine(self, number) for number in range(count)]
        self._idle = list(range(1 - count, 1))  # engines as negative numbers, in order: the lowest engine is the last
        self._ready: list[Ready] = []  # a heap, as are:
        self._bound: dict[int, list[Ready]] = {}  # by engine, if there are any
        self._wanted: list[int] = []  # engines that have become idle or wanted, with tasks bound to them; some no more
        self._dispatch_event = Alarm(env, self._dispatch, DISPATCH)
        self._dispatching = False

    def __repr__(self) -> str:
        return f"EnginePool({self.count - len(self._idle)} of {self.count} busy, {len(self._ready)} ready)"

    def offer(self, step: Work, task: int) -> None:
        """A task has become ready: some engine takes it at the end of this or a later instant."""
        home = step.home.get(step.chain[task]) if step.chain is not None else None
        if home is None:
            queue = self._ready
        else:
            queue = self._bound.setdefault(home, [])
            heappush(self._wanted, home)
        heappush(queue, (step.rank[task], step.program + task, step, task))
        if not self._dispatching:
            self._dispatching = True
            self._dispatch_event.set(0)

    def ended(self, engine: int, step: Work, task: int) -> None:
        """An engine is free."""
        insort(self._idle, -engine)
        if engine in self._bound:
            heappush(self._wanted, engine)
        self.finished(step, task)
        if not self._dispatching and (self._ready or self._bound):
            self._dispatching = True
            self._dispatch_event.set(0)

    def _dispatch(self, _event: object) -> None:
        """Give ready tasks to free engines: the lowest rank first, to the lowest engine."""
        self._dispatching = False
        ready, idle, engines = self._ready, self._idle, self.engines
        room = self.limit - self.count + len(idle)
        if self._bound:
            self._dispatch_bound(room)
            return
        while ready and idle and room > 0:
            _, _, step, task = heappop(ready)
            engine = -idle.pop()
            room -= 1
            if step.chain is not None:
                step.home.setdefault(step.chain[task], engine)
            engines[engine].take(step, task)

    def _dispatch_bound(self, room: int) -> None:
        """The same where some tasks must run on the engine of their chain: each engine in turn takes what it may."""
        ready, idle = self._ready, self._idle
        while ready and idle and room > 0:
            engine = -idle.pop()
            bound = self._bound.get(engine)
            self._take(engine, bound if bound and bound[0] < ready[0] else ready)
            room -= 1
        while self._wanted and room > 0:  # what any engine may take has run out
            engine = heappop(self._wanted)
            at = bisect_left(idle, -engine)
            if engine in self._bound and idle[at : at + 1] == [-engine]:
                del idle[at]
                self._take(engine, self._bound[engine])
                room -= 1

    def _take(self, engine: int, queue: list[Ready]) -> None:
        _, _, step, task = heappop(queue)
        if not queue and queue is not self._ready:
            del self._bound[engine]
        assert step.chain is not None
        step.home.setdefault(step.chain[task], engine)
        self.engines[engine].take(step, task)
