"""Fusion changes exactly what it documents: against hand arithmetic, and on every shipped model."""

from __future__ import annotations

from typing import Any

import pytest

import models.library
from models.graph import QUANTITIES, ModelGraph, OpGraph
from models.masks import OF_ROWS
from models.rewrites import fuse
from models.rewrites.attention import KEY_BLOCK
from sim.base.errors import InputError
from sim.runs.model import op_graphs
from sim.runs.run import run
from sim.scenario import from_dict
from tests.graphs import GraphBuilder, llama_block

KEPT = ("weight", "kv_read", "kv_write")
FUSIONS: dict[str, dict[str, Any]] = {
    "fused": {"softmax": "fused"},
    "online": {"softmax": "online"},
    "splits": {"softmax": "online", "kv_splits": 8},
    "projections": {"qkv": True, "gate_up": True},
    "all": {"softmax": "online", "kv_splits": 3, "qkv": True, "gate_up": True},
}
ELEMENT = {"bfloat16": 2, "float16": 2, "float32": 4}
LAYERS_OF_ALL_KINDS = 8  # every sixth of Gemma 3 differs; the eighth of Nemotron-H is the first with attention
#: Context, batch, query: the last ones begin before a choice, a window or a chunk is full, and end after.
STEPS = [(0, 1, 1), (1000, 1, 1), (5000, 4, 1), (100, 1, 16), (8000, 3, 5), (2040, 1, 16), (8185, 2, 16)]


def totals(ops: OpGraph, context: int, batch: int = 1, query: int = 1) -> dict[str, int]:
    return dict(zip(QUANTITIES, ops.costs(context, batch, query).sum(axis=1).tolist(), strict=True))


def shipped() -> list[ModelGraph]:
    return [
        models.library.load(name) for name in models.library.names() if (models.library.GRAPHS / f"{name}.json.gz").exists()
    ]


@pytest.fixture(scope="module", name="models_shipped")
def _models_shipped() -> list[ModelGraph]:
    return shipped()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "all" else [pytest.mark.slow]) for name in FUSIONS])
def test_weights_and_kv_of_every_model_stay_as_captured_and_flops_but_for_hidden_pairs(
    name: str, models_shipped: list[ModelGraph]
) -> None:
    assert len(models_shipped) > 10
    for model in models_shipped:
        for context, batch, query in STEPS:
            ops = model.step(batch, query).select(LAYERS_OF_ALL_KINDS)
            if any(mask.kind in OF_ROWS for mask in ops.masks) and any(context < stop < context + query for stop in ops.breaks):
                continue  # a step that begins in front of as many compressed rows as are chosen is charged for all that it sees
            before = totals(ops, context, batch, query)
            fused = fuse(ops, element=ELEMENT[model.dtype], chunked=model.chunked, **FUSIONS[name])
            after = totals(fused, context, batch, query)
            assert {key: after[key] for key in KEPT} == {key: before[key] for key in KEPT}, model.name
            hidden = 0
            if name != "projections":
                one = model.step().select(LAYERS_OF_ALL_KINDS)
                by_one = sum(attention_flops(one, context + i) for i in range(query))
                hidden = attention_flops(ops, context, batch, query) - batch * by_one
                assert (hidden > 0) == (query > 1), model.name
            assert after["flops"] == before["flops"] - hidden, model.name
            if name == "projections" or (name == "fused" and not hidden):
                assert after["vector_ops"] == before["vector_ops"], model.name
            elif name == "fused":
                assert after["vector_ops"] < before["vector_ops"], model.name
            elif not hidden:  # rescaling and combining
                assert after["vector_ops"] > before["vector_ops"], model.name
            if name in ("fused", "online", "projections"):  # partial results of few keys are more than the scores
                assert 0 < after["act_read"] <= before["act_read"], model.name
                assert 0 < after["act_write"] <= before["act_write"], model.name


def attention_flops(ops: OpGraph, *step: int) -> int:
    """FLOPs of the two products of attention. Several new tokens see as many keys as when each comes after the other."""
    return sum(per_kind(ops, kind, *step)["flops"] for kind in ("scores", "weighted_values"))


@pytest.mark.parametrize("name", FUSIONS)
def test_ops_that_are_not_fused_keep_their_inputs(name: str, models_shipped: list[ModelGraph]) -> None:
    for model in models_shipped:
        ops = model.step().select(2)
        fused = fuse(ops, element=ELEMENT[model.dtype], **FUSIONS[name])
        before, after = Reach(ops), Reach(fused)
        left, found = before.among(after.roles), after.among(before.roles)
        if name in ("fused", "online", "splits"):
            assert found == left, model.name
        else:  # what needed one projection now needs those beside it as well
            assert found >= left, model.name


