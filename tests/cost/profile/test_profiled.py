"""Runs costed by a profile take the measured times, and report costs that were not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models.library
from sim.base.errors import InputError
from sim.cost.kernel import Sized
from sim.cost.kernels import kernels
from sim.cost.profile import (
    DeviceProfile,
    Provenance,
    Residual,
    RowFit,
    Samples,
    Step,
    Timing,
    fit,
    time,
    write_profile,
)
from sim.runs.run import run
from sim.scenario import Scenario, from_dict, load
from sim.scenario.shipped import SCENARIOS
from tests.executors import assert_same

NONE = Residual(samples=1, median=0.0, p90=0.0)
HERE = Provenance(device="made up", source="written by hand", date="2026-01-01")
BANDWIDTH = 20 * 10**9
LLAMA = models.library.load("llama-3.2-1b").step()
BLOCK = LLAMA.select(2, "block")


def timing(kind: str, dtype: str = "bfloat16", unit: str = "outputs", **coefficients: int) -> Timing:
    ranges = {"bytes": (0, 10**9), "n": (0, 10**6), "k": (0, 10**5), "context": (0, 4096), "flops": (0, 10**12)}
    return Timing(
        kind=kind, dtype=dtype, form="sum", unit=unit, ranges={**ranges, "elements": (0, 10**9)},
        rows={1: RowFit(coefficients=coefficients, residual=NONE)},
    )  # fmt: skip


def profile(*timings: Timing, **others: Any) -> DeviceProfile:
    return DeviceProfile(title="made up", provenance=HERE, bandwidth=BANDWIDTH, timings=timings, **others)


OPS = (
    timing("matmul", overhead=3_000_000, bandwidth=15 * 10**9, rate=10**9),
    timing("scores", unit="flops", overhead=4_000_000, bandwidth=8 * 10**9, rate=10**10),
    timing("weighted_values", unit="flops", overhead=4_000_000, bandwidth=9 * 10**9, rate=10**10),
    timing("softmax_max", "float32", overhead=2_000_000, rate=10**9),
    timing("softmax_exp", "float32", overhead=2_000_000, rate=10**9),
    timing("softmax_norm", overhead=2_000_000, unit="elements", rate=10**9),
    timing("kv_store", overhead=5_000_000),
    timing("elementwise", overhead=6_000_000, unit="elements", rate=10**10),
)


def scenario(folder: Path, device: DeviceProfile, *overrides: str) -> Scenario:
    write_profile(device, folder / "device.yaml")
    (folder / "run.yaml").write_text(
        """
model: {config: llama-3.2-1b, layers: 2, scope: block}
workload: {sequences: [{context: 100, tokens: 40}]}
hardware: {from_profile: device.yaml}
mapping: {heads: fused, kv: operands, execution: blocking}
cost: {model: profiled, profile: device.yaml}
"""
    )
    return load(folder / "run.yaml", overrides)


@pytest.mark.parametrize("execution", ["blocking", "stream"])
@pytest.mark.parametrize("efficiency", [{}, {1: 12 * 10**9, 2: 18 * 10**9}])
def test_a_device_alone_takes_the_sum_of_what_was_measured(tmp_path: Path, execution: str, efficiency: dict[int, int]) -> None:
    """One engine: each step is the sum over its ops of scale * t + per_op, and per_step, whatever the channel's efficiency."""
    step = Step(scale=1.25, per_op=1_000_000, per_step=7_000_000)
    device = profile(*OPS, step=step, read=efficiency)
    result = run(scenario(tmp_path, device, f"mapping.execution={execution}"))
    contexts = np.arange(100, 140)
    expected = np.full(40, step.per_step, dtype=float)
    for kernel in kernels(BLOCK, contexts):
        found = device.timing(kernel.kinds, kernel.dtype)
        if found is not None:
            expected += step.scale * time(found, kernel.shapes) + step.per_op
    steps = result.log.steps
    tasks = len(result.log.graphs[0])
    if execution == "stream":  # the store is issued by a DMA, beside the engine
        stores = [k for k in kernels(BLOCK, contexts) if k.kinds == ("kv_store",)]
        expected -= sum(step.scale * time(OPS[6], k.shapes) + step.per_op for k in stores)
        assert (np.abs(steps.end - steps.released - expected) <= 20 * 10**6).all()
    else:
        assert (np.abs(steps.end - steps.released - expected) <= 2 * tasks).all()


