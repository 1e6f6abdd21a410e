"""Reruns of a scenario on machines that are improved in one way, which show its bottleneck (what-if analysis).

| change               | means                                                                                             |
| -------------------- | ------------------------------------------------------------------------------------------------- |
| `bandwidth x2`       | each transfer takes half its time on the channel and at its port, rounded up; latency stays        |
| `infinite bandwidth` | each transfer takes 1 ps; latency stays                                                           |
| `engines x2`         | twice the engines                                                                                 |
| `infinite engines`   | so many that no task waits for one                                                                |
| `no sharing losses`  | the channel serves one transfer at a time, in order of arrival, as long as its port lets it (`fifo`) |
| `prefetch`           | `mapping.execution: prefetch`                                                                     |
| `tiles: engines`     | `mapping.tiles: engines`; only where weight matmuls leave engines idle                             |
| `earliest`           | `scheduler: earliest`; only where the scheduler left engines idle that a ready task could have used |

Each changes one thing and keeps the rest, so the speed-ups do not multiply: one change may remove the wait that hid another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from models.graph import IntArray
from sim.analysis.bounds import few_tiles
from sim.analysis.parts import WAIT_ENGINE, WAIT_POLICY
from sim.base.errors import InputError
from sim.base.units import format_time
from sim.cost import CostModel, StepLanes
from sim.executors import side_by_side, simulate
from sim.executors.setup import Setup
from sim.machine.machine import one_device
from sim.mapping.tasks import TaskGraph
from sim.runs.plan import plan
from sim.runs.result import Result
from sim.runs.run import known_names
from sim.scenario import override

#: Speed-ups below this are not reported.
NOTABLE = 1.02

#: Changes that cost no hardware, in words.
CHEAP = {
    "no sharing losses": "serving one transfer at a time (fifo)",
    "prefetch": "prefetch",
    "tiles: engines": "one tile of each weight matmul per engine (mapping.tiles: engines)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change and its makespan in ps; None where the change cannot be made, and `note` says why."""

    name: str
    makespan: int | None
    note: str = ""

    def speedup(self, before: int) -> float | None:
        """Speed-up over a makespan of `before` ps."""
        return before / self.makespan if self.makespan else None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """All changes of a scenario. makespan: ps, of the scenario as it is. bottleneck: one sentence."""

    makespan: int
    changes: tuple[Change, ...]
    bottleneck: str


def to_json(found: WhatIf) -> dict[str, Any]:
    """JSON-ready data: `changes` with makespan and speed-up, and `bottleneck`, the sentence."""
    changes = []
    for change in found.changes:
        speedup = change.speedup(found.makespan)
        changes.append(
            {
                "change": change.name,
                "makespan_ps": change.makespan,
                "speedup": speedup and round(speedup, 6),
                "note": change.note,
            }
        )
    return {"changes": changes, "bottleneck": found.bottleneck}


