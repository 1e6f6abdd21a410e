"""Prices of launches: what a device cannot be faster than, prompts, formats of weights, and small ops."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from sim.base.errors import InputError
from sim.base.units import PS_PER_S
from sim.cost.kernel import Kernel
from sim.cost.kernel_costs import KernelCosts
from sim.cost.kernels import joined
from sim.cost.model import Rates
from sim.cost.pricing import Pricing
from sim.cost.profile import DeviceProfile, Shapes, Step, read_profile
from sim.cost.profiled import Profiled, calls
from sim.machine.presets import find
from sim.mapping.steps import Shape
from sim.runs.run import known_names
from sim.scenario import from_dict
from tests.cost.profile.test_profiled import OPS, profile, scenario, timing
from tests.executors import assert_same
from tests.mapping.test_template import graphs, lanes

PROFILES = Path(__file__).parents[3] / "scenarios" / "profiles"
H100 = Rates(flops=989 * 10**12, vector_flops=335 * 10**11, overhead=0, bandwidth=335 * 10**10, overlap=True)
LLAMA_8B = {
    "model": {"config": "llama-3.1-8b"},
    "workload": {"sequences": [{"context": 0, "prompt": 2048, "tokens": 1}]},
    "hardware": {
        "from_profile": str(PROFILES / "h100_sxm.yaml"),
        "engines": {"flops": "989 TFLOP/s", "vector_flops": "33.5 TOP/s"},
    },
    "mapping": {"softmax": "online", "fuse": {"qkv": True, "gate_up": True}, "heads": "fused", "kv": "operands",
                "execution": "stream"},
    "cost": {"model": "profiled", "profile": str(PROFILES / "h100_sxm.yaml"), "otherwise": "roofline"},
}  # fmt: skip


FALLBACK = "weights in float8_e4m3fn: not measured, times are those of bfloat16 for as many bytes"


@cache
def shipped(name: str) -> DeviceProfile:
    return read_profile(PROFILES / f"{name}.yaml")


def kernel(kinds: tuple[str, ...], rows: int, sequences: int = 1, stored: str = "", **amounts: int) -> Kernel:
    """One launch. amounts: columns of its shapes; `memory` of its bytes are weights or cache."""
    one, memory = np.ones(1, dtype=np.int64), amounts.pop("memory")
    columns = {name: amounts.get(name, 0) * one for name in Shapes.__dataclass_fields__}
    shapes = Shapes(**columns | {"rows": rows * one, "bytes": (memory + amounts.get("bytes", 0)) * one})
    return Kernel(kinds, "bfloat16", stored, shapes, sequences * one, shapes.bytes, 0 * one, memory * one)


def matmul(rows: int, n: int, k: int, stored: str = "", size: int = 2) -> Kernel:
    weights = size * n * k
    return kernel(
        ("matmul",), rows, stored=stored, n=n, k=k, flops=2 * rows * n * k, memory=weights, shared=weights,
        bytes=2 * rows * (n + k),
    )  # fmt: skip


def attention(queries: int, context: int, sequences: int = 1, heads: int = 32, kv_heads: int = 8, size: int = 128) -> Kernel:
    """Attention of sequences with so many new tokens each to `context` tokens in the cache and to all new ones."""
    rows, keys = queries * sequences, context + queries
    kinds = ("prefill_attention", "attention") if queries > 1 else ("attention",)
    return kernel(
        kinds, rows, sequences, heads=heads, kv_heads=kv_heads, head_dim=size, context=keys,
        flops=4 * rows * heads * size * keys, elements=3 * rows * heads * keys,
        memory=4 * sequences * kv_heads * size * context, bytes=4 * rows * heads * size,
    )  # fmt: skip


def price(pricing: Pricing, launch: Kernel) -> float:
    found = pricing.timing(launch)
    assert found is not None
    return float(pricing.time(launch, found)[0])


# Prompts --------------------------------------------------------------------------------------------------------------------


def test_a_prompt_takes_at_least_the_roofline_and_at_most_twice() -> None:
    """2 * 8.03e9 * 2,048 FLOPs / 989 TFLOP/s = 33 ms; the table of embeddings is no product, attention comes on top."""
    found = sim.run(from_dict(LLAMA_8B))
    bound = sim.run(from_dict({**LLAMA_8B, "cost": "roofline"}))
    assert bound.makespan <= found.makespan <= 2 * bound.makespan
    assert 0.9 * 33e9 < found.makespan < 1.3 * 33e9
    (why,) = (each.why for each in found.extrapolations if each.kind == "attention")
    assert why.startswith("several tokens at once not measured, TTFT is outside of this profile: a bound by FLOPs / peak")
    (why,) = (each.why for each in found.extrapolations if each.kind == "down_proj")
    assert why == "rows 2,048, measured 1 to 128; held at FLOPs / peak, below which no device is"


@pytest.mark.parametrize(
    ("model", "kv_heads", "head_dim"), [("llama-3.2-1b", 8, 64), ("deepseek-v2-lite", 1, (576 + 512) // 2)]
)
@pytest.mark.parametrize("mapping", ["operands", "splits"])
@pytest.mark.parametrize("queries", [1, 4, 33])
def test_heads_are_facts_of_the_op(model: str, kv_heads: int, head_dim: int, mapping: str, queries: int) -> None:
    """However many tokens a member feeds in, by whichever mapping: heads of the cache, and all tokens attended to."""
    ops = graphs(model, mapping)(Shape((queries > 1, False))).ops
    steps = lanes([(700, queries, 700), (900, 1, 900)], 2)
    seen = 0
    for rows, each in calls(ops, steps):
        if ops.ops[rows[0]].kind not in ("attention", "scores"):
            continue
        launches = joined([part for parts in each for part in parts])
        for launch in launches:
            shapes, wanted = launch.shapes, head_dim
            if ops.ops[rows[0]].kind == "scores" and model.startswith("deepseek"):
                wanted = 576
            assert (shapes.kv_heads[0], shapes.head_dim[0]) == (kv_heads, wanted)
            seen += 1
        context = {int(launch.sequences[0]): launch.shapes.context[0] for launch in launches}
        if len(launches) == 2:
            assert {int(launch.shapes.context[0]) for launch in launches} == {700 + queries, 901}
        elif queries == 1:
            assert context == {2: (701 + 901) // 2}
    assert seen


def test_a_mixed_step_is_its_prompt_and_its_decodes() -> None:
    """Attention of one prompt and two decodes: the launch of the prompt, and that of the decodes."""
    costs = Profiled(machine=H100, seed=0, profile=shipped("h100_cuda_graphs"), otherwise="roofline")

    def attention_of(*members: tuple[int, int, int]) -> int:
        ops = graphs("llama-3.2-1b", "splits", "batch")(Shape(tuple(query > 1 for _, query, _ in members))).ops
        whole = costs.op_times(ops, lanes(list(members), len(members))).whole
        return int(whole[[i for i, kind in enumerate(ops.kind.tolist()) if kind == "attention"]].sum())

    decodes, prompt = [(900, 1, 900), (400, 1, 400)], (100, 300, 100)
    assert attention_of(*decodes, prompt) == pytest.approx(attention_of(*decodes) + attention_of(prompt), abs=10)


@pytest.mark.parametrize("name", ["h100_sxm", "h100_cuda_graphs"])
def test_to_verify_tokens_costs_no_less_than_one(name: str) -> None:
    """Speculation: attention of four tokens reads the cache once; its arithmetic is little."""
    pricing = Pricing(shipped(name), H100)
    one, four = price(pricing, attention(1, 4000)), price(pricing, attention(4, 3997))
    assert one <= four * 1.001
    assert four < 1.5 * one


# Bounds ---------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # the first example reads the profile
@given(
    st.sampled_from(["h100_sxm", "h100_cuda_graphs", "h100_eager"]), st.integers(1, 20_000), st.integers(1, 2**17),
    st.integers(1, 2**15),
)  # fmt: skip
def test_no_matmul_is_below_the_bound(name: str, rows: int, n: int, k: int) -> None:
    device = shipped(name)
    found = price(Pricing(device, None), matmul(rows, n, k))
    bound = max(2 * rows * n * k / 989e12, 2 * n * k / device.bandwidth) * PS_PER_S
    assert found >= bound * (1 - 1e-9)


@settings(deadline=None)  # the first example reads the profile
@given(
    st.sampled_from(["h100_sxm", "h100_cuda_graphs", "h100_eager"]), st.integers(1, 5000), st.integers(0, 150_000),
    st.integers(1, 64),
)  # fmt: skip
def test_no_attention_is_below_the_bound(name: str, queries: int, context: int, sequences: int) -> None:
    launch, device = attention(queries, context, sequences), shipped(name)
    bound = max(launch.shapes.flops[0] / 989e12, launch.memory[0] / device.bandwidth) * PS_PER_S
    assert price(Pricing(device, H100), launch) >= bound * (1 - 1e-9)


@settings(deadline=None)  # the first example reads the profile
@given(
    st.sampled_from(["h100_sxm", "h100_cuda_graphs"]), st.integers(128, 10_000), st.integers(1, 10_000),
    st.sampled_from([(2048, 2048), (28672, 4096), (4096, 14336), (256, 64)]),
)  # fmt: skip
def test_more_rows_than_were_measured_take_longer(name: str, rows: int, more: int, shape: tuple[int, int]) -> None:
    pricing = Pricing(shipped(name), None)
    assert price(pricing, matmul(rows + more, *shape)) >= price(pricing, matmul(rows, *shape))


def test_many_rows_grow_linearly() -> None:
    """Far beyond the table a matmul takes its FLOPs / peak, and what a launch takes."""
    pricing = Pricing(shipped("h100_sxm"), None)
    small, large = (price(pricing, matmul(rows, 28672, 4096)) for rows in (4096, 8192))
    assert large - small == pytest.approx(2 * 4096 * 28672 * 4096 / 989e12 * PS_PER_S, rel=1e-9)


@settings(deadline=None)  # the first example reads the profile
@given(st.integers(1, 8000), st.integers(1, 2000), st.integers(0, 50_000), st.integers(1, 16))
def test_longer_prompts_take_longer(queries: int, more: int, context: int, sequences: int) -> None:
    pricing = Pricing(shipped("h100_sxm"), H100)
    short, long = (price(pricing, attention(q, context, sequences)) for q in (queries + 1, queries + 1 + more))
    assert long >= short * (1 - 1e-9)


def test_what_is_held_at_the_bound_is_said() -> None:
    """0.9 GB of weights at 20 GB/s cannot take 3 us."""
    device = profile(timing("matmul", overhead=3_000_000), flops={"bfloat16": 10**12})
    pricing, launch = Pricing(device, None), matmul(1, 10**6, 450)
    assert price(pricing, launch) == 9 * 10**8 / (20 * 10**9) * PS_PER_S
    assert "held at bytes / bandwidth, below which no device is" in list(pricing.reasons(launch))
    within = profile(timing("matmul", overhead=3_000_000, bandwidth=15 * 10**9), flops={"bfloat16": 10**12})
    assert list(Pricing(within, None).reasons(launch)) == []


# Formats --------------------------------------------------------------------------------------------------------------------


def test_weights_in_fp8_take_times_that_were_measured_in_fp8() -> None:
    one = timing("matmul", overhead=3_000_000, bandwidth=15 * 10**9)
    other = timing("matmul", "float8_e4m3fn", overhead=5_000_000, bandwidth=10 * 10**9)
    launch = matmul(1, 2000, 1000, stored="float8_e4m3fn", size=1)
    both = Pricing(profile(one, other), None)
    assert price(both, launch) == 5_000_000 + (2_000_000 + 2 * 3000) * 100
    assert list(both.reasons(launch)) == []
    poor = Pricing(profile(one), None)
    assert price(poor, launch) == pytest.approx(3_000_000 + (2_000_000 + 2 * 3000) * 1000 / 15)
    assert list(poor.reasons(launch)) == [FALLBACK]


@pytest.mark.parametrize("measured", [True, False])
def test_a_profile_in_fp8_is_used_for_a_model_in_fp8(tmp_path: Path, measured: bool) -> None:
    """A matmul takes 400 us in fp8 if that was measured, else what bfloat16 takes for its bytes, and the report says so."""
    fp8 = [timing("matmul", "float8_e4m3fn", overhead=400_000_000)] if measured else []
    found = sim.run(scenario(tmp_path, profile(OPS[0], *fp8, *OPS[1:]), "mapping.formats.weights=fp8"))
    log, graph = found.log, found.log.graphs[0]
    task = next(i for i in range(len(graph)) if graph.kind_of(i) == "q_proj")
    time = int(log.tasks.end[task] - log.tasks.start[task])
    moved = 2048 * 2048 + 2 * 2 * 2048
    expected = 400_000_000 if measured else 3_000_000 + moved * 1000 / 15 + 2048 * 1000
    assert time == pytest.approx(expected, abs=10)
    said = {each.why for each in found.extrapolations if each.kind == "q_proj"}
    assert said == (set() if measured else {FALLBACK})


def test_float16_takes_times_that_were_measured_in_bfloat16() -> None:
    """A model that ships in float16 is as fast as one in bfloat16, and the report says whose times they are."""
    same = Pricing(profile(timing("matmul", overhead=3_000_000, bandwidth=15 * 10**9)), None)
    half = replace(matmul(1, 2000, 1000), dtype="float16")
    assert price(same, half) == price(same, matmul(1, 2000, 1000))
    assert list(same.reasons(half)) == ["float16 not measured: times are those of bfloat16"]
    own = timing("matmul", "float16", overhead=7_000_000, bandwidth=15 * 10**9)
    both = Pricing(profile(own, timing("matmul", overhead=3_000_000, bandwidth=15 * 10**9)), None)
    assert price(both, half) == price(both, matmul(1, 2000, 1000)) + 4_000_000
    assert list(both.reasons(half)) == []


# Small ops ------------------------------------------------------------------------------------------------------------------


def test_an_op_that_was_not_measured_takes_a_launch() -> None:
    """A norm of 2,048 numbers takes nothing by the roofline; the shortest launch here is 0.5 * 2 us + 0.25 us."""
    device = profile(timing("matmul", overhead=2_000_000), timing("rope", overhead=9_000_000),
                     step=Step(scale=0.5, per_op=250_000))  # fmt: skip
    costs = Profiled(machine=replace(H100, overlap=False), seed=0, profile=device, otherwise="roofline")
    graph = graphs("llama-3.2-1b", "operands")(Shape((False,)))
    steps = lanes([(100, 1, 100)], 1)
    compute, _ = costs.durations(graph, steps if graph.ops.members is not None else replace(steps, members=None))
    kinds = np.array([graph.ops.ops[i].kind for i in graph.op])
    norms = np.unique(graph.op[kinds == "norm"])
    whole = [int(compute[(graph.op == op) & graph.computes].sum()) for op in norms]
    assert all(time == pytest.approx(1_250_000, rel=0.01) for time in whole)


REST = {"t0": {"matmul": 4_000_000, "attention": 9_000_000, "other": 2_000_000}, "peak_share": 0.5}


def test_what_was_not_measured_takes_kernel_costs() -> None:
    """A norm takes its t0, a product that was not measured t0 + the later of its bytes and its FLOPs at half of the peak."""
    norms_alone = profile(timing("norm", overhead=3_000_000))
    machine = replace(H100, overlap=True)
    graph = graphs("llama-3.2-1b", "operands")(Shape((False,)))
    steps = replace(lanes([(100, 1, 100)], 1), members=None) if graph.ops.members is None else lanes([(100, 1, 100)], 1)
    kinds = np.array([graph.ops.ops[i].kind for i in graph.op])
    by_kernel = KernelCosts(machine=machine, seed=0, **REST)
    found, wanted = (
        costs.durations(graph, steps)
        for costs in (Profiled(machine=machine, seed=0, profile=norms_alone, otherwise="kernel", **REST), by_kernel)
    )
    launches = by_kernel.launches(graph)
    for kind in ("rope", "q_proj", "down_proj", "lm_head", "act"):
        tasks = np.flatnonzero((kinds == kind) & graph.computes)
        whole = found[0][tasks] + found[1][tasks]  # loads after what is left of its time, as with measured ones
        alone = launches[tasks, None] + np.maximum(wanted[0][tasks] - launches[tasks, None], wanted[1][tasks])
        assert np.abs(whole - alone).max() <= 2, kind
    norm = np.flatnonzero((kinds == "norm") & graph.computes)
    assert (found[0][norm] + found[1][norm]).ravel().tolist() == pytest.approx([3_000_000] * len(norm), rel=0.01)


def test_beyond_the_table_products_reach_the_share_of_the_peak() -> None:
    """A prompt of 2,048 tokens: FLOPs at 0.8 of 989 TFLOP/s beyond 128 rows, at the peak with `roofline`."""
    measured = shipped("h100_sxm")
    shares = {"t0": REST["t0"], "peak_share": 0.8}
    costs = Profiled(machine=H100, seed=0, profile=measured, otherwise="kernel", **shares)
    launch, flops = matmul(2048, 28672, 4096), 2 * 2048 * 28672 * 4096
    reached, peak = (price(each, launch) for each in (costs.pricing, Pricing(measured, H100)))
    assert reached - peak == pytest.approx(flops / 989e12 * (1 / 0.8 - 1) * PS_PER_S, rel=1e-6)
    within = matmul(64, 28672, 4096)
    assert price(costs.pricing, within) == price(Pricing(measured, H100), within)
    norm = kernel(("norm", "elementwise"), 1, memory=4096, elements=2048)
    assert list(costs.pricing.reasons(norm)) == ["not measured: kernel costs"]


def test_a_preset_brings_the_constants_of_what_was_not_measured() -> None:
    written = {
        "model": {"config": "llama-3.2-1b", "layers": 1}, "hardware": {"preset": "h100-sxm"},
        "cost": {"model": "profiled", "profile": str(PROFILES / "h100_sxm.yaml"), "otherwise": "kernel"},
    }  # fmt: skip
    made = from_dict(written, known=known_names())
    assert made.cost.peak_share == find("h100-sxm").kernel.options(1)["peak_share"]  # type: ignore[union-attr]
    assert sim.run(made).makespan > 0
    with pytest.raises(InputError, match=r"t0: expected only with otherwise: kernel"):
        sim.run(from_dict({**written, "cost": {**written["cost"], "otherwise": "roofline", "t0": "1 us"}}))
    with pytest.raises(InputError, match=r"t0: expected a value, which the preset does not have"):
        sim.run(from_dict({**written, "hardware": {}}))


def test_the_executors_agree_on_prompts() -> None:
    """Prompts in chunks beside decodes, with attention of all in one kernel."""
    sections = {
        **LLAMA_8B,
        "model": {"config": "llama-3.1-8b", "layers": 2},
        "mapping": {**LLAMA_8B["mapping"], "attention": "batch"},
        "workload": {
            "sequences": [{"context": 300, "prompt": 90, "tokens": 3, "count": 2}, {"context": 20, "tokens": 6}],
            "batching": {"policy": "continuous"},
            "prefill": {"chunk": 32},
        },
    }
    assert_same(*(sim.run(from_dict(sections), executor=executor).log for executor in ("compiled", "simpy")))
