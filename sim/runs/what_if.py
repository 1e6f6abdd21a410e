"""Reruns of a scenario on machines that are changed in one way, which show its bottleneck (what-if analysis).

| change               | means                                                                                             |
| -------------------- | ------------------------------------------------------------------------------------------------- |
| `bandwidth x2`       | each transfer takes half its time on the channel and at its port, rounded up; latency stays        |
| `infinite bandwidth` | each transfer takes 1 ps; latency stays                                                           |
| `links x2`           | the same of transfers between devices, and to and from the host; only where there are links        |
| `infinite links`     | likewise                                                                                          |
| `engines x2`         | twice the engines                                                                                 |
| `infinite engines`   | so many that no task waits for one                                                                |
| `fewer engines`      | the fewest that are as fast, within 1 %; only where there are several                              |
| `no launches`        | ops take what they take beside their launch; only where costs have one                             |
| `SRAM x2`            | twice the `hardware.sram`, with the same resident weights; only where it bounds operands            |
| `unbounded SRAM`     | no bound on operands in flight; likewise                                                          |
| `weights in int8`    | weights at half the bits (or in `int4`, ...), computed as before; only with costs that follow bytes |
| `batch x2`           | twice the `max_batch`; only where more requests than that come                                     |
| `no sharing losses`  | the channel serves one transfer at a time, in order of arrival, as long as its port lets it (`fifo`) |
| `processor_sharing`  | the channel serves all transfers at once; only where `fifo` serves one at the pace of a port       |
| `prefetch`           | `mapping.execution: prefetch`                                                                     |
| `tiles: engines`     | `mapping.tiles: engines`; only where weight matmuls leave engines idle                             |
| `earliest`           | `scheduler: earliest`; only where the scheduler left engines idle that a ready task could have used |

Each changes one thing and keeps the rest, so the speed-ups do not multiply: one change may remove the wait that hid another.

Where requests are served, each change has a median TTFT and TPOT. In an open loop, where they arrive at times of their own, no
machine can end much before the last of them, so makespans say little. There a speed-up is that of the *sustained rate*:
requests per second when all requests of the scenario are there at first, which takes one more run of each change. Load is the
rate at which they arrive over this rate.
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
from sim.analysis.parts import PART_COUNT, WAIT_ENGINE, WAIT_POLICY
from sim.analysis.requests import Requests, requests
from sim.base.errors import InputError
from sim.base.kernel import MANY_TASKS, loaded
from sim.base.units import PS_PER_S, ceil_div, format_time
from sim.cost import CostModel, StepLanes, launches_of
from sim.executors import side_by_side, simulate
from sim.executors.setup import Setup
from sim.log.tables import EventLog
from sim.mapping.tasks import HOST_BIT, LINK_BIT, TaskGraph
from sim.runs.machine import BY_BYTES, one_port_at_a_time
from sim.runs.model import formats_of
from sim.runs.plan import plan
from sim.runs.result import Result
from sim.runs.run import known_names
from sim.scenario import Scenario, override

#: About how many runs the changes take. Where Numba has been imported, together they pay for reading compiled code.
RUNS = 10

#: Speed-ups below this are not reported.
NOTABLE = 1.02

#: Changes that cost no hardware, in words.
CHEAP = {
    "no sharing losses": "serving one transfer at a time (fifo)",
    "prefetch": "prefetch",
    "tiles: engines": "one tile of each weight matmul per engine (mapping.tiles: engines)",
}

#: Formats of half the bits, by name; None: as captured.
HALVED = {None: "int8", "bf16": "int8", "int8": "int4", "fp8": "int4", "mxfp8": "mxfp4", "q8_0": "q4_0"}

#: Fewer engines are as fast if what they take is at most this much longer, in percent.
AS_FAST = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How requests are served: medians in ps (tpot: None if no request has two tokens). rate: requests/s that are sustained
    with all of them there at first; None unless the loop is open.
    """

    ttft: int
    tpot: int | None
    rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change and its makespan in ps; None where the change cannot be made, and `note` says why.

    service: None where no requests are served.
    """

    name: str
    makespan: int | None
    note: str = ""
    service: Service | None = None

    def speedup(self, before: Change) -> float | None:
        """Speed-up over the run as it is: of the sustained rate in an open loop, else of the makespan."""
        if not self.makespan or not before.makespan:
            return None
        if self.service is not None and before.service is not None and self.service.rate and before.service.rate:
            return self.service.rate / before.service.rate
        return before.makespan / self.makespan


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """All changes of a scenario. as_it_is: the run without any. arrivals: requests/s that come in an open loop, else None.
    bottleneck: one sentence.
    """

    as_it_is: Change
    changes: tuple[Change, ...]
    arrivals: float | None
    bottleneck: str

    @property
    def load(self) -> float | None:
        """The rate at which requests arrive over the one that is sustained; None unless the loop is open."""
        service = self.as_it_is.service
        return self.arrivals / service.rate if self.arrivals and service is not None and service.rate else None


def to_json(found: WhatIf) -> dict[str, Any]:
    """JSON-ready data: `as_it_is` and `changes` with makespan, speed-up and service, `load`, and the sentence `bottleneck`."""
    load = found.load
    return {
        "as_it_is": _change_to_json(found.as_it_is, found.as_it_is),
        "changes": [_change_to_json(change, found.as_it_is) for change in found.changes],
        "arrivals_per_s": found.arrivals and round(found.arrivals, 6),
        "load": load and round(load, 6),
        "bottleneck": found.bottleneck,
    }


def _change_to_json(change: Change, before: Change) -> dict[str, Any]:
    speedup, service = change.speedup(before), change.service
    return {
        "change": change.name,
        "makespan_ps": change.makespan,
        "speedup": speedup and round(speedup, 6),
        "ttft_ps": service and service.ttft,
        "tpot_ps": service and service.tpot,
        "sustained_per_s": service and service.rate and round(service.rate, 6),
        "note": change.note,
    }


class _Faster:
    """Costs with transfers `factor` times faster; if None, of 1 ps. links: those on links, else those of the memory."""

    def __init__(self, costs: CostModel, factor: int | None, *, links: bool) -> None:
        self._costs, self._factor, self._links = costs, factor, links

    def launches(self, graph: TaskGraph) -> IntArray:
        return launches_of(self._costs, graph)

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work = self._costs.durations(graph, steps)
        faster = np.minimum(work, 1) if self._factor is None else -(-work // self._factor)
        chosen = (graph.moves & (LINK_BIT | HOST_BIT) != 0) == self._links
        return compute, np.where(chosen[:, None], faster, work)


class _Launchless:
    """Costs without launches."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work = self._costs.durations(graph, steps)
        left = np.maximum(compute - launches_of(self._costs, graph)[:, None], 1)
        return np.where(graph.computes[:, None], left, compute), work