class _Faster:
    """Costs with transfers `factor` times faster; if None, of 1 ps."""

    def __init__(self, costs: CostModel, factor: int | None) -> None:
        self._costs, self._factor = costs, factor

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work = self._costs.durations(graph, steps)
        return compute, np.minimum(work, 1) if self._factor is None else -(-work // self._factor)


def what_if(result: Result, shown: AbstractContextManager[object] | None = None) -> WhatIf:
    """Simulate all changes, one per core at a time. Takes about as long as six runs on one core.

    shown: context manager that is entered while they run, but not while they start (see `sim.base.processes`).
    """
    setup = result.plan.setup
    begun = side_by_side(lambda change: change(), list(_changes(result, setup)), setup)
    with shown or nullcontext():
        changes = tuple(begun)
    return WhatIf(makespan=result.makespan, changes=changes, bottleneck=bottleneck(result, changes))


def _changes(result: Result, setup: Setup) -> Iterator[Callable[[], Change]]:
    scenario = result.scenario
    as_it_is = partial(Change, makespan=result.makespan, note="as it is")
    overridden = partial(partial, _overridden, result)
    for name, factor in (("bandwidth x2", 2), ("infinite bandwidth", None)):
        yield partial(_changed, name, replace(setup, costs=_Faster(setup.costs, factor)))
    yield partial(_changed, "engines x2", _with_engines(setup, 2 * setup.engines))
    yield partial(_infinite_engines, result, setup)
    if scenario.hardware.memory.arbiter.name == "fifo":
        yield partial(as_it_is, name="no sharing losses")
    else:
        yield overridden("no sharing losses", "hardware.memory.arbiter=fifo")
    if scenario.mapping.execution == "prefetch":
        yield partial(as_it_is, name="prefetch")
    elif scenario.mapping.kv == "operands":
        yield partial(Change, name="prefetch", makespan=None, note="only with mapping.kv: transfers")
    else:
        yield overridden("prefetch", "mapping.execution=prefetch")
    if few_tiles(result.log, result.bounds) is not None:
        yield overridden("tiles: engines", "mapping.tiles=engines")
    if result.breakdown.total[WAIT_POLICY]:
        yield overridden("earliest", "scheduler=earliest")


def _with_engines(setup: Setup, engines: int) -> Setup:
    return replace(setup, machine=one_device(engines=engines, channels=setup.channels))


def _changed(name: str, setup: Setup) -> Change:
    return Change(name=name, makespan=simulate(setup)[0].makespan)


def _overridden(result: Result, name: str, assignment: str) -> Change:
    try:
        scenario = override(result.scenario, [assignment], known_names())
        with scenario.located():
            return _changed(name, plan(scenario).setup)
    except InputError as error:
        return Change(name=name, makespan=None, note=str(error))


def _infinite_engines(result: Result, setup: Setup) -> Change:
    """Add engines until at least one is always idle, so that more would change nothing."""
    if not result.breakdown.total[WAIT_ENGINE]:
        return Change(name="infinite engines", makespan=result.makespan, note="no task waits for an engine")
    held = int(setup.graph.engine.sum()) * len(result.log.steps)
    engines = min(held, _widest(setup.graph) * max(len(setup.sequences), 1))
    while True:
        log, _ = simulate(_with_engines(setup, engines))
        on_engine = log.tasks.engine >= 0
        most = _most_busy(log.tasks.start[on_engine], log.tasks.end[on_engine])
        if engines >= held or most < engines:
            return Change(name="infinite engines", makespan=log.makespan, note=f"at most {most} busy at once")
        engines = min(held, 4 * engines)


def _widest(graph: TaskGraph) -> int:
    """A first guess of the number of engines: one more than the most tasks at the same depth of the graph."""
    depth = [0] * len(graph)
    start, inputs = graph.input_start.tolist(), graph.inputs.tolist()
    for task in range(len(graph)):
        depth[task] = 1 + max((depth[i] for i in inputs[start[task] : start[task + 1]]), default=0)
    return 1 + int(np.bincount(np.array(depth)[graph.engine], minlength=1).max())


def _most_busy(start: IntArray, end: IntArray) -> int:
    """The largest number of intervals [start, end) that overlap at one instant."""
    time = np.concatenate([end, start])  # at equal times ends come first
    change = np.repeat([-1, 1], len(start))[np.argsort(time, kind="stable")]
    return int(np.cumsum(change).max(initial=0))


def bottleneck(result: Result, changes: tuple[Change, ...]) -> str:
    """One sentence: the resource that limits the run most, and the best change on the same hardware."""
    times = {change.name: speedup for change in changes if (speedup := change.speedup(result.makespan)) is not None}
    memory, engines = times.get("infinite bandwidth", 1.0), times.get("infinite engines", 1.0)
    policy = times.get("earliest", 1.0)
    cheap = {name: times[name] for name in CHEAP if times.get(name, 1.0) >= NOTABLE}
    bandwidth, more = _gain("infinite bandwidth", memory), _gain("more engines", engines)
    if policy >= max(memory, engines, NOTABLE):
        sentence = (
            f"The scheduler is the bottleneck: {result.scenario.scheduler.name} leaves engines idle, and "
            f"{_gain('list scheduling', policy)}; {bandwidth}, {more}"
        )
    elif max(memory, engines) < NOTABLE:
        share = result.bounds.critical_path / result.makespan if result.makespan else 1.0
        sentence = (
            f"The dependencies between tasks are the bottleneck: the longest path alone takes {share:.0%} of the makespan; "
            f"{bandwidth}, {more}"
        )
    elif memory >= engines:
        sentence = f"The memory channel is the bottleneck: {bandwidth}; {more}"
    else:
        sentence = f"The engines are the bottleneck: {more}; {bandwidth}"
    if cheap:
        best = max(cheap, key=lambda name: cheap[name])
        sentence += f"; on the same hardware, {_gain(CHEAP[best], cheap[best])}"
    last = int(result.requests.arrival.max(initial=0))
    if result.scenario.workload.concurrency is None and 2 * last > result.makespan:
        sentence += f"; the last request arrives at {format_time(last)}, and no machine can finish before that"
    return sentence + "."


def _gain(change: str, speedup: float) -> str:
    """A clause that says how much a change would help."""
    if speedup >= NOTABLE:
        return f"{change} would speed this up {speedup:.2f}x"
    return f"{change} would not help ({speedup:.2f}x)"
