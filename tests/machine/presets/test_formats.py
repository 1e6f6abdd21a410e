"""Number formats and memory capacity, against hand arithmetic."""

from __future__ import annotations

import pytest

import models.library
from models.formats import Formats
from models.graph import MONOMIALS, QUANTITIES, Op, OpGraph
from models.rewrites import with_formats
from sim.base.errors import InputError
from sim.executors.setup import Setup
from sim.machine.capacity import footprint
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
    """One product whose weight bytes have these coefficients."""
    zero = (0,) * len(MONOMIALS)
    polynomial = tuple(weight) + zero[len(weight) :]
    flops = (2, *zero[1:])
    op = Op(kind="q_proj", path="q", layer=0, dtype="bfloat16", costs=(1, 0, 2, 0, 0, 0, 0))
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


@pytest.mark.parametrize("name", models.library.names())
def test_a_whole_model_takes_its_parameters(name: str) -> None:
    assert held(name) == models.library.load(name).parameter_bytes


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
    assert cache[1] == cache[2] == 4096 * 131_072