def what_if(result: Result, shown: AbstractContextManager[object] | None = None) -> WhatIf:
    """Simulate all changes, one per core at a time. Takes about as long as ten runs on one core, in an open loop twenty.

    shown: context manager that is entered while they run, but not while they start (see `sim.base.processes`).
    """
    setup = result.plan.setup
    runs = _Runs(result)
    begun = side_by_side(lambda change: change(), [runs.as_it_is, *runs.changes()], setup)
    with shown or nullcontext():
        before, *others = begun
    changes = tuple(
        replace(change, service=before.service) if change.makespan == before.makespan and change.service is None else change
        for change in others
    )
    return WhatIf(
        as_it_is=before, changes=changes, arrivals=runs.arrivals, bottleneck=bottleneck(result, before, changes, runs.arrivals)
    )


def _log_of(setup: Setup) -> EventLog:
    """The log of one of many runs of about the same size."""
    return simulate(setup, many=MANY_TASKS // RUNS if loaded() else MANY_TASKS)[0]


class _Runs:
    """The runs of a scenario, each a callable that returns its change.

    arrivals: requests/s in an open loop, else None.
    """

    def __init__(self, result: Result) -> None:
        self.result, self.setup = result, result.plan.setup
        arrival = result.requests.arrival
        span = int(arrival.max(initial=0) - arrival.min(initial=0))
        self.open_loop = self.setup.concurrency is None and span > 0
        self.arrivals = (len(arrival) - 1) * PS_PER_S / span if self.open_loop else None
        self._serves = len(result.requests) > 1 or bool((result.log.members.query > 1).any())

    def as_it_is(self) -> Change:
        """The run that there is, with the rate that its machine sustains."""
        return Change(name="as it is", makespan=self.result.makespan, service=self._service(self.result.requests, self.setup))

    def changes(self) -> Iterator[Callable[[], Change]]:
        """All changes, in the order of the table above; those on the hardware first."""
        setup, scenario = self.setup, self.result.scenario
        for name, factor in (("bandwidth x2", 2), ("infinite bandwidth", None)):
            yield partial(self._changed, name, replace(setup, costs=_Faster(setup.costs, factor, links=False)))
        if setup.links:
            for name, factor in (("links x2", 2), ("infinite links", None)):
                yield partial(self._changed, name, replace(setup, costs=_Faster(setup.costs, factor, links=True)))
        yield partial(self._changed, "engines x2", _with_engines(setup, 2 * setup.engines_each))
        yield self._infinite_engines
        if setup.engines_each > 1:
            yield self._fewer_engines
        if scenario.cost.model in BY_BYTES and launches_of(setup.costs, setup.graph).any():
            yield partial(self._changed, "no launches", replace(setup, costs=_Launchless(setup.costs)))
        if setup.sram is not None:
            twice = tuple(2 * free + held for free, held in zip(setup.sram, setup.resident, strict=True))
            yield partial(self._changed, "SRAM x2", replace(setup, sram=twice))
            yield partial(self._changed, "unbounded SRAM", replace(setup, sram=None))
        if (half := _half_the_bits(scenario)) is not None:
            yield partial(self._overridden, f"weights in {half}", f"mapping.formats.weights={half}")
        most = scenario.workload.batching.max_batch
        if most is not None and len(setup.sequences) > most:
            yield partial(self._overridden, "batch x2", f"workload.batching.max_batch={2 * most}")
        yield from self._on_the_same_hardware()

    def _on_the_same_hardware(self) -> Iterator[Callable[[], Change]]:
        result, scenario = self.result, self.result.scenario
        as_it_is = partial(Change, makespan=result.makespan, note="as it is")
        if scenario.hardware.memory.arbiter.name == "fifo":
            yield partial(as_it_is, name="no sharing losses")
            if one_port_at_a_time(scenario.hardware):
                yield partial(self._overridden, "processor_sharing", "hardware.memory.arbiter=processor_sharing")
        else:
            yield partial(self._overridden, "no sharing losses", "hardware.memory.arbiter=fifo")
        if scenario.mapping.execution == "prefetch":
            yield partial(as_it_is, name="prefetch")
        elif scenario.mapping.kv == "operands":
            yield partial(Change, name="prefetch", makespan=None, note="only with mapping.kv: transfers")
        else:
            yield partial(self._overridden, "prefetch", "mapping.execution=prefetch")
        if few_tiles(result.log, result.bounds) is not None:
            yield partial(self._overridden, "tiles: engines", "mapping.tiles=engines")
        if result.breakdown.total[WAIT_POLICY]:
            yield partial(self._overridden, "earliest", "scheduler=earliest")

    def _changed(self, name: str, setup: Setup, note: str = "") -> Change:
        log = _log_of(setup)
        return Change(name=name, makespan=log.makespan, note=note, service=self._service(self._requests(log), setup))

    def _overridden(self, name: str, assignment: str) -> Change:
        try:
            scenario = override(self.result.scenario, [assignment], known_names())
            with scenario.located():
                return self._changed(name, plan(scenario).setup)
        except InputError as error:
            return Change(name=name, makespan=None, note=str(error))

    def _requests(self, log: EventLog) -> Requests:
        made = self.result.plan
        none = np.zeros((len(log.steps), PART_COUNT), dtype=np.int64)
        return requests(log, none, warmup_time=made.warmup_time, warmup_requests=made.warmup_requests)

    def _service(self, served: Requests, setup: Setup) -> Service | None:
        """Medians of a run, and in an open loop the rate of another one, with all requests there at first."""
        times = served.times()
        ttft, tpot = times["ttft"], times["tpot"]
        if not self._serves or ttft is None:
            return None
        rate = None
        if self.open_loop:
            rate = len(setup.sequences) * PS_PER_S / _log_of(_all_at_first(setup)).makespan
        return Service(ttft=ttft.p50, tpot=None if tpot is None else tpot.p50, rate=rate)

    def _infinite_engines(self) -> Change:
        """Add engines until at least one is always idle, so that more would change nothing."""
        if not self.open_loop and not self.result.breakdown.total[WAIT_ENGINE]:
            return Change(name="infinite engines", makespan=self.result.makespan, note="no task waits for an engine")
        setup = _all_at_first(self.setup) if self.open_loop else self.setup
        held = int(setup.graph.engine.sum()) * len(self.result.log.steps)
        engines = min(held, _widest(setup.graph) * max(len(setup.sequences), 1))
        while True:
            log = _log_of(_with_engines(setup, engines))
            on_engine = log.tasks.engine >= 0
            most = _most_busy(log.tasks.start[on_engine], log.tasks.end[on_engine])
            if engines >= held or most < engines:
                return self._changed(
                    "infinite engines", _with_engines(self.setup, engines), note=f"at most {most} busy at once"
                )
            engines = min(held, 4 * engines)

    def _fewer_engines(self) -> Change:
        """The fewest engines that are as fast: by bisection, from those that could do the work in the time."""
        name, setup = "fewer engines", _all_at_first(self.setup) if self.open_loop else self.setup
        before = _log_of(setup).makespan if self.open_loop else self.result.makespan
        longest = before * (100 + AS_FAST) // 100
        low, high = 1, setup.engines_each
        if not self.open_loop:  # its steps are the same on any number of engines
            low = min(high, max(1, ceil_div((self.result.bounds.compute - 1) * high + 1, longest)))
        while low < high:
            middle = (low + high) // 2
            if _log_of(_with_engines(setup, middle)).makespan <= longest:
                high = middle
            else:
                low = middle + 1
        if high == setup.engines_each:
            return Change(name=name, makespan=self.result.makespan, note=f"none: fewer than {high} are slower")
        return self._changed(name, _with_engines(self.setup, high), note=f"{high} of {setup.engines_each} are as fast")


def _half_the_bits(scenario: Scenario) -> str | None:
    """The format in which all weights take half the bits; None if there is none, or times do not follow their bytes."""
    by_bytes = scenario.cost.model in BY_BYTES and scenario.mapping.weights != "resident"
    if scenario.model.config is None or not by_bytes:
        return None
    chosen = formats_of(scenario).weights
    return HALVED.get(chosen) if chosen is None or isinstance(chosen, str) else None


def _with_engines(setup: Setup, engines: int) -> Setup:
    machine = setup.machine
    devices = tuple(replace(device, engines=range(engines * i, engines * (i + 1))) for i, device in enumerate(machine.devices))
    return replace(setup, machine=replace(machine, devices=devices))


def _all_at_first(setup: Setup) -> Setup:
    """The same requests, all of them there at 0."""
    return replace(setup, sequences=[replace(request, arrival=0) for request in setup.sequences])


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


def bottleneck(result: Result, before: Change, changes: tuple[Change, ...], arrivals: float | None) -> str:
    """One sentence: the resource that limits the run most, and the best change on the same hardware."""
    times = {change.name: speedup for change in changes if (speedup := change.speedup(before)) is not None}
    gain = _Gain(open_loop=arrivals is not None)
    sentence = f"{_limit(result, times, gain)}{_cheapest(times, gain)}"
    service = before.service
    if arrivals and service is not None and service.rate:
        load = arrivals / service.rate
        share = f"{load:.0%} of" if load < 2 else f"{load:,.0f} times"
        sentence += f"; requests arrive at {arrivals:,.3g}/s, {share} the {service.rate:.3g}/s that are sustained"
    last = int(result.requests.arrival.max(initial=0))
    if result.scenario.workload.concurrency is None and 2 * last > result.makespan:
        sentence += f"; the last request arrives at {format_time(last)}, and no machine can finish before that"
    return sentence + "."


def _limit(result: Result, times: dict[str, float], gain: _Gain) -> str:
    """Name the limit of a run. SRAM is it where twice as much of it helps more than twice of any other resource."""
    memory, engines = times.get("infinite bandwidth", 1.0), times.get("infinite engines", 1.0)
    policy, sram, launches = (times.get(name, 1.0) for name in ("earliest", "SRAM x2", "no launches"))
    links, bandwidth = times.get("infinite links", 1.0), gain("infinite bandwidth", memory)
    more = gain("more engines", engines)
    if links >= NOTABLE and links > max(memory, engines, policy, sram, launches):
        return f"The links are the bottleneck: {gain('infinite links', links)}; {bandwidth}, {more}"
    if policy >= max(memory, engines, NOTABLE):
        name = result.scenario.scheduler.name
        return (
            f"The scheduler is the bottleneck: {name} leaves engines idle, and {gain('list scheduling', policy)}; "
            f"{bandwidth}, {more}"
        )
    shared = times.get("processor_sharing", 1.0)
    if shared >= NOTABLE and shared > max(times.get("bandwidth x2", 1.0), times.get("engines x2", 1.0), sram):
        several = gain("serving several at once (processor_sharing)", shared)
        return (
            f"The arbiter is the bottleneck: fifo serves one transfer at a time, at the pace of one port, and {several}; {more}"
        )
    if sram >= NOTABLE and sram > max(times.get("bandwidth x2", 1.0), times.get("engines x2", 1.0)):
        return f"SRAM is the bottleneck: {gain('twice as much', sram)}; {bandwidth}, {more}"
    if launches >= max(memory, engines, NOTABLE):
        return f"Launches of kernels are the bottleneck: {gain('kernels without them', launches)}; {bandwidth}; {more}"
    if max(memory, engines) < NOTABLE:
        share = result.bounds.critical_path / result.makespan if result.makespan else 1.0
        return (
            f"The dependencies between tasks are the bottleneck: the longest path alone takes {share:.0%} of the makespan; "
            f"{bandwidth}, {more}"
        )
    if memory >= engines:
        return f"The memory channel is the bottleneck: {bandwidth}; {more}"
    return f"The engines are the bottleneck: {more}; {bandwidth}"


def _cheapest(times: dict[str, float], gain: _Gain) -> str:
    """A clause on the best change on the same hardware; empty if there is none."""
    cheap = {name: times[name] for name in CHEAP if times.get(name, 1.0) >= NOTABLE}
    if not cheap:
        return ""
    best = max(cheap, key=lambda name: cheap[name])
    return f"; on the same hardware, {gain(CHEAP[best], cheap[best])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gain:
    """Says in a clause how much a change would help. open_loop: it is the rate that counts."""

    open_loop: bool

    def __call__(self, change: str, speedup: float) -> str:
        if speedup < NOTABLE:
            return f"{change} would not help ({speedup:.2f}x)"
        if self.open_loop:
            return f"{change} would sustain {speedup:.2f}x the requests"
        return f"{change} would speed this up {speedup:.2f}x"