class Reach(set[tuple[tuple[str, str, str], tuple[str, str, str]]]):
    """All pairs (op, direct or indirect input), by role."""

    def __init__(self, ops: OpGraph) -> None:
        super().__init__()
        needs: list[set[int]] = []
        roles: list[tuple[str, str, str]] = []
        for op in ops.ops:  # ops of one role, raw ones that are, in their order
            role = (op.kind, op.path, op.part)
            roles.append((*role[:2], f"{role[2]}{roles.count(role)}"))
        self.roles = set(roles)
        for i, op in enumerate(ops.ops):
            needs.append(set(op.inputs).union(*(needs[j] for j in op.inputs)))
            self.update((roles[i], roles[j]) for j in needs[i])

    def among(self, roles: set[tuple[str, str, str]]) -> set[object]:
        return {pair for pair in self if pair[0] in roles and pair[1] in roles}


LAYERS, HEADS, KV_HEADS, DIM = 16, 32, 8, 64  # Llama-3.2-1B


@pytest.mark.parametrize("context", [0, 256, 8191])
def test_amounts_of_a_llama(context: int) -> None:
    """Per layer: scores are HEADS x keys; an attention reads q, and the new k and v, and writes as many numbers as q has."""
    model = models.library.load("llama-3.2-1b")
    keys = context + 1
    scores = HEADS * keys
    captured = model.step()
    three = {kind: per_kind(captured, kind, context) for kind in ("scores", "softmax_max", "softmax_exp", "softmax_norm")}
    passes = sum(three[kind]["vector_ops"] for kind in three if kind != "scores")

    softmax = per_kind(fuse(captured, element=2, **FUSIONS["fused"]), "softmax", context)
    assert softmax["vector_ops"] == passes
    assert (softmax["act_read"], softmax["act_write"]) == (LAYERS * 2 * scores, LAYERS * 2 * scores)

    online = per_kind(fuse(captured, element=2, **FUSIONS["online"]), "attention", context)
    assert online["flops"] == LAYERS * 2 * (2 * DIM * scores)
    rescaling = HEADS * (DIM + 2)  # for each key of a block
    assert online["vector_ops"] - passes - three["scores"]["vector_ops"] == LAYERS * -(-rescaling // KEY_BLOCK) * keys
    assert online["act_read"] == LAYERS * 2 * DIM * (HEADS + 2 * KV_HEADS)
    assert online["act_write"] == LAYERS * 2 * DIM * HEADS

    parts = fuse(captured, element=2, **FUSIONS["splits"])
    split, combine = per_kind(parts, "attention", context), per_kind(parts, "combine", context)
    partial = HEADS * 8 * (DIM + 2)
    assert (split["flops"], split["vector_ops"]) == (online["flops"], online["vector_ops"])
    assert split["act_read"] == LAYERS * 2 * DIM * (8 * HEADS + 2 * KV_HEADS)
    assert split["act_write"] == combine["act_read"] == LAYERS * 4 * partial
    assert combine["vector_ops"] == LAYERS * partial
    assert combine["act_write"] == LAYERS * 2 * DIM * HEADS


@pytest.mark.parametrize(("batch", "query", "context"), [(1, 2, 0), (1, 512, 256), (3, 7, 1000)])
def test_amounts_of_a_prompt_of_a_llama(batch: int, query: int, context: int) -> None:
    """Q tokens after N others: Q N + Q (Q + 1) / 2 pairs are visible in each head, of Q (N + Q)."""
    pairs = query * context + query * (query + 1) // 2
    scores = LAYERS * batch * HEADS * pairs
    all_scores = LAYERS * batch * HEADS * query * (context + query)
    captured = models.library.load("llama-3.2-1b").step(batch, query)
    step = (context, batch, query)
    once = {kind: per_kind(captured, kind, *step)["vector_ops"] for kind in ("softmax_max", "softmax_exp", "softmax_norm")}
    assert once["softmax_exp"] == all_scores

    fused = fuse(captured, element=2, **FUSIONS["fused"])
    softmax = per_kind(fused, "softmax", *step)
    assert (softmax["act_read"], softmax["act_write"]) == (2 * scores, 2 * scores)
    passes, rest = divmod(sum(once.values()), all_scores)  # for each score, and for each row of queries
    assert softmax["vector_ops"] == passes * scores + rest
    assert per_kind(fused, "scores", *step)["flops"] == 2 * DIM * scores
    assert per_kind(fused, "weighted_values", *step)["flops"] == 2 * DIM * scores

    online = per_kind(fuse(captured, element=2, **FUSIONS["online"]), "attention", *step)
    unfused = sum(per_kind(fused, kind, *step)["vector_ops"] for kind in ("scores", "softmax", "weighted_values"))
    rescaling = -(-HEADS * (DIM + 2) // KEY_BLOCK) * (scores // HEADS)
    assert online["flops"] == 2 * (2 * DIM * scores)
    assert online["vector_ops"] == unfused + rescaling


def test_rows_of_a_batch_of_chunks_are_combined() -> None:
    """B sequences of Q queries: B * Q * HEADS rows, each of 3 partial results."""
    parts = fuse(models.library.load("llama-3.2-1b").step(4, 7), element=2, **FUSIONS["all"])
    assert per_kind(parts, "combine", 100, 4, 7)["vector_ops"] == LAYERS * 4 * 7 * HEADS * 3 * (DIM + 2)


def test_amounts_of_projections() -> None:
    fused = fuse(models.library.load("llama-3.2-1b").step(), element=2, **FUSIONS["projections"])
    qkv, gate_up = per_kind(fused, "qkv_proj", 9), per_kind(fused, "gate_up_proj", 9)
    assert qkv["weight"] == qkv["flops"] == LAYERS * 2 * 2048 * (2048 + 512 + 512)
    assert (qkv["act_read"], qkv["act_write"]) == (LAYERS * 2 * 2048, LAYERS * 2 * (2048 + 512 + 512))
    assert gate_up["weight"] == gate_up["flops"] == LAYERS * 2 * 2048 * 2 * 8192
    assert (gate_up["act_read"], gate_up["act_write"]) == (LAYERS * 2 * 2048, LAYERS * 2 * 2 * 8192)
    assert not {op.kind for op in fused.ops} & {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}


def per_kind(ops: OpGraph, kind: str, *step: int) -> dict[str, int]:
    chosen = [i for i, op in enumerate(ops.ops) if op.kind == kind]
    assert chosen
    costs = ops.costs(*step)[:, chosen]
    return dict(zip(QUANTITIES, costs.sum(axis=1).tolist(), strict=True))


def test_fused_ops_stay_fused() -> None:
    phi = models.library.load("phi-3-mini-4k").step()
    assert fuse(phi, element=2, **FUSIONS["projections"]) is phi
    assert fuse(phi, element=2) is phi


def test_a_model_without_three_passes_is_refused() -> None:
    build = GraphBuilder()
    scores = build.add("scores", heads=2, flops=4)
    build.add("weighted_values", scores, heads=2, flops=4)
    with pytest.raises(InputError, match=r"^mapping.softmax: expected three_pass: the model has no softmax"):
        fuse(build.graph(), element=2, **FUSIONS["online"])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"kv_splits": 4}, "expected kv_splits only with softmax: online, found softmax: three_pass"),
        ({"kv_splits": 4, "softmax": "fused"}, "expected kv_splits only with softmax: online, found softmax: fused"),
        ({"granularity": "aten", "softmax": "fused"}, "only with granularity: op"),
        ({"granularity": "aten", "fuse": {"qkv": True}}, "only with granularity: op"),
        ({"softmax": "onlin"}, "did you mean 'online'"),
        ({"fuse": {"kqv": True}}, "did you mean 'qkv'"),
    ],
)
def test_impossible_values_are_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        op_graphs(from_dict({"model": {"config": "llama-3.2-1b"}, "mapping": mapping}))


