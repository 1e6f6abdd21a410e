"""Plans: everything that a run needs, made from a scenario in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from models.graph import ModelGraph, OpGraph
from sim.analysis.rules import Rules
from sim.base.errors import ConfigError, unknown
from sim.cost import launch_of
from sim.executors.setup import Setup
from sim.machine.arbiters import Derated
from sim.machine.energy import EnergyRates
from sim.machine.kv_cache import LayerGroup, kept_groups
from sim.machine.machine import one_device
from sim.mapping.lowering import weight_matmuls
from sim.mapping.settings import Execution
from sim.mapping.steps import Shape, StepGraphs, Variants
from sim.runs.limits import refuse, refuse_unknown_kinds, refuse_unknown_sequences
from sim.runs.machine import arbiter_of, costs_of, energy_of, scheduler_of
from sim.runs.memory import kv_capacity, resident_bytes
from sim.runs.model import notes_of, op_graphs
from sim.runs.workload import batching, check_routing, requests, routing
from sim.scenario import ModelMapping, Scenario
from sim.serving.batching import ResolvedBatching
from sim.workload.requests import Request

#: The step of one sequence that decodes one token.
PLAIN = Shape((False,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a run needs, resolved: files are read, policies made, graphs chosen. It can be pickled.

    ops: the step of one sequence that decodes one token. setup: the part that executors run. rules: semantics that analyses
    need besides the log. record: rows of the log that are kept. window: start and end in ps (None: the end of the run) of the
    time whose rows are kept when others are not; None if there is none. warmup_time, warmup_requests: time in ps and number of
    requests that request statistics leave out. notes: lines about the model for reports.
    """

    model: ModelGraph
    ops: OpGraph
    setup: Setup
    rules: Rules
    record: Literal["all", "steps", "none"]
    window: tuple[int, int | None] | None
    warmup_time: int
    warmup_requests: int
    notes: tuple[str, ...] = ()


def plan(scenario: Scenario) -> Plan:
    """Make the plan of a scenario. Raises InputError, with the place in its file, for whatever cannot be run."""
    with scenario.located():
        model, variants = op_graphs(scenario)
        setup = _setup(scenario, model, variants)
        refuse(setup, rows=scenario.record == "all")
        refuse_unknown_sequences(setup)
        energy = energy_of(scenario.hardware, variants[False, False])
        if scenario.model.config is not None:  # written graphs name their kinds freely, and one policy may serve many of them
            refuse_unknown_kinds(setup, scenario.mapping.execution)
    window = scenario.trace.window if scenario.record != "all" else None
    return Plan(
        model=model,
        ops=variants[False, False],
        setup=setup,
        rules=_rules(setup, scenario.mapping.execution, kept_groups(variants[False, False]), energy),
        record=scenario.record,
        window=None if window is None else (window.start, window.end),
        warmup_time=scenario.report.warmup_time,
        warmup_requests=scenario.report.warmup_requests,
        notes=notes_of(scenario),
    )


def _setup(scenario: Scenario, model: ModelGraph, variants: Variants) -> Setup:
    hardware, memory, execution = scenario.hardware, scenario.hardware.memory, scenario.mapping.execution
    ops, sequences, concurrency = variants[False, False], requests(scenario), scenario.workload.concurrency
    held = resident_bytes(scenario, model, ops)
    _refuse_long_sequences(model, sequences)
    batches = batching(scenario, ops, sequences, kv_capacity(scenario, model, ops, sequences))
    graphs = step_graphs(scenario, variants)
    costs = costs_of(scenario)
    check_routing(graphs.routing, ops, sequences, again=_prefills_again(batches))
    return Setup(
        graph=graphs(PLAIN),
        graphs=graphs,
        sequences=sequences,
        batching=batches,
        concurrency=None if concurrency is None else concurrency.users,
        think=0 if concurrency is None else concurrency.think,
        dependency=scenario.workload.dependency,
        costs=costs,
        launch=launch_of(costs),
        machine=one_device(engines=hardware.engines.count, channels=memory.channels.count),
        scheduler=scheduler_of(scenario),
        overlap=execution == "stream",
        arbiter=arbiter_of(memory),
        bandwidth=memory.bandwidth,
        route=memory.channels.route,
        latency=memory.latency,
        sram=None if hardware.sram is None else hardware.sram - held,
        resident=held,
    )


def _refuse_long_sequences(model: ModelGraph, sequences: Sequence[Request]) -> None:
    for i, request in enumerate(sequences):
        if why := model.too_long(request.final):
            raise ConfigError("workload", f"sequence {i}: {why}")


def _prefills_again(batches: ResolvedBatching | None) -> bool:
    """Whether a prompt may be prefilled again after its KV blocks were freed."""
    return batches is not None and batches.prefills_again


def step_graphs(scenario: Scenario, variants: Variants) -> StepGraphs:
    """The task graphs of steps. Reads the routing, if it is a file, and no other files."""
    ops, mapping = variants[False, False], scenario.mapping
    _refuse_unknown_tiles(mapping, ops)
    if not isinstance(scenario.workload.routing, str) and all(op.experts is None for op in ops.ops):
        raise ConfigError("workload.routing", "expected a file only for a mixture-of-experts model")
    return StepGraphs(variants, mapping.on_engines(scenario.hardware.engines.count), routing(scenario))


def _refuse_unknown_tiles(mapping: ModelMapping, ops: OpGraph) -> None:
    """Raise ConfigError for tiles of a kind that is not a weight matmul of the model."""
    if not isinstance(mapping.tiles, dict):
        return
    kinds = {op.kind for op, product in zip(ops.ops, weight_matmuls(ops), strict=True) if product}
    for kind in mapping.tiles:
        if kind != "default" and kind not in kinds:
            raise ConfigError(f"mapping.tiles.{kind}", str(unknown("weight matmul", kind, kinds)))


def _rules(
    setup: Setup, execution: Execution, kv_layers: tuple[LayerGroup, ...], energy: EnergyRates | None
) -> Rules:  # fmt: skip
    efficiency = setup.arbiter.efficiency if isinstance(setup.arbiter, Derated) else None
    return Rules(
        arrivals=_arrivals(setup),
        dependency=setup.dependency,
        execution=execution,
        latency=setup.latency,
        cap=setup.arbiter.cap,
        stripes=setup.channels if setup.route == "interleaved" else 1,
        efficiency=(efficiency.least, efficiency.most) if efficiency is not None else (Fraction(1), Fraction(1)),
        kv_layers=kv_layers,
        energy=energy,
        sram=setup.sram,
        work_conserving_channel=setup.arbiter.work_conserving,
        work_conserving_scheduler=setup.scheduler.work_conserving,
        open_loop=setup.concurrency is None,
    )


def _arrivals(setup: Setup) -> tuple[int, ...]:
    """The earliest start of each decode loop, ps: each sequence has a loop of its own, or all share one."""
    arrivals = [request.arrival for request in setup.sequences]
    if setup.batching is None:
        return tuple(arrivals)
    if setup.concurrency is not None:  # a closed loop starts at 0
        shared = 1 if not setup.batching.settings.alone else min(setup.concurrency, len(arrivals))
        return (0,) * shared
    return tuple(arrivals) if setup.batching.settings.alone else (min(arrivals),)
