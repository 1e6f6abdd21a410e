"""Plans: everything that a run needs, made from a scenario in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Literal

from models.graph import ModelGraph, OpGraph
from sim.analysis.goodput import Slo
from sim.analysis.rules import Rules
from sim.base.errors import ConfigError, unknown
from sim.executors.setup import Setup
from sim.machine.arbiters import Derated
from sim.machine.energy import EnergyRates
from sim.machine.kv_cache import LayerGroup, kept_groups
from sim.machine.machine import TIER_PATHS, Path
from sim.mapping.lowering import offloaded, weight_matmuls
from sim.mapping.settings import Execution, Offload
from sim.mapping.steps import Shape, StepGraphs
from sim.runs.limits import refuse, refuse_devices, refuse_parts_of_prompts, refuse_unknown_kinds, refuse_unknown_sequences
from sim.runs.machine import (
    arbiter_of,
    connection_of,
    costs_of,
    energy_of,
    link_rates,
    links_of,
    machine_of,
    refuse_unknown_tiers,
    scheduler_of,
    tiers_of,
)  # fmt: skip
from sim.runs.memory import held_by_tier, kv_capacity, resident_bytes, tier_space
from sim.runs.model import Modeled, models_of, notes_of
from sim.runs.shared import Shared
from sim.runs.workload import batching, check_routing, routing, traced
from sim.scenario import ModelMapping, Scenario
from sim.serving.batching import ResolvedBatching
from sim.workload.requests import Request
from sim.workload.routing import Uniform

#: The step of one sequence that decodes one token.
PLAIN = Shape((False,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a run needs, resolved: files are read, policies made, graphs chosen. It can be pickled.

    ops: the step of one sequence that decodes one token. setup: the part that executors run. rules: semantics that analyses
    need besides the log. record: rows of the log that are kept. window: start and end in ps (None: the end of the run) of the
    time whose rows are kept when others are not; None if there is none. warmup_time, warmup_requests: time in ps and number of
    requests that request statistics leave out. slo: what goodput is of; None if no objective is written. notes: lines about the
    model for reports. ignored: columns of the trace that are not used. held: bytes by memory, as `held_by_tier`.
    """

    model: ModelGraph
    ops: OpGraph
    setup: Setup
    rules: Rules
    record: Literal["all", "steps", "none"]
    window: tuple[int, int | None] | None
    warmup_time: int
    warmup_requests: int
    slo: Slo | None = None
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    held: tuple[tuple[str, str, int], ...] = ()


def plan(scenario: Scenario, shared: Shared | None = None) -> Plan:
    """Make the plan of a scenario. Raises InputError, with the place in its file, for whatever cannot be run.

    shared: parts of the plans of scenarios from the same folder.
    """
    shared = Shared() if shared is None else shared
    with scenario.located():
        refuse_unknown_tiers(scenario)
        modeled = shared.get("models", _of_models(scenario), lambda: _modeled(scenario))
        of_run = modeled.of_run
        sequences, ignored = traced(scenario)
        setup = _setup(scenario, of_run, sequences, shared)
        refuse(setup, rows=scenario.record == "all")
        refuse_unknown_sequences(setup)
        parallel = scenario.mapping.parallel
        energy, *_ = [
            energy_of(scenario.hardware, each.ops, parallel) for each in of_run
        ]  # each must have its formats' figures
        if scenario.model.config is not None:  # written graphs name their kinds freely, and one policy may serve many of them
            refuse_unknown_kinds(setup, scenario.mapping.execution)
    window = scenario.trace.window if scenario.record != "all" else None
    return Plan(
        model=of_run[0].model,
        ops=of_run[0].ops,
        setup=setup,
        rules=_rules(setup, scenario.mapping.execution, modeled.kept_layers, energy),
        record=scenario.record,
        window=None if window is None else (window.start, window.end),
        warmup_time=scenario.report.warmup_time,
        warmup_requests=scenario.report.warmup_requests,
        slo=_slo(scenario),
        notes=modeled.notes,
        ignored=ignored,
        held=held_by_tier(scenario, of_run, sequences),
    )


@dataclass(frozen=True, slots=True)
class _Modeled:
    """The models of a run, and what follows from them alone."""

    of_run: list[Modeled]
    kept_layers: tuple[LayerGroup, ...]
    notes: tuple[str, ...]