def test_a_batch_runs_each_kernel_once(tmp_path: Path) -> None:
    """Two sequences of one context in a step: the time of the graph captured at batch 2, with attention of both in a kernel."""
    device = profile(*OPS, step=Step(scale=1.0, per_op=1_000_000))
    overrides = ["workload.batching.policy=continuous", "workload.sequences[0].count=2", "workload.sequences[0].tokens=3"]
    result = run(scenario(tmp_path, device, *overrides))
    two = models.library.load("llama-3.2-1b").step(2).select(2, "block")
    for step, context in zip(range(3), (100, 101, 102), strict=True):
        expected = 0.0
        for kernel in kernels(two, np.array([context])):
            found = device.timing(kernel.kinds, kernel.dtype)
            expected += float(time(found, kernel.shapes)[0]) + 1_000_000 if found is not None else 0
        steps = result.log.steps
        assert int(steps.end[step] - steps.released[step]) == pytest.approx(expected, abs=5000)
    assert "rows 2, measured 1" in {extrapolation.why for extrapolation in result.extrapolations}


def test_the_executors_agree(tmp_path: Path) -> None:
    written = scenario(tmp_path, profile(*OPS))
    assert_same(*(run(written, executor=executor).log for executor in ("compiled", "simpy")))


def test_attention_as_one_kernel_takes_its_time(tmp_path: Path) -> None:
    others = [t for t in OPS if t.kind not in ("scores", "weighted_values") and not t.kind.startswith("softmax")]
    attention = timing("attention", unit="flops", overhead=9_000_000, bandwidth=10 * 10**9)
    with pytest.raises(InputError, match=r"no timing for op kind 'scores'.*attention as one kernel: mapping.softmax: online"):
        run(scenario(tmp_path, profile(*others, attention)))
    result = run(scenario(tmp_path, profile(*others, attention), "mapping.softmax=online"))
    log, graph = result.log, result.log.graphs[0]
    task = next(t for t in range(len(graph)) if graph.kind_of(t) == "attention")
    (kernel,) = {id(k): k for k in kernels(graph.ops, np.array([100])) if k.kinds == ("attention",)}.values()
    assert (kernel.shapes.kv_heads[0], kernel.shapes.head_dim[0], kernel.shapes.context[0]) == (8, 64, 101)
    assert kernel.memory[0] == 2 * 100 * 8 * 64 * 2  # keys and values, bfloat16
    assert log.tasks.end[task] - log.tasks.start[task] == pytest.approx(9_000_000 + kernel.shapes.bytes[0] * 100, abs=5)


def test_shapes_are_those_of_the_model() -> None:
    found = {op.kind: kernel for op, kernel in zip(BLOCK.ops, kernels(BLOCK, np.array([1000])), strict=True)}
    down, scores = found["down_proj"].shapes, found["scores"].shapes
    assert (down.rows[0], down.n[0], down.k[0], down.flops[0]) == (1, 2048, 8192, 2 * 2048 * 8192)
    assert (down.shared[0], down.bytes[0]) == (2 * 2048 * 8192, 2 * (2048 * 8192 + 8192 + 2048))
    assert (scores.heads[0], scores.kv_heads[0], scores.head_dim[0], scores.context[0]) == (32, 8, 64, 1001)
    assert found["scores"].memory[0] == found["weighted_values"].memory[0] == 1000 * 8 * 64 * 2
    assert found["norm"].sample()["kind"] == "norm"
    assert found["down_proj"].sample()["kind"] == "matmul"


def test_an_op_kind_without_a_timing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.yaml:6:.*no timing for op kind 'norm' in bfloat16.*matmul \(bfloat16\)"):
        run(scenario(tmp_path, profile(*OPS[:-1])))


