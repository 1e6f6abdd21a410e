"""Replay gives the event log that the simulation gives, to the bit: every column of every table."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.eventlog import EventLog
from sim.graph import IntArray, OpGraph, StepLanes
from sim.hardware.arbiters import ARBITERS, Derated, Efficiency
from sim.lowering import Mapping, lower
from sim.replay import driver
from sim.replay.sharing import served_in, time_to_serve
from sim.replay.tape import Tape
from sim.requests import Request
from sim.runner import op_graphs, prepare, read
from sim.scheduling import SCHEDULERS
from sim.shipped import scenarios
from sim.simulation import Setup, simulate
from sim.tasks import TaskGraph
from tests.analysis.machine import UnitCosts
from tests.graphs import GraphBuilder, llama_block


def assert_same(a: EventLog, b: EventLog) -> None:
    for table in ("tasks", "grants", "steps"):
        left, right = getattr(a, table), getattr(b, table)
        for column in fields(left):
            x, y = getattr(left, column.name), getattr(right, column.name)
            assert x.dtype == y.dtype, f"{table}.{column.name}"
            np.testing.assert_array_equal(x, y, err_msg=f"{table}.{column.name}")
    assert (a.engines, a.channels, a.bandwidth, len(a.graphs)) == (b.engines, b.channels, b.bandwidth, len(b.graphs))
    assert a.arrival.tolist() == b.arrival.tolist()
    assert (a.batched is None) == (b.batched is None)
    for column in fields(a.members):
        np.testing.assert_array_equal(getattr(a.members, column.name), getattr(b.members, column.name), err_msg=column.name)


@st.composite
def graphs(draw: st.DrawFn) -> OpGraph:
    """Random DAGs whose costs are a few picoseconds and grow with the context: ties and changes of order are the rule."""
    build = GraphBuilder()
    cost = st.tuples(st.integers(0, 6), st.integers(0, 2))
    stored = False
    for i in range(draw(st.integers(1, 9))):
        inputs = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        kind = draw(st.sampled_from(("norm", "norm", "q_proj", "q_proj", "scores", "act", "kv_load", "kv_store")))
        if kind == "kv_load":
            build.add(kind, *inputs, kv_read=draw(cost))
        elif kind == "kv_store":
            build.add(kind, *inputs, kv_write=draw(cost))
            stored = True
        elif kind == "q_proj":
            build.add(kind, *inputs, flops=draw(cost), weight=draw(st.integers(1, 6)), act_read=1, act_write=draw(cost))
        else:
            heads = draw(st.integers(2, 5)) if kind == "scores" else 0
            build.add(kind, *inputs, flops=draw(cost), heads=heads, act_write=draw(cost))
    if not stored:
        build.add("kv_store", kv_write=1)
    return build.graph()


@st.composite
def efficiencies(draw: st.DrawFn) -> Efficiency:
    shares = st.sampled_from((Fraction(1), Fraction(27, 50), Fraction(2, 3), Fraction(1, 7), Fraction(65521, 65536)))
    return Efficiency(draw(st.dictionaries(st.integers(1, 5), shares, min_size=1, max_size=3)))


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    execution = draw(st.sampled_from(("blocking", "stream", "prefetch")))
    mapping = Mapping(
        execution=execution,
        weights=draw(st.sampled_from(("streamed", "streamed", "resident"))),
        activations=draw(st.sampled_from(("on_chip", "on_chip", "off_chip"))),
        heads=draw(st.sampled_from(("split", "fused"))),
        tiles=draw(st.integers(1, 3)),
    )
    cap = draw(st.sampled_from(((1, 1), (1, 1), (1, 2), (2, 5), (3, 4))))
    arbiter = ARBITERS.make(draw(st.sampled_from(("fifo", "processor_sharing"))), {"cap": cap})
    return Setup(
        graph=lower(draw(graphs()), mapping),
        sequences=[Request(context=draw(st.integers(0, 3)), tokens=draw(st.integers(1, 12)), arrival=draw(st.integers(0, 3)))],
        dependency="sampled", costs=UnitCosts(), engines=draw(st.integers(1, 4)),
        scheduler=SCHEDULERS.make(draw(st.sampled_from(SCHEDULERS.names()[:6])), {}), overlap=execution == "stream",
        arbiter=draw(st.sampled_from((arbiter, Derated(arbiter, draw(efficiencies()))))), bandwidth=10**12,
        latency=draw(st.integers(0, 3)),
        sram=draw(st.sampled_from((None, 6, 9, 15))) if execution == "prefetch" else None,
    )  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(setups())
def test_random_runs_are_the_same_to_the_bit(setup: Setup):
    log, report = driver.run(setup)
    assert_same(log, simulate(setup))
    assert report.replayed + sum(report.reasons.values()) == report.steps


class _Bump(UnitCosts):
    """From some step on one task takes longer: tasks that cost the same at first do not any more."""

    def __init__(self, task: int, context: int) -> None:
        self.task, self.context = task, context

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work = (times.copy() for times in super().durations(graph, steps))
        task = self.task % len(graph)
        for times in (compute, work):
            times[task] += (times[task] > 0) & (steps.context >= self.context)
        return compute, work


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(setup=setups(), task=st.integers(0, 40), context=st.integers(0, 12))
def test_tasks_that_cost_the_same_only_at_first_are_told_apart(
    setup: Setup, task: int, context: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(driver, "LANES", 4)  # steps at once: costs are compared within them
    setup = replace(setup, costs=_Bump(task, context))
    assert_same(driver.run(setup)[0], simulate(setup))


@pytest.mark.slow
@settings(max_examples=2500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(setups())
def test_many_random_runs_are_the_same_to_the_bit(setup: Setup):
    log, _ = driver.run(setup)
    assert_same(log, simulate(setup))


def _llama(tokens: int, **rest: object) -> Setup:
    execution = str(rest.pop("execution", "prefetch"))
    return Setup(
        graph=lower(llama_block(layers=2), Mapping(execution=execution, weights="streamed")),
        sequences=[Request(context=200, tokens=tokens, arrival=7)], dependency="sampled", costs=UnitCosts(), engines=4,
        scheduler=SCHEDULERS.make("earliest", {}), overlap=execution == "stream",
        arbiter=ARBITERS.make(str(rest.pop("arbiter", "fifo")), {}), bandwidth=10**12, **rest,
    )  # fmt: skip


@pytest.mark.parametrize("execution", ["blocking", "stream", "prefetch"])
def test_one_tape_serves_all_steps_of_a_block(execution: str):
    setup = _llama(300, execution=execution)
    log, report = driver.run(setup)
    assert (report.replayed, report.tapes) == (300, 1)
    assert_same(log, simulate(setup))


def _crossing() -> Setup:
    """20 steps in which one task is ready before another until the context is 10."""
    build = GraphBuilder()
    build.add("kv_load", kv_read=(0, 1))
    build.add("norm", flops=10)
    build.add("q_proj", 0, flops=3)
    build.add("q_proj", 1, flops=3)
    build.add("kv_store", kv_write=1)
    return Setup(
        graph=lower(build.graph(), Mapping(execution="prefetch", weights="resident")),
        sequences=[Request(context=1, tokens=20, arrival=0)], dependency="sampled", costs=UnitCosts(), engines=1,
        scheduler=SCHEDULERS.make("earliest", {}), overlap=False, arbiter=ARBITERS.make("fifo", {}), bandwidth=10**12,
    )  # fmt: skip


def _order_that_changes() -> Setup:
    build = GraphBuilder()
    build.add("kv_load", kv_read=(0, 1))  # ends before the other until the context is 10
    build.add("norm", flops=10)
    build.add("q_proj", 0, flops=3)
    build.add("q_proj", 1, flops=3)
    build.add("kv_store", kv_write=1)
    return Setup(
        graph=lower(build.graph(), Mapping(execution="prefetch", weights="resident")),
        sequences=[Request(context=1, tokens=20, arrival=0)], dependency="sampled", costs=UnitCosts(), engines=1,
        scheduler=SCHEDULERS.make("earliest", {}), overlap=False, arbiter=ARBITERS.make("fifo", {}), bandwidth=10**12,
    )  # fmt: skip


def test_an_order_that_changes_takes_another_tape():
    setup = _order_that_changes()
    log, report = driver.run(setup)
    assert report.tapes > 1
    assert_same(log, simulate(setup))


def test_lanes_that_no_tape_serves_are_simulated_and_say_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver, "MAX_TAPES", 1)
    setup = _crossing()
    log, report = driver.run(setup)
    assert_same(log, simulate(setup))
    assert 0 < report.replayed < 20
    assert sum(report.reasons.values()) == 20 - report.replayed
    assert set(report.reasons) <= {"an engine waits for a task", "a task waits for an engine", "which task goes first"}


def test_a_tape_without_its_decisions_would_be_wrong(monkeypatch: pytest.MonkeyPatch):
    """The decisions are what keeps replay exact: without them an order that changes goes unnoticed."""
    monkeypatch.setattr(Tape, "_verify", lambda _self, _times, _failed: None)
    setup = _order_that_changes()
    log, _ = driver.run(setup)
    with pytest.raises(AssertionError):
        assert_same(log, simulate(setup))


@given(work=st.integers(0, 2**40), share=st.integers(1, 2**17), denominator=st.integers(1, 2**17))
def test_shares_of_long_times_do_not_overflow(work: int, share: int, denominator: int):
    lanes = np.array([work, work + 1])
    exact = [-(-each * denominator // share) for each in lanes.tolist()]
    assert time_to_serve(lanes, share, denominator).tolist() == exact
    assert served_in(lanes, share, denominator).tolist() == [each * share // denominator for each in lanes.tolist()]


def test_what_cannot_be_replayed_says_why():
    setup = _llama(2)
    known = Setup(**{**{f.name: getattr(setup, f.name) for f in fields(setup)}, "dependency": "known"})
    assert "barriers" in str(driver.obstacle(known))
    assert driver.run(setup, replay=False)[1].reasons == {"switched off": 2}


def test_other_bandwidths_and_latencies_reuse_a_tape():
    tapes = driver.Tapes()
    first = _llama(60, latency=3)
    driver.run(first, tapes=tapes)
    for change in ({"latency": 90}, {"costs": UnitCosts(), "bandwidth": 10**11}):
        setup = replace(first, **change)
        log, report = driver.run(setup, tapes=tapes)
        assert_same(log, simulate(setup))
        assert (report.replayed, report.tapes) == (60, 0)
    for change in ({"engines": 3}, {"latency": 0}, {"overlap": True}):
        setup = replace(first, **change)
        log, report = driver.run(setup, tapes=tapes)
        assert_same(log, simulate(setup))
        assert report.tapes >= 1  # other rules


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=graphs(), latencies=st.lists(st.integers(1, 9), min_size=2, max_size=4), engines=st.integers(1, 3))
def test_shared_tapes_give_what_the_simulation_gives(graph: OpGraph, latencies: list[int], engines: int):
    tapes = driver.Tapes()
    for latency in latencies:
        setup = Setup(
            graph=lower(graph, Mapping(execution="prefetch", weights="streamed")),
            sequences=[Request(context=1, tokens=12, arrival=0)], dependency="sampled", costs=UnitCosts(), engines=engines,
            scheduler=SCHEDULERS.make("earliest", {}), overlap=False, arbiter=ARBITERS.make("fifo", {}), bandwidth=10**12,
            latency=latency,
        )  # fmt: skip
        assert_same(driver.run(setup, tapes=tapes)[0], simulate(setup))


def test_other_machines_of_one_structure_simulate_no_step_of_their_own():
    """Bandwidth, speed of engines, latency and costs are delays: what the first run recorded serves the others."""
    tapes = driver.Tapes()

    def simulated(*overrides: str) -> int:
        base = ["workload.sequences=[{context: 256, tokens: 50}]", "model.layers=1", "model.scope=block"]
        scenario = read(scenarios()["llama_1b_context_256"], [*base, "hardware.memory.latency=100 ns", *overrides])
        setup = prepare(scenario, *op_graphs(scenario))
        log, report = driver.run(setup, tapes=tapes)
        assert_same(log, simulate(setup))
        assert report.replayed == report.steps == 50
        return report.tapes

    assert simulated() == 1
    assert simulated("hardware.memory.bandwidth=120 GB/s") == 0
    assert simulated("hardware.engines.flops=1.1 TFLOP/s") == 0
    assert simulated("hardware.memory.latency=150 ns") == 0
    assert simulated("hardware.engines.overhead=200 ns") == 0
