"""Roofline costs: the closed form of one op, and public measurements, none of which is below the bound."""

from __future__ import annotations

import pytest

import sim
from sim.machine.presets.files import find
from sim.scenario import from_dict


def makespan(op: dict, **hardware: object) -> int:  # type: ignore[type-arg]
    """Picoseconds of one op alone on one engine that computes while operands load."""
    engines = {"count": 1, "flops": "2 TFLOP/s", "vector_flops": "1 TOP/s", **hardware.pop("engines", {})}  # type: ignore[dict-item]
    written = {
        "model": {"graph": [{"name": "op", **op}]},
        "hardware": {**hardware, "engines": engines},
        "mapping": {"execution": "stream", "heads": "fused"},
        "cost": "roofline",
    }
    return sim.run(from_dict(written)).makespan


@pytest.mark.parametrize(("flops", "elements", "expected"), [
    (2 * 10**9, 10**8, 10**9),  # 1 ms of products hides 0.1 ms of vector work
    (2 * 10**8, 10**9, 10**9),  # and the other way round
    (2 * 10**9, 0, 10**9), (0, 10**9, 10**9),
])  # fmt: skip
def test_vector_work_overlaps_the_products_of_its_task(flops: int, elements: int, expected: int) -> None:
    op = {"flops": flops, "vector_ops": elements, "kind": "attention"}
    assert makespan(op) == expected
    assert makespan(op, engines={"overhead": "5 us"}) == expected + 5 * 10**6, "an overhead is paid on top"


def device(name: str) -> dict[str, object]:
    """`hardware` of a preset as one engine with the rates of the whole device."""
    preset = find(name)
    flops = {dtype: f"{figure.value} FLOP/s" for dtype, figure in preset.peak.items()}
    return {"preset": name, "engines": {"count": 1, "flops": flops, "vector_flops": f"{preset.vector.value} FLOP/s"}}


#: NVIDIA AIConfigurator (github.com/ai-dynamo/aiconfigurator), tables of kernels that vLLM runs, in bfloat16: microseconds of a
#: product [m, k] x [k, n]. The first rows of each device are those closest to the bound among all that exceed its L2.
PRODUCTS = [
    ("h100-sxm", 17, 12288, 65536, 519.826), ("h100-sxm", 9, 16384, 16384, 173.525), ("h100-sxm", 11, 16384, 16384, 173.965),
    ("h100-sxm", 32, 512, 65536, 28.321), ("h100-sxm", 64, 16384, 2048, 25.924), ("h100-sxm", 128, 4096, 10240, 33.740),
    ("a100-80g-sxm", 2, 16384, 65536, 1206.590), ("a100-80g-sxm", 16, 16384, 65536, 1225.961),
    ("a100-80g-sxm", 1, 12288, 8192, 142.391), ("a100-80g-sxm", 128, 10240, 3072, 58.668),
]  # fmt: skip


@pytest.mark.parametrize(("name", "m", "n", "k", "measured"), PRODUCTS)
def test_no_measured_product_beats_roofline(name: str, m: int, n: int, k: int, measured: float) -> None:
    bound = makespan({"flops": 2 * m * n * k, "weight": f"{2 * n * k} B"}, **device(name))
    assert 0.5 < bound / (measured * 10**6) < 1


#: The same source: microseconds of attention of one new token to a cache in bfloat16: batch, heads, heads of the cache, size of
#: a head, context.
ATTENTION = [
    ("h100-sxm", 128, 4, 4, 128, 16_384, 1354.907), ("h100-sxm", 32, 64, 4, 64, 16_384, 183.541),
    ("a100-80g-sxm", 512, 8, 8, 128, 1024, 1239.669), ("a100-80g-sxm", 64, 16, 1, 128, 8192, 183.979),
]  # fmt: skip


@pytest.mark.parametrize(("name", "batch", "heads", "kv_heads", "size", "context", "measured"), ATTENTION)
def test_no_measured_attention_beats_roofline(
    name: str, batch: int, heads: int, kv_heads: int, size: int, context: int, measured: float
) -> None:
    scores = batch * heads * context
    op = {
        "kind": "attention", "flops": 4 * scores * size, "vector_ops": scores * (8 + (size + 2) // 128),
        "weight": f"{4 * batch * kv_heads * size * context} B",  # the cache, as operands
    }  # fmt: skip
    assert 0.5 < makespan(op, **device(name)) / (measured * 10**6) < 1


#: llama.cpp on Llama 2 7B, tokens/s: [device, format of weights, of arithmetic, new tokens, rate].
#: RTX 4090: github.com/ggml-org/llama.cpp/pull/4766; M2: issues/10435; i9-13900K: issues/34; Raspberry Pi 5: pull/6928.
TOKENS = [
    ("rtx-4090", "bf16", None, 512, 11048.22), ("rtx-4090", "bf16", None, 1, 61.03), ("rtx-4090", "q8_0", "int8", 512, 7664.0),
    ("rtx-4090", "q8_0", "int8", 1, 98.13), ("rtx-4090", "q4_0", "int8", 512, 7979.85), ("apple-m2", "q4_0", None, 512, 194.94),
    ("i9-13900k", "q4_0", None, 512, 55.21), ("i9-13900k", "q4_0", None, 1, 18.27),
    ("raspberry-pi-5", "q4_0", "int8", 109, 8.10),
]  # fmt: skip


@pytest.mark.parametrize(("name", "weights", "arithmetic", "new", "measured"), TOKENS)
def test_no_measured_model_beats_roofline(name: str, weights: str, arithmetic: str | None, new: int, measured: float) -> None:
    written = {
        "model": {"config": "llama-2-7b"},
        "hardware": {**device(name), "memory": {"capacity": None}},
        "cost": "roofline",
        "mapping": {
            "execution": "stream", "heads": "fused", "softmax": "online", "kv": "operands",
            "formats": {"weights": weights, "arithmetic": arithmetic},
        },
        "workload": {"sequences": [{"context": 0, "prompt": new, "tokens": 1} if new > 1 else {"context": 64, "tokens": 1}]},
    }  # fmt: skip
    rate = new / (sim.run(from_dict(written)).makespan / 1e12)
    assert rate > measured


def test_int8_products_of_a_raspberry_pi_have_their_own_peak() -> None:
    """Two units of 16 multiply-adds in each of four cores: four times what bfloat16 reaches, which is widened to float32."""
    op = {"flops": 6144 * 10**9}
    hardware = device("raspberry-pi-5")
    engines = hardware["engines"]
    assert isinstance(engines, dict)
    int8 = {**hardware, "engines": {**engines, "flops": engines["flops"]["int8"]}}
    bf16 = {**hardware, "engines": {**engines, "flops": engines["flops"]["bfloat16"]}}
    assert (makespan(op, **int8), makespan(op, **bf16)) == (10 * 10**12, 40 * 10**12)