def test_extrapolations_are_reported(tmp_path: Path) -> None:
    narrow = Timing(kind="scores", dtype="bfloat16", form="sum", unit="flops", ranges={"context": (1, 120)}, rows=OPS[1].rows)
    result = run(scenario(tmp_path, profile(*OPS[:1], narrow, *OPS[2:])))
    (extrapolation,) = result.extrapolations
    assert (extrapolation.kind, extrapolation.ops, extrapolation.why) == ("scores", 2, "context 101 to 140, measured 1 to 120")
    assert 0 < extrapolation.share < 1
    assert run(scenario(tmp_path, profile(*OPS))).extrapolations == ()


def test_ops_that_are_not_measured_can_take_a_bound(tmp_path: Path) -> None:
    written = scenario(tmp_path, profile(*OPS[:-1]), "cost.otherwise=roofline")
    extrapolations = {extrapolation.kind: extrapolation.why for extrapolation in run(written).extrapolations}
    assert set(extrapolations) == {"norm", "rope", "residual", "act"}
    assert set(extrapolations.values()) == {"not measured: roofline, a lower bound, at least the shortest launch, 2 us"}


def test_between_measured_rows_time_is_linear() -> None:
    rows = {
        1: RowFit(coefficients={"overhead": 1000, "bandwidth": 10**12}, residual=NONE),
        4: RowFit(coefficients={"overhead": 4000, "bandwidth": 10**12}, residual=NONE),
    }
    both = Timing(kind="matmul", dtype="bfloat16", form="sum", unit="outputs", ranges={}, rows=rows)
    kernel = next(k for k in kernels(BLOCK, np.array([10])) if k.kinds[0] == "down_proj")
    shapes = kernel.shapes.at_rows(2)
    low, high = (float(time(both, kernel.shapes.at_rows(r))[0]) for r in (1, 4))
    assert float(time(both, shapes)[0]) == pytest.approx(low + (high - low) / 3)
    assert low == 1000 + kernel.shapes.bytes[0]


def test_samples_of_a_model_give_a_profile_of_it() -> None:
    """Measured, fitted, predicted: the predictions are the times of the model's own ops."""
    rows: dict[str, list[Any]] = {}
    for context in (16, 500, 3000):
        for op, kernel in zip(LLAMA.ops, kernels(LLAMA, np.array([context])), strict=True):
            if op.kind == "kv_load":
                continue
            duration = 2_000_000 + 50 * int(kernel.shapes.bytes[0]) + 100 * int(kernel.shapes.elements[0])
            for name, value in {**kernel.sample(), "duration": duration}.items():
                rows.setdefault(name, []).append(value)
    found = fit(Samples(rows), HERE, bandwidth=BANDWIDTH)
    assert max(fit.residual.p90 for timing in found.timings for fit in timing.rows.values()) < 0.01


@pytest.mark.parametrize(("text", "expected"), [
    ("8*B", [16, 16]), ("min(N,20)+1", [8, 21]), ("2*N-1*Q", [11, 77]),
    ("floor(N/4)", [1, 10]), ("floor((N+Q)/4)", [2, 10]), ("closed(4)", [1, 0]),
    ("N+3*min(floor(N/4),8)", [10, 64]), ("Q+min(floor((N+Q)/4),8)", [5, 11]),
])  # fmt: skip
def test_dimensions_of_ops(text: str, expected: list[int]) -> None:
    """At 7 and 40 tokens in the cache, 3 new ones, batch 2: of four tokens each, 1 and 10 rows are full, and then 2 and 10."""
    at = Sized(LLAMA.ops[0], np.zeros((1, 2), np.int64), np.array([2, 2]), np.array([3, 3]), np.array([7, 40]))
    assert at.extent(text).tolist() == expected


def test_a_model_with_compressed_caches_has_costs_of_a_profile() -> None:
    profile = {"model": "profiled", "profile": str(SCENARIOS / "profiles" / "xeon_1_thread.yaml"), "otherwise": "roofline"}
    model = {"config": "deepseek-v4-flash", "layers": 3, "scope": "block"}
    result = run(from_dict({"model": model, "mapping": {"heads": "fused"}, "cost": profile}))
    assert result.makespan >= result.bounds.lower > 0
