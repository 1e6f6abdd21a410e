"""Batched steps are replayed between arrivals, and the log is the one that the simulation gives, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.hardware.arbiters import ARBITERS
from sim.replay import driver
from sim.requests import Request
from sim.runner import op_graphs, prepare, read
from sim.serving import Batching, Speculation
from sim.shipped import scenarios
from sim.simulation import Setup, simulate
from tests.replay.test_replay import assert_same


def batched(layers: int = 1, *overrides: str) -> Setup:
    scenario = read(
        scenarios()["llama_1b_context_256"],
        [f"model.layers={layers}", "model.scope=block", "workload.batching={policy: static}", *overrides],
    )
    return prepare(scenario, *op_graphs(scenario))


@pytest.fixture(scope="module")
def setup() -> Setup:
    return batched()


requests = st.lists(
    st.builds(
        Request,
        context=st.integers(0, 300), prompt=st.sampled_from((0, 0, 1, 40)), tokens=st.integers(1, 12),
        arrival=st.integers(0, 4_000_000_000),
    ),
    min_size=1, max_size=5,
)  # fmt: skip
batchings = st.builds(
    Batching,
    policy=st.sampled_from(("static", "continuous")), sequences=st.integers(1, 4), chunk=st.sampled_from((None, 16)),
    blocks=st.sampled_from((None, 30)), full=st.sampled_from(("wait", "recompute", "swap")),
    speculation=st.sampled_from((None, Speculation(draft=2, acceptance=0.5))),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    requests=requests, batching=batchings, concurrency=st.sampled_from((None, None, 1, 3)), engines=st.integers(1, 5),
    arbiter=st.sampled_from(("fifo", "processor_sharing")), think=st.sampled_from((0, 500_000_000)),
)  # fmt: skip
def test_random_batches_are_the_same_to_the_bit(setup: Setup, requests, batching, concurrency, engines, arbiter, think):
    setup = replace(
        setup, sequences=requests, batching=batching, concurrency=concurrency, think=think, engines=engines,
        arbiter=ARBITERS.make(arbiter, {}),
    )  # fmt: skip
    log, report = driver.run(setup)
    assert_same(log, simulate(setup))
    assert report.replayed + sum(report.reasons.values()) == report.steps == len(log.steps)


def test_nearly_all_steps_of_a_static_batch_replay(setup: Setup):
    setup = replace(
        setup,
        batching=Batching(policy="static", sequences=4),
        sequences=[Request(context=100 * i, tokens=100, arrival=0) for i in range(4)],
    )
    log, report = driver.run(setup)
    assert (len(log.steps), report.steps) == (100, 100)
    assert report.replayed >= 90, report.reasons
    assert report.tapes <= 2
    assert_same(log, simulate(setup))


def test_whoever_arrives_takes_part_in_the_next_step(setup: Setup):
    alone = replace(
        setup, batching=Batching(policy="continuous", sequences=4), sequences=[Request(context=9, tokens=60, arrival=0)]
    )
    length = driver.run(alone)[0].makespan
    setup = replace(alone, sequences=[*alone.sequences, Request(context=30, tokens=20, arrival=length // 2)])
    log, report = driver.run(setup)
    several = [step for step, count in enumerate(_members(log)) if count == 2]
    assert len(several) == 20
    assert log.steps.released[several[0] - 1] < length // 2 <= log.steps.released[several[0]]
    assert report.replayed >= 50
    assert_same(log, simulate(setup))


def _members(log) -> list[int]:
    counts = [0] * len(log.steps)
    for step in log.members.step.tolist():
        counts[step] += 1
    return counts


def test_loops_beside_each_other_are_not_replayed(setup: Setup):
    two = [Request(context=1, tokens=2, arrival=0)] * 2
    apart = replace(setup, batching=Batching(policy="independent"), sequences=two)
    assert "barriers" in str(driver.obstacle(apart))
    assert driver.obstacle(replace(apart, concurrency=1)) is None
    assert_same(driver.run(replace(apart, concurrency=1))[0], simulate(replace(apart, concurrency=1)))