@pytest.mark.parametrize("key", [{"softmax": "fused"}, {"fuse": {"qkv": True}}])
def test_a_written_graph_is_taken_as_it_is(key: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"expected only with model\.config"):
        op_graphs(from_dict({"model": {"graph": [{"name": "a", "flops": 1}]}, "mapping": key}))


MACHINES = [
    pytest.param(
        {"engines": {"count": 1}, "memory": {"bandwidth": bandwidth, "arbiter": arbiter}},
        id=f"{bandwidth}-{arbiter}", marks=[pytest.mark.slow] if bandwidth == "1 GB/s" else [],
    )
    for bandwidth in ("1 GB/s", "100 GB/s", "10 TB/s")
    for arbiter in ("fifo", "processor_sharing")
]  # fmt: skip


@pytest.mark.parametrize("execution", ["blocking", "stream", "prefetch"])
@pytest.mark.parametrize("hardware", MACHINES)
def test_on_one_engine_fused_is_never_slower(execution: str, hardware: dict[str, object]) -> None:
    base = {
        "model": {"config": "llama-3.2-1b", "layers": 2},
        "hardware": hardware,
        "workload": {"sequences": [{"context": 700}]},
    }
    for activations in ("on_chip", "off_chip"):
        for heads in ("split", "fused"):
            mapping = {"execution": execution, "activations": activations, "heads": heads}
            three, fused = (
                run(from_dict({**base, "mapping": {**mapping, "softmax": softmax}})).makespan
                for softmax in ("three_pass", "fused")
            )
            assert fused <= three


def test_the_hand_made_block_fuses_like_a_captured_one() -> None:
    fused = fuse(llama_block(layers=2), element=2, softmax="fused", gate_up=True)
    assert [op.kind for op in fused.ops if op.layer == 1] == [
        "kv_load", "norm", "q_proj", "k_proj", "v_proj", "rope", "rope", "kv_store", "scores", "softmax", "weighted_values",
        "o_proj", "residual", "norm", "gate_up_proj", "act", "down_proj", "residual",
    ]  # fmt: skip
