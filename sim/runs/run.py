"""Run a scenario: the one public entry point.

result = run("scenarios/two_tokens_4_engines.yaml")
result.metrics.makespan, result.log.tasks.start
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

import models.library
from models import formats
from models.fusion import Fusion, fuse, with_kv_heads
from models.graph import QUANTITIES, ModelGraph, OpGraph, StepLanes
from sim.analysis.account import Account
from sim.analysis.context import Rules
from sim.base.errors import InputError, unknown
from sim.base.memo import Memo
from sim.base.units import format_bytes
from sim.cost import COST_MODELS, CostModel, Doubt, Machine
from sim.executors import Executor, simulate
from sim.executors.setup import Setup, SramError, lanes_of, sram_use
from sim.executors.size import Told, counted, tasks_in_all
from sim.log.tables import EventLog, Window
from sim.machine.arbiters import ARBITERS, Arbiter, Derated, Efficiency
from sim.machine.capacity import footprint
from sim.machine.schedulers import SCHEDULERS, Scheduler
from sim.mapping.lowering import KV_CLASS, MOST_TILES, Mapping, weight_products
from sim.mapping.steps import BatchGraph, Laid, Shape, StepGraphs, Variants
from sim.mapping.tasks import TaskGraph
from sim.runs.result import Result, Timing
from sim.runs.workload import requests, routing
from sim.runs.written import written_costs, written_model
from sim.scenario import Formats, Fuse, Known, Scenario, load
from sim.serving.batcher import Batch, Batching, Member, Speculation, feasible
from sim.workload.requests import Request

PLAIN = Shape((False,))
DISTINCT = 256  # requests whose times are looked at one by one before a run
MOST_TURNS = 2**28  # of a channel that serves a burst at a time
ROW = 100  # bytes of a task in a log, with its intervals of service, about
LONGEST = 2**62  # picoseconds, 53 days: sums of two times still fit int64

#: Captured graphs as scenarios lay them out: a model of 80 layers has four of 2,000 ops each.
LAID_OUT: Memo[OpGraph] = Memo(2**15)

LARGEST_CAP = 2**16  # denominators of channel shares stay small enough for int64 arithmetic on whole runs


def known_names() -> Known:
    """The names that a scenario may use for its policies, third-party ones included."""
    return {"arbiter": ARBITERS, "scheduler": SCHEDULERS, "cost": COST_MODELS}


def read(path: str | Path, overrides: list[str] | None = None) -> Scenario:
    """Read and check a scenario file; raises InputError in one line."""
    return load(path, overrides or [], known_names())


def run(scenario: Scenario | str | Path, *, executor: Executor = "auto", told: Told | None = None) -> Result:
    """Simulate a scenario and account for it. The result is the same whichever `executor` runs it: `auto` takes the faster one.

    told: called from time to time with the output tokens so far, those in all, and the simulated time in ps.
    Raises InputError if something in the scenario cannot be used, SimulationError if an invariant does not hold.
    """
    if not isinstance(scenario, Scenario):
        scenario = read(scenario)
    began = perf_counter()
    model, variants = op_graphs(scenario)
    captured = perf_counter()
    setup = prepare(scenario, model, variants)
    keep, window = scenario.record == "all", _window(scenario)
    rules = _rules(scenario, setup)
    account = Account(rules, engines=setup.engines, channels=setup.channels)
    accounting = 0.0

    def take(part: EventLog) -> None:
        nonlocal accounting
        at = perf_counter()
        account.add(part)
        if window is not None:
            window.add(part)
        accounting += perf_counter() - at

    try:
        log, executed = simulate(setup, executor, counted(setup, told), None if keep else take)
    except SramError as error:  # of a step that is wider than those looked at before
        raise _too_little_sram(scenario, setup, error) from None
    simulated = perf_counter()
    if keep:
        take(log)
    found = account.result(
        log, warmup_time=scenario.report.warmup_time, warmup_requests=scenario.report.warmup_requests
    )  # fmt: skip
    timing = Timing(
        capture=captured - began, simulate=simulated - captured - (0 if keep else accounting),
        analyse=perf_counter() - simulated + (0 if keep else accounting), executed=executed,
    )  # fmt: skip
    result = Result(
        scenario=scenario, model=model, log=log, rules=rules, metrics=found.metrics, bounds=found.bounds,
        breakdown=found.breakdown, checks=found.checks, doubts=doubts(setup, log), timing=timing, requests=found.requests,
        series=found.series, kv_bytes=_token_bytes(variants[False, False]), window=window.log() if window is not None else None,
    )  # fmt: skip
    return result.without_steps() if scenario.record == "none" else result


def _window(scenario: Scenario) -> Window | None:
    """The time whose ops are kept although the others are not."""
    window = scenario.trace.window
    return None if window is None or scenario.record == "all" else Window(window.start, window.end)


def _rules(scenario: Scenario, setup: Setup) -> Rules:
    efficiency = _efficiency(scenario)
    return Rules(
        arrivals=_arrivals(setup),
        dependency=setup.dependency,
        execution=scenario.mapping.execution,
        latency=setup.latency,
        cap=setup.arbiter.cap,
        stripes=setup.channels if setup.route == "interleaved" else 1,
        efficiency=(efficiency.least, efficiency.most) if efficiency is not None else (Fraction(1), Fraction(1)),
        bounded_sram=setup.sram is not None,
        work_conserving_channel=setup.arbiter.work_conserving,
        work_conserving_scheduler=setup.scheduler.work_conserving,
    )


def doubts(setup: Setup, log: EventLog | None = None) -> tuple[Doubt, ...]:
    """What the costs of a run are less than sure of, from its shortest context to its longest.

    Of batches, with a log: those of the most frequent form, and of the one with most sequences.
    """
    judge = getattr(setup.costs, "doubts", None)
    if judge is None:
        return ()
    if setup.batching is None or log is None:
        contexts = [c for s in setup.sequences for c in (s.context, s.final - 1)]
        ends = np.array(sorted({min(contexts), max(contexts)}), dtype=np.int64)
        return tuple(judge(setup.graph, StepLanes(sequence=np.zeros_like(ends), token=np.zeros_like(ends), context=ends)))
    counts = np.bincount(log.steps.graph, minlength=len(log.graphs))
    largest = max(range(len(log.graphs)), key=lambda number: log.graphs[number].ops.members or 0)
    found: dict[tuple[str, str], Doubt] = {}
    for number in dict.fromkeys((int(counts.argmax()), largest)):
        steps = np.flatnonzero(log.steps.graph == number)
        context = log.steps.context[steps]
        ends = steps[np.unique([context.argmin(), context.argmax()])]
        for doubt in judge(log.graphs[number], log.lanes(ends)):
            found.setdefault((doubt.kind, doubt.why), doubt)
    return tuple(found.values())


def _arrivals(setup: Setup) -> tuple[int, ...]:
    """When each decode loop could begin at the earliest: each sequence has its own, or all share one."""
    arrivals = [request.arrival for request in setup.sequences]
    if setup.batching is None:
        return tuple(arrivals)
    if setup.concurrency is not None:  # a closed loop begins at once
        shared = 1 if setup.batching.policy != "independent" else min(setup.concurrency, len(arrivals))
        return (0,) * shared
    return (min(arrivals),) if setup.batching.policy != "independent" else tuple(arrivals)


def op_graphs(scenario: Scenario) -> tuple[ModelGraph, Variants]:
    """The model of a scenario, and the ops of its steps: of one sequence or several, with one new token each or more."""
    wanted = scenario.model
    if wanted.config is None:
        if scenario.mapping.formats != Formats():
            raise scenario.error("mapping.formats", "expected only with model.config: a written graph says its own bytes")
        for key, plain in (("softmax", "three_pass"), ("fuse", Fuse())):
            if getattr(scenario.mapping, key) != plain:
                raise scenario.error(f"mapping.{key}", "expected only with model.config: a written graph says its own ops")
        if isinstance(_resident(scenario), Fraction):
            raise scenario.error(
                "mapping.weights", "expected a share only with model.config: a written graph says its own bytes"
            )
        model = written_model(scenario)
        return model, model.variants
    try:
        mapping = scenario.mapping
        model = models.library.load(wanted.config, granularity=mapping.granularity, dtype=wanted.dtype, mla=mapping.mla)
    except InputError as error:
        raise scenario.error("model.config", str(error)) from None
    if mapping.mla != "latent" and not models.library.keeps_latents(model):
        raise scenario.error("mapping.mla", f"expected only for multi-head latent attention, which {model.name} does not have")
    if wanted.layers is not None and wanted.layers > model.layers:
        raise scenario.error("model.layers", f"expected 1 to {model.layers}, all layers of {model.name}, found {wanted.layers}")
    stored = formats.Formats(**scenario.mapping.formats.model_dump())
    element = formats.ELEMENT[model.dtype]

    # All that `lay_out` takes of a scenario.
    how = (wanted.layers, wanted.scope, stored, model.dtype, model.kv_heads, _fusion(scenario))

    def laid_out(captured: OpGraph) -> OpGraph:
        return LAID_OUT.of(captured, how, lambda: lay_out(captured))

    def lay_out(captured: OpGraph) -> OpGraph:
        return formats.apply(_kernels(scenario, model, captured.select(wanted.layers, wanted.scope)), stored, element=element)

    variants = Laid(model.variants, laid_out)
    variants[False, False]  # what is wrong with it is said here
    return model, variants


def _fusion(scenario: Scenario) -> Fusion:
    mapping = scenario.mapping
    return Fusion(softmax=mapping.softmax, kv_splits=mapping.kv_splits, **mapping.fuse.model_dump())


def _kernels(scenario: Scenario, model: ModelGraph, ops: OpGraph) -> OpGraph:
    """The ops as the kernels of the mapping compute them."""
    try:
        fused = fuse(ops, _fusion(scenario), element=formats.ELEMENT[model.dtype])
    except InputError as error:  # what fusion raises begins with the key it is about
        key, _, message = str(error).partition(": ")
        raise scenario.error(key, message) from None
    return with_kv_heads(fused, model.kv_heads)


def _kv_blocks(scenario: Scenario, model: ModelGraph, ops: OpGraph, sequences: list[Request]) -> int | None:
    """How many blocks of KV cache there are, None if as many as it takes. Refuses what the memory of the device cannot hold."""
    capacity, pages = scenario.hardware.memory.capacity, scenario.workload.batching.kv
    batched = scenario.workload.batching.policy != "independent"
    stored = formats.Formats(**scenario.mapping.formats.model_dump())
    room = pages.capacity
    if capacity is not None and scenario.model.config is not None:
        alone = () if batched else [(request.final, 1) for request in sequences]
        held = footprint(model, ops, stored, whole=scenario.model.scope == "model", sequences=alone)
        needed = held.weights + (room if batched and room is not None else held.kv)
        if needed > capacity:
            contents = f"{format_bytes(held.weights)} of weights and {format_bytes(needed - held.weights)} of KV cache"
            raise scenario.error(
                "hardware.memory.capacity",
                f"{contents}{'' if batched else ' at the final contexts'} are {format_bytes(needed - capacity)} more than the "
                f"{format_bytes(capacity)} of memory",
            )
        room = capacity - held.weights if room is None else room
    if not batched or room is None:
        return None
    block = pages.block * _token_bytes(ops)
    return room // block if block else None


def _token_bytes(ops: OpGraph) -> int:
    """What the KV cache holds of one token."""
    return int(ops.costs(0)[QUANTITIES.index("kv_write")].sum())


def _batching(scenario: Scenario, model: ModelGraph, ops: OpGraph, sequences: list[Request]) -> Batching | None:
    """How steps are made up; None if each is one sequence that decodes one token."""
    blocks = _kv_blocks(scenario, model, ops, sequences)
    workload = scenario.workload
    alone = workload.batching.policy == "independent" and workload.speculative is None and workload.concurrency is None
    if alone and not any(request.prompt for request in sequences):
        return None
    if workload.dependency == "known":
        raise scenario.error("workload.dependency", "expected 'sampled' where there are prompts, found 'known'")
    if scenario.model.config is None:
        message = "expected a model.config for batching, prompts, speculation and closed loops: a written graph is one step"
        raise scenario.error("workload", message)
    if scenario.mapping.granularity != "op":
        raise scenario.error("mapping.granularity", "expected 'op' for batching, prompts and speculation, found 'aten'")
    written, drafts = workload.batching, workload.speculative
    most = written.max_batch or (1 if written.policy == "independent" else len(sequences))
    needed = most * (1 if drafts is None else 1 + drafts.draft)
    if written.max_tokens is not None and written.max_tokens < needed:
        message = f"expected at least {needed}, so that all of a batch can decode, found {written.max_tokens}"
        raise scenario.error("workload.batching.max_tokens", message)
    batching = Batching(
        policy=written.policy,
        sequences=most,
        tokens=written.max_tokens,
        chunk=workload.prefill.chunk,
        blocks=blocks,
        block=written.kv.block,
        full=written.kv.full,
        speculation=None if drafts is None else Speculation(draft=drafts.draft, acceptance=drafts.acceptance),
        seed=scenario.seed,
    )
    try:
        feasible(batching, sequences, _token_bytes(ops))
    except InputError as error:
        key, _, message = str(error).partition(": ")
        raise scenario.error(key, message) from None
    return batching


def prepare(scenario: Scenario, model: ModelGraph, variants: Variants) -> Setup:
    """Turn a scenario into what the simulator takes: plain values and policies."""
    hardware, mapping, workload = scenario.hardware, scenario.mapping, scenario.workload
    ops, sequences = variants[False, False], requests(scenario)
    room = _sram_room(scenario, model, ops)
    for i, request in enumerate(sequences):
        if why := model.too_long(request.final):
            raise scenario.error("workload", f"sequence {i}: {why}")
    batching = _batching(scenario, model, ops, sequences)
    again = batching is not None and batching.blocks is not None and batching.full == "recompute"
    graphs = StepGraphs(
        variants,
        Mapping(
            heads=mapping.heads,
            kv_loads=mapping.kv_loads,
            weights=_resident(scenario),
            activations=mapping.activations,
            execution=mapping.execution,
            kv=mapping.kv,
            attention=mapping.attention,
            tiles=_tiles(scenario, ops),
        ),
        routing(scenario, ops, sequences, again=again),
    )
    setup = Setup(
        graph=graphs(PLAIN),
        graphs=graphs,
        sequences=sequences,
        batching=batching,
        concurrency=None if workload.concurrency is None else workload.concurrency.users,
        think=0 if workload.concurrency is None else workload.concurrency.think,
        dependency=workload.dependency,
        costs=_costs(scenario),
        engines=hardware.engines.count,
        scheduler=_scheduler(scenario),
        overlap=mapping.execution == "stream",
        arbiter=_arbiter(scenario),
        bandwidth=hardware.memory.bandwidth,
        channels=hardware.memory.channels.count,
        route=hardware.memory.channels.route,
        latency=hardware.memory.latency,
        sram=room if mapping.execution == "prefetch" else None,
    )
    _feasible(scenario, setup)
    _kinds_known(scenario, setup)
    return setup


def _resident(scenario: Scenario) -> Literal["resident", "streamed"] | Fraction:
    """What is resident of the weights: all, nothing, or the share that is written, exactly: 0.4 is 2/5."""
    weights = scenario.mapping.weights
    return weights if isinstance(weights, str) else Fraction(str(weights.resident))


def _sram_room(scenario: Scenario, model: ModelGraph, ops: OpGraph) -> int | None:
    """Bytes of SRAM that resident weights leave to operands in flight, None if unbounded. Refuses weights that do not fit."""
    sram, resident = scenario.hardware.sram, _resident(scenario)
    if sram is None or resident == "streamed":
        return sram
    weights = model.parameter_bytes
    if scenario.model.config is not None:
        stored = formats.Formats(**scenario.mapping.formats.model_dump())
        weights = footprint(model, ops, stored, whole=scenario.model.scope == "model", sequences=()).weights
    held = weights if resident == "resident" else math.ceil(weights * resident)
    if held > sram:
        most = 1000 * sram // weights
        advice = f"; mapping.weights of {{resident: {most / 1000}}} would fit" if most else ""
        raise scenario.error(
            "hardware.sram",
            f"{format_bytes(held)} of resident weights are {format_bytes(held - sram)} more than the {format_bytes(sram)} of "
            f"SRAM{advice}",
        )
    return sram - held


def _tiles(scenario: Scenario, ops: OpGraph) -> int | dict[str, int]:
    """Tiles per product, as numbers; refuses kinds that are no product by weights of the model."""
    tiles, engines = scenario.mapping.tiles, min(scenario.hardware.engines.count, MOST_TILES)
    if not isinstance(tiles, dict):
        return engines if tiles == "engines" else tiles
    kinds = {op.kind for op, product in zip(ops.ops, weight_products(ops), strict=True) if product}
    for kind in tiles:
        if kind != "default" and kind not in kinds:
            raise scenario.error(f"mapping.tiles.{kind}", str(unknown("product by weights", kind, kinds)))
    return {kind: engines if count == "engines" else count for kind, count in tiles.items()}


def _kinds_known(scenario: Scenario, setup: Setup) -> None:
    """Refuse an arbiter's option that names a kind of transfer which the model does not have."""
    if scenario.model.config is None:
        return  # kinds of written graphs are free: the same policy may serve many
    kinds = {"weight_load", "act_load", "act_store", *KV_CLASS, *setup.graph.kinds}
    for kind in setup.arbiter.kinds:
        if kind not in kinds:
            raise scenario.error("hardware.memory.arbiter", str(unknown("kind of transfer", kind, kinds)))


