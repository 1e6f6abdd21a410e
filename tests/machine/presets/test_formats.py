"""Number formats and memory capacity, against hand arithmetic."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import models.library
import sim
from models.formats import Formats
from models.graph import MONOMIALS, QUANTITIES, Op, OpGraph
from models.rewrites import with_formats
from sim.base.errors import InputError
from sim.executors.setup import Setup
from sim.machine.capacity import footprint
from sim.render.terminal import show
from sim.runs.model import op_graphs
from sim.runs.plan import plan
from sim.scenario import from_dict

LAYERS, HIDDEN, KV, MLP, VOCABULARY = 16, 2048, 512, 8192, 128_256  # Llama-3.2-1B
IN_LAYER = HIDDEN * (HIDDEN + KV + KV + HIDDEN) + 3 * HIDDEN * MLP
MATRICES = LAYERS * IN_LAYER + VOCABULARY * HIDDEN  # numbers; the LM head is the embedding
NORMS = (2 * LAYERS + 1) * HIDDEN


def costs(context: int = 0, model: str = "llama-3.2-1b", **formats: object) -> dict[str, int]:
    """Sums of all costs of a step, in these formats."""
    ops = op_graphs(from_dict({"model": {"config": model}, "mapping": {"formats": formats}}))[1][False, False]
    return dict(zip(QUANTITIES, ops.costs(context).sum(axis=1).tolist(), strict=True))


def prepared(written: dict) -> Setup:  # type: ignore[type-arg]
    """Setup of a run, up to the simulation."""
    scenario = from_dict(written)
    return plan(scenario).setup


@pytest.mark.parametrize(
    ("name", "numbers_to_bytes"),
    [("bf16", lambda n: 2 * n), ("fp8", lambda n: n), ("int8", lambda n: n), ("int4", lambda n: n // 2 + 2 * n // 128)],
)
def test_weight_bytes(name: str, numbers_to_bytes) -> None:  # type: ignore[no-untyped-def]
    expected = numbers_to_bytes(MATRICES) + 2 * NORMS + numbers_to_bytes(HIDDEN)  # and one row of the embedding
    assert costs(weights=name)["weight"] == expected
    assert costs(weights=name, kv="fp8")["weight"] == expected


def test_int4_takes_little_more_than_a_quarter() -> None:
    assert costs(weights="int4")["weight"] == 637_317_120 + 1_056  # 33/64 B a number, and norms as they were; one row
    assert costs(weights="int4", group=32)["weight"] - costs(weights="int4")["weight"] == 2 * (MATRICES + HIDDEN) * 3 // 128


def in_blocks(numbers: int, block: int, size: int) -> int:
    """Bytes of numbers in whole blocks."""
    return -(-numbers // block) * size


@pytest.mark.parametrize(("name", "block", "size", "bits"), [
    ("mxfp8", 32, 33, 8.25), ("mxfp4", 32, 17, 4.25), ("nvfp4", 16, 9, 4.5), ("q8_0", 32, 34, 8.5), ("q4_0", 32, 18, 4.5),
    ("q4_K", 256, 144, 4.5), ("q6_K", 256, 210, 6.5625),
])  # fmt: skip
def test_formats_in_blocks(name: str, block: int, size: int, bits: float) -> None:
    assert size * 8 / block == bits
    matrices = (HIDDEN * HIDDEN, HIDDEN * KV, HIDDEN * KV, HIDDEN * HIDDEN, *[HIDDEN * MLP] * 3)
    each = LAYERS * sum(in_blocks(numbers, block, size) for numbers in matrices)
    whole = each + in_blocks(VOCABULARY * HIDDEN, block, size) + in_blocks(HIDDEN, block, size)
    assert costs(weights=name)["weight"] == whole + 2 * NORMS
    assert weight_of(with_formats(graph(2), Formats(weights=name), element=2)) == size, "one number takes a block"  # type: ignore[arg-type]


def test_scales_and_zero_points() -> None:
    """By hand: 1,000 numbers in groups of 300, of which there are 4."""
    for formats, expected in (
        (Formats(weights="int4", group=300), 500 + 4 * 2),
        (Formats(weights="int4", group=300, scale=4), 500 + 4 * 4),
        (Formats(weights="int4", group=300, scale=0), 500),
        (Formats(weights="int4", group=300, zero_points=True), 500 + 4 * 2 + 4 // 2),
        (Formats(weights="int8", group=300, zero_points=True, scale=2), 1000 + 4 * 2 + 4),
        (Formats(weights="fp8", group=300, scale=4), 1000 + 4 * 4),
        (Formats(weights="fp8", group=300), 1000),
    ):
        assert weight_of(with_formats(graph(2000), formats, element=2)) == expected, formats


def test_options_without_effect_are_refused() -> None:
    for written in ({"scale": 4}, {"weights": "mxfp4", "scale": 2}, {"weights": "fp8", "zero_points": True}):
        with pytest.raises(InputError, match=r"mapping\.formats: expected (scale|zero_points) only with weights in "):
            costs(**written)
    with pytest.raises(InputError, match="expert"):
        costs(weights={"expert": "mxfp4"})


def test_biases_stay_as_captured() -> None:
    """Qwen2.5-0.5B has biases in the projections to queries, keys and values."""
    hidden, kv, mlp, layers, vocabulary = 896, 128, 4864, 24, 151_936
    matrices = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp) + vocabulary * hidden + hidden
    vectors = layers * (hidden + 2 * kv) + (2 * layers + 1) * hidden
    assert costs(weights="int8", model="qwen2.5-0.5b")["weight"] == matrices + 2 * vectors


def test_weights_by_kind() -> None:
    """gpt-oss-20b as published: experts in MXFP4, the rest in bfloat16; 3.71 GB a token."""
    layers, hidden, mlp, chosen, count, vocabulary = 24, 2880, 2880, 4, 32, 201_088
    experts = layers * chosen * (hidden * 2 * mlp + mlp * hidden)  # numbers of the matrices
    biases = layers * chosen * (2 * mlp + hidden)
    attention = layers * (2 * hidden * 64 * 64 + 2 * hidden * 64 * 8 + 64 * (64 + 8 + 8) + hidden + 64)  # with sinks
    router = layers * (hidden * count + count)
    rest = attention + router + (2 * layers + 1) * hidden + vocabulary * hidden + hidden  # norms, LM head, one row
    found = costs(model="gpt-oss-20b", weights={"experts": "mxfp4"})["weight"]
    assert found == experts * 17 // 32 + 2 * (biases + rest)
    assert round(found / 1e9, 2) == 3.71
    assert costs(model="gpt-oss-20b", weights={"experts": "mxfp4", "default": "bf16"})["weight"] == found


def test_nvfp4_with_an_lm_head_in_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama-3.1-70B: 40.605 GB of weights without the embedding. Two of its 80 layers are captured; layers are alike."""
    hidden, kv, mlp, vocabulary = 8192, 1024, 28_672, 128_256
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": 2, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": vocabulary,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    monkeypatch.setenv(models.library.CACHE_VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    matrices = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp
    head = 2 * vocabulary * hidden
    found = costs(model=str(path), weights={"default": "nvfp4", "lm_head": "bf16", "embedding": "bf16"})["weight"]
    assert found == 2 * (matrices * 9 // 16 + 2 * 2 * hidden) + 2 * hidden + head + 2 * hidden
    assert round((80 * matrices * 9 // 16 + head) / 1e9, 3) == 40.605


PEAKS = {"bfloat16": 989 * 10**12, "float8_e4m3fn": 1979 * 10**12, "int8": 1979 * 10**12}


def on_engine(arithmetic: object, **hardware: object) -> dict[str, int]:
    """Picoseconds on one engine, by kind of op, of a prompt of 512 tokens in the first layer of Llama-3.2-1B."""
    peaks = {name: f"{rate} FLOP/s" for name, rate in PEAKS.items()}
    engines = {"count": 1, "flops": {**peaks, "float32": "67 TFLOP/s"}, "vector_flops": "1000000 TFLOP/s", **hardware}
    result = sim.run(from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 1}, "hardware": {"engines": engines},
        "mapping": {"softmax": "online", "formats": {"weights": "fp8", "arithmetic": arithmetic}},
        "workload": {"sequences": [{"context": 0, "prompt": 512, "tokens": 1}]},
    }))  # fmt: skip
    return {each.kind: each.compute for each in result.metrics.kinds}


def at(rate: int, *sizes: int) -> int:
    """Picoseconds of a product of these sizes."""
    flops = 2
    for size in sizes:
        flops *= size
    return -(-flops * 10**12 // rate)


def test_products_run_at_the_peak_of_their_arithmetic() -> None:
    bf16, fp8 = PEAKS["bfloat16"], PEAKS["float8_e4m3fn"]
    captured, all_in_fp8, some = on_engine(None), on_engine("fp8"), on_engine({"default": "fp8", "lm_head": "bf16"})
    assert captured["down_proj"] == at(bf16, 512, MLP, HIDDEN)
    assert all_in_fp8["down_proj"] == some["down_proj"] == at(fp8, 512, MLP, HIDDEN)
    assert (all_in_fp8["lm_head"], some["lm_head"]) == (at(fp8, HIDDEN, VOCABULARY), at(bf16, HIDDEN, VOCABULARY))
    assert captured["attention"] == all_in_fp8["attention"], "attention multiplies by no weights"
    assert on_engine({"attention": "float8_e4m3fn"})["attention"] < captured["attention"]
    assert on_engine("float8_e4m3fnuz") == all_in_fp8, "a device has one format with a float in 8 bits"


def test_arithmetic_whose_peak_is_not_known_is_an_error() -> None:
    with pytest.raises(InputError, match=r"hardware\.engines\.flops: op '.*' computes in int4, known here: bfloat16, .*int8"):
        on_engine("int4")
    with pytest.raises(InputError, match=r"arithmetic: expected a kind of op with matrix products, found 'down'"):
        on_engine({"down": "fp8"})


def test_a_peak_under_another_name_is_named() -> None:
    """Rates of arithmetic are written as torch names formats."""
    written = {"model": {"config": "llama-3.2-1b", "layers": 1}, "hardware": {"engines": {"flops": {"bf16": "1 TFLOP/s"}}}}
    with pytest.raises(InputError, match=r"computes in bfloat16, known here: bf16; write bfloat16 instead of bf16$"):
        plan(from_dict(written))


def test_the_summary_names_the_arithmetic() -> None:
    def line(**mapping: object) -> str:
        written = {"model": {"config": "llama-3.2-1b", "layers": 1}, "mapping": mapping}
        console = Console(width=200, file=(printed := StringIO()))
        show(sim.run(from_dict(written)), console)
        return next(line for line in printed.getvalue().splitlines() if line.startswith("times"))

    assert "products in bfloat16 at 2 TFLOP/s per engine in any format; real kernels are slower" in line()
    assert "products in bfloat16, int8 at" in line(formats={"weights": "int8", "arithmetic": "int8"})


@pytest.mark.parametrize(("name", "size"), [(None, 2), ("bf16", 2), ("fp8", 1), ("int8", 1)])
def test_kv_bytes(name: str | None, size: int) -> None:
    found = costs(1000, kv=name)
    assert found["kv_read"] == 1000 * LAYERS * 2 * KV * size
    assert found["kv_write"] == LAYERS * 2 * KV * size


def test_only_bytes_change() -> None:
    captured, changed = costs(777), costs(777, weights="int4", kv="int8", activations="bf16")
    same = ("flops", "vector_ops", "act_read", "act_write")  # bfloat16 is captured already
    assert {key: captured[key] for key in same} == {key: changed[key] for key in same}


def test_a_float32_model_halves_its_activations() -> None:
    captured, changed = costs(5, "gpt2"), costs(5, "gpt2", activations="bf16", weights="bf16")
    for key in ("act_read", "act_write", "weight"):
        assert changed[key] == pytest.approx(captured[key] / 2, rel=1e-2), key


def test_nothing_asked_nothing_changed() -> None:
    ops = models.library.load("llama-3.2-1b").step()
    assert with_formats(ops, Formats(), element=2) is ops


def graph(*weight: int) -> OpGraph:
    """One product by a matrix, whose weight bytes have these coefficients, of two bytes a number."""
    zero = (0,) * len(MONOMIALS)
    polynomial = tuple(weight) + zero[len(weight) :]
    flops = (max(weight[0], 2), *zero[1:])
    op = Op(kind="q_proj", path="q", layer=0, dtype="bfloat16", costs=(1, 0, 2, *[0] * (len(QUANTITIES) - 3)))
    return OpGraph(ops=(op,), polynomials=((zero,), (flops,), (polynomial,)))


def weight_of(ops: OpGraph, **steps: int) -> int:
    return int(ops.costs(0, **steps)[QUANTITIES.index("weight")][0])


def test_fractions_of_bytes_are_rounded_up_op_by_op() -> None:
    assert weight_of(with_formats(graph(6), Formats(weights="int4"), element=2)) == 2 + 2  # 3 numbers: 1.5 bytes, and one scale
    assert weight_of(with_formats(graph(258), Formats(weights="int4"), element=2)) == 65 + 4  # 129 numbers: a second group
    assert weight_of(with_formats(graph(0), Formats(weights="int4"), element=2)) == 0
    grows = with_formats(graph(0, 6), Formats(weights="int4"), element=2)  # 6 bytes a query token
    assert weight_of(grows, query=5) == 5 * 4, "term by term, never below the exact 15 / 2 + 2"


def test_a_negative_term_is_never_rounded() -> None:
    assert weight_of(with_formats(graph(10, -2), Formats(weights="fp8"), element=2)) == 4
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        with_formats(graph(10, -2), Formats(weights="int4"), element=2)


def test_formats_are_not_for_written_graphs() -> None:
    written = {"model": {"graph": [{"name": "a", "flops": 1}]}, "mapping": {"formats": {"kv": "fp8"}}}
    with pytest.raises(InputError, match=r"mapping\.formats: expected only with model\.config"):
        prepared(written)


def held(name: str, layers: int | None = None, scope: str = "model", **formats: str) -> int:
    """Bytes of weights in memory."""
    model = models.library.load(name)
    kept = with_formats(model.step().select(layers, scope), Formats(**formats), element=2)  # type: ignore[arg-type]
    return footprint(model, kept, Formats(**formats), whole=scope == "model", sequences=()).weights  # type: ignore[arg-type]


#: Bytes of what steps read of a checkpoint beside parameters: a scalar of each layer.
BUFFERS = {"gemma-4-31b": 60 * 2}


@pytest.mark.parametrize("name", models.library.names())
def test_a_whole_model_takes_its_parameters(name: str) -> None:
    assert held(name) == models.library.load(name).parameter_bytes + BUFFERS.get(name, 0)


def test_parts_of_a_model_take_their_part() -> None:
    layer = 2 * (IN_LAYER + 2 * HIDDEN)
    assert held("llama-3.2-1b", 3, "block") == 3 * layer
    assert held("llama-3.2-1b", 3) == 3 * layer + 2 * (VOCABULARY * HIDDEN + HIDDEN)
    assert held("llama-3.2-1b", weights="int4") == MATRICES // 2 + MATRICES // 64 + 2 * NORMS
    untied = 2 * 32_000 * 4096 * 2
    assert held("mixtral-8x7b", 8, "block") == pytest.approx((held("mixtral-8x7b") - untied) / 4, rel=1e-4)


def test_the_error_of_full_memory_has_the_excess() -> None:
    """14 GB of weights would fit an L4, and 80 sequences of 4,096 tokens with 128 KiB each do not."""
    fits = {"model": {"config": "llama-3.1-8b"}, "hardware": {"preset": "l4"}}
    prepared(fits)
    many = {**fits, "workload": {"sequences": [{"context": 4000, "tokens": 96, "count": 80}]}}
    weights, kv = 16_060_522_496, 80 * 4096 * 131_072
    over = weights + kv - 24 * 10**9
    text = rf"{weights / 1e9:.3f} GB of weights and {kv / 1e9:.3f} GB of KV cache .* are {over / 1e9:.3f} GB more than the 24"
    with pytest.raises(InputError, match=rf"hardware\.memory\.capacity: {text}"):
        prepared(many)
    prepared({**many, "hardware": {"preset": "l4", "memory": {"capacity": None}}})
    with pytest.raises(InputError, match=f"{(over - kv / 2) / 1e9:.3f} GB more"):
        prepared({**many, "mapping": {"formats": {"kv": "int8"}}})


def test_a_sliding_window_holds_no_more_than_itself() -> None:
    model = models.library.load("mistral-7b-v0.1")
    cache = [footprint(model, model.step(), Formats(), whole=True, sequences=[(n, 1)]).kv for n in (1000, 10_000, 100_000)]
    assert cache[0] == 1000 * 131_072
    assert cache[1] == cache[2] == 4095 * 131_072
