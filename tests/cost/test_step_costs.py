"""Rows of the compiled executor against the cost models: whatever is shared or cached, each task costs the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import sim.scenario
from models.graph import IntArray, StepLanes
from sim.base.errors import ConfigError, InputError
from sim.cost import CostModel
from sim.executors import simulate
from sim.executors.compiled.costs import Constant, Costs, PerTask, costs_of
from sim.executors.compiled.state import BYTES, COMPUTE, COST, WORK
from sim.executors.operands import sram_use
from sim.executors.setup import Setup, lanes_of
from sim.mapping.operands import operands_of
from sim.mapping.tasks import TaskGraph
from sim.runs.plan import plan
from sim.runs.run import read
from sim.scenario.shipped import scenarios
from sim.serving.batcher import Batcher
from sim.serving.loops import loops
from tests.executors import assert_same
from tests.machine.test_written_graph import TEXT

KINDS = "norm q_proj k_proj v_proj o_proj rope attention residual act gate_proj up_proj down_proj kv_load kv_store weight_load"
TABLE = "{" + ", ".join(f"{kind}: {5 + i} us" for i, kind in enumerate(KINDS.split())) + "}"

BATCHES = ("batching_continuous", "model.scope=block", "workload.generate.count=5", "workload.generate.tokens=3")
PREFETCH = "mapping={softmax: online, fuse: {qkv: false, gate_up: false}, heads: split, execution: prefetch, tiles: 4}"
LOADS = "hardware.sram=40 MiB"
FIXED = f"cost={{model: fixed, table: {TABLE}}}"
VARIED = f"cost={{model: fixed, table: {TABLE}, jitter: 0.3}}"
EXPERTS = ("moe_batch_32", "model.layers=3", "workload.sequences=[{context: 9, tokens: 3, count: 3}, {prompt: 8, tokens: 2}]")
WINDOWS = ("batching_continuous", "model={config: gemma-3-1b, layers: 6}", "mapping={softmax: fused, heads: split}",
           "workload={sequences: [{context: 700, tokens: 2}, {context: 505, prompt: 9, tokens: 2}, {prompt: 600, tokens: 2}],"
           " batching: continuous, prefill: {chunk: 200}}")  # fmt: skip


CASES = {
    "roofline": (*BATCHES, "mapping.attention=sequence"),
    "roofline, kernels for a batch": (*BATCHES, "mapping.attention=batch"),
    "roofline, prefetched": (*BATCHES, PREFETCH, LOADS),
    "experts": EXPERTS,
    "experts, kernels for a batch": (*EXPERTS, "mapping.attention=batch"),
    "guesses": ("speculation_4",),
    "windows": WINDOWS,
    "windows, kernels for a batch": (*WINDOWS, "mapping.attention=batch"),
    "a prompt that is shared": (
        "batching_continuous",
        "workload={sequences: [{prompt: 70, tokens: 3, samples: 4}], batching: {policy: continuous}}",
    ),
    "kernel": (*BATCHES, "cost=kernel"),
    "kernel, prefetched": (*BATCHES, PREFETCH, LOADS, "cost=kernel"),
    "kernel, experts": (*EXPERTS, "cost=kernel", "mapping.execution=blocking"),
    "fixed": (*BATCHES, PREFETCH, FIXED),
    "fixed, prefetched into little": (*BATCHES, PREFETCH, FIXED, LOADS),
    "fixed, varied": (*BATCHES, PREFETCH, VARIED, LOADS),
    "one sequence, fixed": ("two_tokens_4_engines",),
    "profiled": ("h100_llama_8b_batch_32", "model.layers=2", "workload.sequences=[{context: 9, tokens: 2, count: 3}]"),
}


def setup_of(name: str, *overrides: str) -> Setup:
    scenario = read(scenarios()[name], list(overrides))
    return plan(scenario).setup


def expected(setup: Setup, graph: TaskGraph, lanes: StepLanes) -> IntArray:
    """[lane, task, (compute, work, bytes of an operand)], by the cost model and the size of SRAM."""
    compute, work = setup.costs.durations(graph, lanes)
    out = np.zeros((len(lanes.context), len(compute), COST), dtype=np.int64)
    out[:, :, COMPUTE], out[:, :, WORK] = compute.T, work.T
    return out


def assert_equal(setup: Setup, graph: TaskGraph, lanes: StepLanes, found: IntArray) -> None:
    """found: [lane, task, (compute, work, bytes)]."""
    wanted = expected(setup, graph, lanes)
    np.testing.assert_array_equal(found[:, :, :BYTES], wanted[:, :, :BYTES])
    if setup.sram is not None:
        operands = operands_of(graph)
        np.testing.assert_array_equal(np.maximum(1, found[:, operands.task, BYTES]), sram_use(setup, graph, lanes).T)


@pytest.mark.parametrize("case", CASES)
def test_every_task_costs_what_the_model_says(case: str) -> None:
    setup = setup_of(*CASES[case])
    if setup.batching is None:
        assert_lanes(setup, np.arange(3))
    else:
        assert_batches(setup, loops(setup.batching, setup.sequences)[0])


def assert_lanes(setup: Setup, token: IntArray) -> None:
    """Steps of one sequence."""
    costs = costs_of(setup, setup.graph)
    lanes = StepLanes(sequence=np.zeros_like(token), token=token, context=10 + token)
    out = np.zeros((len(token), costs.rows, COST), dtype=np.int64)
    costs.fill(out, lanes)
    assert_equal(setup, setup.graph, lanes, out[:, costs.row_of])


def assert_batches(setup: Setup, batcher: Batcher) -> None:
    """The first steps of a loop, some of them with those that follow if their members decode on."""
    made: dict[int, Costs] = {}
    for number in range(12):
        batch = batcher.next(10**15)
        if batch is None:
            break
        assert setup.graphs is not None
        graph = setup.graphs(batch.shape)
        costs, lanes = made.setdefault(id(graph), costs_of(setup, graph)), lanes_of(0, number, batch, 1 + number % 3)
        out = np.full((len(lanes.context), costs.rows, COST), -1, dtype=np.int64)
        costs.fill(out, lanes)
        assert_equal(setup, graph, lanes, out[:, costs.row_of])
        batcher.ended(batch, 10**15)
    assert made


def test_costs_that_do_not_depend_on_the_step_have_few_rows() -> None:
    fixed = setup_of("two_tokens_4_engines")
    costs = costs_of(fixed, fixed.graph)
    assert isinstance(costs, Constant)
    assert costs.rows < 20 < len(fixed.graph)
    varied = setup_of("two_tokens_4_engines", "cost.jitter=0.1")
    assert isinstance(costs_of(varied, varied.graph), PerTask)


WRITTEN = TEXT.replace("execution: prefetch", "execution: prefetch, tiles: 2")


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["hardware.sram=1 GB"],
        ["cost={model: fixed, table: {q_proj: 7 ms, weight_load: 2 ms, kv_store: 1 ms, kv_load: 1 ms, attend: 1 ms}}"],
        ["model.graph=[{name: a, duration: 2 ms}, {name: b, inputs: [a], transfer: 1 ms, duration: 1 ms}]", "cost=fixed"],
    ],
)
def test_given_times_are_completed_by_the_model(changes: list[str]) -> None:
    scenario = sim.scenario.parse(WRITTEN, "g.yaml", changes)
    setup = plan(scenario).setup
    costs = costs_of(setup, setup.graph)
    assert isinstance(costs, Constant) == (len(changes) == 2)
    assert_lanes(setup, np.arange(2))


@pytest.mark.parametrize("cost", ["cost=roofline", FIXED])
def test_an_operand_that_does_not_fit_is_refused(cost: str) -> None:
    setup = setup_of(*BATCHES, PREFETCH, cost, LOADS)
    assert setup.batching is not None
    assert setup.graphs is not None
    object.__setattr__(setup, "sram", (1000,))
    batch = loops(setup.batching, setup.sequences)[0].next(10**15)
    assert batch is not None
    costs = costs_of(setup, setup.graphs(batch.shape))
    out = np.zeros((1, costs.rows, COST), dtype=np.int64)
    with pytest.raises(ConfigError, match="at once, SRAM has"):
        costs.fill(out, lanes_of(0, 0, batch))


class Counted:
    """A cost model that records how many steps each call asked for; InputError for a long context of sequence 0 alone."""

    def __init__(self, of: CostModel, most: int) -> None:
        self.of, self.most, self.asked = of, most, list[int]()

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        assert steps.members is not None
        if steps.members.sequence[:, 0].tolist() == [0] and int(steps.context.max()) > self.most:
            raise InputError("too long")
        self.asked.append(len(steps.context))
        return self.of.durations(graph, steps)


def run_counted(sequences: str, most: int) -> list[int]:
    """Run a batch by both executors, and compare their logs; returns the steps of each call of the cost model."""
    setup = setup_of("batch_8", "model.layers=1", "model.scope=block", PREFETCH, VARIED, f"workload.sequences={sequences}")
    expected = simulate(setup, executor="simpy")[0]
    counted = Counted(setup.costs, most)
    found = simulate(replace(setup, costs=counted), executor="compiled")[0]
    assert_same(found, expected)
    return counted.asked


def test_steps_that_are_worked_out_ahead_are_the_same() -> None:
    """One of two sequences ends after 20 steps, the other after 40."""
    assert run_counted("[{context: 10, tokens: 20}, {context: 30, tokens: 40}]", 1000) == [4, 8, 8, 4, 8, 8]


def test_what_does_not_fit_in_a_step_that_never_comes_is_no_error() -> None:
    """The second request comes during the first step of the first, which alone could make no second one."""
    assert run_counted("[{context: 10, tokens: 3}, {context: 3, tokens: 9, arrival: 1 ps}]", 10) == [1, 2, 4, 3]