def _feasible(scenario: Scenario, setup: Setup) -> None:
    """Refuse at once what has no costs, would not fit memory, or would end after the end of int64."""
    size = len(setup.graph)
    alike = Counter(replace(request, arrival=0, group=-1) for request in setup.sequences)
    if len(alike) > DISTINCT:  # as if each were the longest
        longest_one = {name: max(getattr(r, name) for r in alike) for name in ("context", "prompt", "tokens")}
        alike = Counter({Request(arrival=0, **longest_one): len(setup.sequences)})
    if scenario.record == "all" and (rows := tasks_in_all(setup)[0] * ROW) > (there := _memory()):
        message = f"a row for every op would take {format_bytes(rows)}, there are {format_bytes(there)} of memory; steps fits"
        raise scenario.error("record", message)
    try:
        sram_use(setup)
    except SramError as error:
        raise _too_little_sram(scenario, setup, error) from None
    efficiency = _efficiency(scenario)
    slowest = min(Fraction(*setup.arbiter.cap), efficiency.least if efficiency is not None else Fraction(1))
    longest, transfers = max(request.arrival for request in setup.sequences), 0
    for request, many in alike.items():
        # Of the last token, whose context is the longest: no other costs more. And of the prompt as a whole.
        last = Member(0, request.final - 1, 1, request.final - 1, 1, 1)
        whole = Member(0, request.context, request.prompt, request.context, 1, 1)
        for member, times in ((last, request.tokens), (whole, 1)) if request.prompt else ((last, request.tokens),):
            graph = setup.graph if setup.graphs is None else _at_most(setup.graphs(Batch((member,)).shape))
            try:
                compute, work = setup.costs.durations(graph, lanes_of(0, request.tokens - 1, Batch((member,))))
            except InputError as error:  # what cost models raise begins with the key it is about
                key, _, message = str(error).partition(": ")
                raise scenario.error(key, message) from None
            except OverflowError:
                longest = LONGEST
                break
            transfers += many * times * sum(work.ravel().tolist())
            alone = sum(compute.ravel().tolist()) + size * setup.latency + math.ceil(sum(work.ravel().tolist()) / slowest)
            longest += many * times * alone
    burst = getattr(setup.arbiter, "burst", None)
    if burst is not None and transfers // burst > MOST_TURNS:
        message = f"a burst so small that the run could take {transfers // burst:,} turns; expected at most {MOST_TURNS:,}"
        raise scenario.error("hardware.memory.arbiter", message)
    if longest >= LONGEST:
        limit = LONGEST // 10**12
        raise scenario.error("hardware", f"so slow that the run could take more than {limit:,} s of simulated time")