def _of_models(scenario: Scenario) -> tuple[Any, ...]:
    """Everything that `_Modeled` depends on."""
    hardware = scenario.hardware
    return (
        scenario.model, scenario.mapping, scenario.workload.speculative, hardware.engines.flops, hardware.sram is None,
        scenario.folder, hardware.tier_names,
    )  # fmt: skip


def _modeled(scenario: Scenario) -> _Modeled:
    of_run = models_of(scenario)
    return _Modeled(of_run, kept_layers_of(of_run), notes_of(of_run))


def _slo(scenario: Scenario) -> Slo | None:
    written = scenario.report.slo
    if written is None:
        return None
    return Slo(ttft=written.ttft, tpot=written.tpot, e2e=written.e2e, percentile=written.percentile)


def _setup(scenario: Scenario, of_run: Sequence[Modeled], sequences: Sequence[Request], shared: Shared) -> Setup:
    hardware, memory, execution = scenario.hardware, scenario.hardware.memory, scenario.mapping.execution
    concurrency = scenario.workload.concurrency
    refuse_devices(scenario)
    held = resident_bytes(scenario, of_run)
    for each in of_run:
        _refuse_long_sequences(each.model, sequences)
    space = tier_space(scenario, of_run) if tiers_of(scenario) else []
    batches = batching(scenario, of_run, sequences, kv_capacity(scenario, of_run, sequences), space)
    if any(each.model.prefix for each in of_run):
        refuse_parts_of_prompts(batches, sequences, scenario.mapping.parallel.token_chunks)
    graphs = step_graphs(scenario, of_run)
    costs, machine = costs_of(scenario, shared), machine_of(scenario, shared)
    check_routing(graphs.routing, of_run[0].ops, sequences, again=_prefills_again(batches))
    return Setup(
        graph=graphs(PLAIN),
        graphs=graphs,
        sequences=sequences,
        batching=batches,
        concurrency=None if concurrency is None else concurrency.users,
        think=0 if concurrency is None else concurrency.think,
        step_overhead=scenario.workload.step_overhead,
        dependency=scenario.workload.dependency,
        costs=costs,
        machine=machine,
        links=links_of(scenario, machine),
        scheduler=scheduler_of(scenario),
        overlap=execution == "stream",
        arbiter=arbiter_of(memory, shared),
        bandwidth=memory.bandwidth,
        route=memory.channels.route,
        latency=memory.latency,
        sram=None if hardware.sram is None else tuple(hardware.sram - size for size in held),
        resident=held,
    )


def _refuse_long_sequences(model: ModelGraph, sequences: Sequence[Request]) -> None:
    for i, request in enumerate(sequences):
        if why := model.too_long(request.final):
            raise ConfigError("workload", f"sequence {i}: {why}")


def _prefills_again(batches: ResolvedBatching | None) -> bool:
    """Whether a prompt may be prefilled again after its KV blocks were freed."""
    return batches is not None and batches.prefills_again


def step_graphs(scenario: Scenario, of_run: Sequence[Modeled]) -> StepGraphs:
    """The task graphs of steps. Reads the routing, if it is a file, and no other files."""
    ops, mapping = of_run[0].ops, scenario.mapping
    _refuse_unknown_tiles(mapping, ops)
    if not isinstance(scenario.workload.routing, str) and all(op.experts is None for op in ops.ops):
        raise ConfigError("workload.routing", "expected a file only for a mixture-of-experts model")
    _refuse_unknown_offload(mapping, ops)
    on_engines = of_run[0].on_engines(scenario.hardware.engines.count)
    # A file of routing is about the model alone.
    tiers = tuple(tier.name for tier in tiers_of(scenario))
    of_machine = partial(StepGraphs, tiers=tiers, connection=connection_of(scenario), links=link_rates(scenario))
    drafts = [of_machine(each.variants, on_engines, Uniform(scenario.seed)) for each in of_run[1:]]
    routes, variants, prefilling = routing(scenario), of_run[0].variants, None
    if mapping.parallel.prefill and mapping.parallel.hand_over == "layers":
        prefilling = of_machine(of_run[0].sending, on_engines, routes, sends=True)
    return of_machine(
        variants, on_engines, routes, draft=drafts[0] if drafts else None, prefilling=prefilling,
        written=scenario.model.config is None,
    )  # fmt: skip


def kept_layers_of(of_run: Sequence[Modeled]) -> tuple[LayerGroup, ...]:
    """Layers that keep a KV cache or a state, of all models of a run."""
    return tuple(group for each in of_run for group in kept_groups(each.caching))