def _memory() -> int:
    """Bytes of memory of this machine; where it does not say, as many as it takes."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return LONGEST


def _too_little_sram(scenario: Scenario, setup: Setup, error: SramError) -> InputError:
    held = (scenario.hardware.sram or 0) - (setup.sram or 0)
    beside = f" (resident weights hold {format_bytes(held)} more)" if held else ""
    return scenario.error("hardware.sram", f"{error}{beside}")


def _at_most(graph: TaskGraph) -> TaskGraph:
    """The graph of a step whose tokens choose as many distinct experts as they can, whoever they are."""
    return replace(graph, ops=replace(graph.ops, routing=None)) if isinstance(graph.ops, BatchGraph) else graph


def _cap(scenario: Scenario) -> tuple[int, int]:
    """The largest share of the channel that one port draws, rounded down to a small denominator."""
    port, bandwidth = scenario.hardware.memory.port_bandwidth, scenario.hardware.memory.bandwidth
    if port is None or port >= bandwidth:
        return 1, 1
    common = math.gcd(port, bandwidth)
    num, den = port // common, bandwidth // common
    if den <= LARGEST_CAP:
        return num, den
    num = port * LARGEST_CAP // bandwidth
    if not num:
        raise scenario.error("hardware.memory.port_bandwidth", f"expected at least 1/{LARGEST_CAP} of the bandwidth")
    return num, LARGEST_CAP


def _arbiter(scenario: Scenario) -> Arbiter:
    memory, key = scenario.hardware.memory, "hardware.memory.arbiter"
    for name, instead in (("cap", "port_bandwidth"), ("bandwidth", "bandwidth")):
        if name in memory.arbiter.options:
            raise scenario.error(f"{key}.{name}", f"no option of an arbiter; expected hardware.memory.{instead}")
    options = {**memory.arbiter.options, "cap": _cap(scenario)}
    try:
        takes = ARBITERS.parameters(memory.arbiter.name)
    except InputError as error:
        raise scenario.error(key, str(error)) from None
    if "bandwidth" in takes:
        options["bandwidth"] = memory.bandwidth
    arbiter: Arbiter = _made(scenario, key, ARBITERS, memory.arbiter.name, options)
    efficiency = _efficiency(scenario)
    return Derated(arbiter, efficiency) if efficiency is not None else arbiter


def _efficiency(scenario: Scenario) -> Efficiency | None:
    """The curve of the scenario as small fractions: 0.54 is 27/50."""
    written = scenario.hardware.memory.efficiency
    if written is None:
        return None
    points = {int(n): Fraction(str(share)).limit_denominator(LARGEST_CAP) for n, share in written.items()}
    least = Fraction(1, LARGEST_CAP)
    return Efficiency({n: max(share, least) for n, share in points.items()})


def _alone(scenario: Scenario) -> tuple[int, int]:
    """The share of a channel that a lone transfer gets; of several that it is spread over, the sum of shares."""
    efficiency, channels = _efficiency(scenario), scenario.hardware.memory.channels
    share = Fraction(*_cap(scenario))
    if efficiency is not None:
        share = min(share, efficiency.at(1))
    if channels.route == "interleaved":
        share *= channels.count
    return share.numerator, share.denominator


def _scheduler(scenario: Scenario) -> Scheduler:
    options = dict(scenario.scheduler.options)
    scheduler: Scheduler = _made(scenario, "scheduler", SCHEDULERS, scenario.scheduler.name, options)
    return scheduler


def _costs(scenario: Scenario) -> CostModel:
    engines, memory, cost = scenario.hardware.engines, scenario.hardware.memory, scenario.cost
    machine = Machine(
        flops=engines.flops, vector_flops=engines.vector_flops, overhead=engines.overhead, bandwidth=memory.bandwidth,
        alone=_alone(scenario), overlap=scenario.mapping.execution == "stream",
    )  # fmt: skip
    options = dict(cost.options)
    for name in ("machine", "seed"):
        if name in options:
            raise scenario.error(f"cost.{name}", "no option of a cost model")
    if cost.table is not None:
        options["table"] = cost.table
    if cost.profile is not None:
        options["profile"] = str(scenario.folder / cost.profile)
    if cost.otherwise is not None:
        options["otherwise"] = cost.otherwise
    if cost.jitter:
        options["jitter"] = cost.jitter
    costs: CostModel = _made(scenario, "cost", COST_MODELS, cost.model, {**options, "machine": machine, "seed": scenario.seed})
    return costs if scenario.model.config is not None else written_costs(scenario, costs)


def _made(scenario: Scenario, key: str, registry: Any, name: str, options: dict[str, Any]) -> Any:
    try:
        return registry.make(name, options)
    except InputError as error:
        raise scenario.error(key, str(error)) from None