def _refuse_unknown_tiles(mapping: ModelMapping, ops: OpGraph) -> None:
    """Raise ConfigError for tiles of a kind that is not a weight matmul of the model."""
    if not isinstance(mapping.tiles, dict):
        return
    kinds = {op.kind for op, product in zip(ops.ops, weight_matmuls(ops), strict=True) if product}
    for kind in mapping.tiles:
        if kind != "default" and kind not in kinds:
            raise ConfigError(f"mapping.tiles.{kind}", str(unknown("weight matmul", kind, kinds)))


def _refuse_unknown_offload(mapping: ModelMapping, ops: OpGraph) -> None:
    """Raise ConfigError for weights to offload that the model does not have."""
    if not mapping.offloads:
        return
    everything = offloaded(ops, [Offload(weights="all")], ["host"])
    kinds = {op.kind for op, tier in zip(ops.ops, everything.tolist(), strict=True) if tier >= 0}
    for number, offload in enumerate(mapping.offloads):
        key = "mapping.offload" if isinstance(mapping.offload, Offload) else f"mapping.offload[{number}]"
        wanted = offload.weights
        if wanted == "experts" and all(op.experts is None for op in ops.ops):
            raise ConfigError(f"{key}.weights", "expected all, or kinds of ops: the model has no experts")
        for kind in wanted if isinstance(wanted, tuple) else ():
            if kind not in kinds:
                raise ConfigError(f"{key}.weights", str(unknown("kind of op with weights", kind, kinds)))


def _rules(
    setup: Setup, execution: Execution, kv_layers: tuple[LayerGroup, ...], energy: EnergyRates | None
) -> Rules:  # fmt: skip
    efficiency = setup.arbiter.efficiency if isinstance(setup.arbiter, Derated) else None
    of_tiers = TIER_PATHS[: len(setup.machine.tiers)]
    return Rules(
        arrivals=_arrivals(setup),
        dependency=setup.dependency,
        execution=execution,
        latency=setup.latency,
        cap=setup.arbiter.cap,
        link_latency=_latency(setup, "link"),
        work_conserving_link=_conserves(setup, "link"),
        network_latency=_latency(setup, "network"),
        work_conserving_network=_conserves(setup, "network"),
        tier_latencies=tuple(_latency(setup, kind) for kind in of_tiers),
        work_conserving_tiers=tuple(_conserves(setup, kind) for kind in of_tiers),
        stripes=setup.memory_channels_each if setup.route == "interleaved" else 1,
        efficiency=(efficiency.least, efficiency.most) if efficiency is not None else (Fraction(1), Fraction(1)),
        kv_layers=kv_layers,
        energy=energy,
        sram=setup.sram,
        work_conserving_channel=setup.arbiter.work_conserving,
        work_conserving_scheduler=setup.scheduler.work_conserving,
        open_loop=setup.concurrency is None,
    )


def _latency(setup: Setup, kind: Path) -> int:
    """The latency of links of a kind; 0 if there are none."""
    return max((link.latency for link in setup.links if link.kind == kind), default=0)


def _conserves(setup: Setup, kind: Path) -> bool:
    """Whether no link of a kind is idle while a transfer could be served. One may wait for the other links that it crosses."""
    joint = bool(setup.machine.paths) and kind not in TIER_PATHS
    return not joint and all(link.arbiter.work_conserving for link in setup.links if link.kind == kind)


def _arrivals(setup: Setup) -> tuple[int, ...]:
    """The earliest start of each decode loop, ps: each sequence has a loop of its own, or all share one."""
    arrivals = [request.arrival for request in setup.sequences]
    if setup.batching is None:
        return tuple(arrivals)
    if setup.batching.replicas > 1 or setup.batching.homes:  # whose requests are routed as they arrive
        return (min(arrivals) if setup.concurrency is None else 0,) * setup.batching.loops_of(len(arrivals))
    if not setup.batching.settings.alone and (loops := setup.batching.batches_of(len(arrivals))) > 1:
        return tuple(min(arrivals[i::loops]) for i in range(loops)) * (1 + setup.batching.beside)
    if setup.concurrency is not None:  # a closed loop starts at 0
        return (0,) * (min(setup.concurrency, len(arrivals)) if setup.batching.settings.alone else 1 + setup.batching.beside)
    return tuple(arrivals) if setup.batching.settings.alone else (min(arrivals),) * (1 + setup.batching.beside)
