"""Llama-3.2-1B against arithmetic done by hand."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from models.capture import capture
from models.config import resolve
from models.graph import QUANTITIES, OpGraph
from models.library import encode, load, shipped_path

HIDDEN, INTER, LAYERS, HEADS, KV, DIM, VOCAB, WIDTH = 2048, 8192, 16, 32, 8, 64, 128256, 2
PARAMETERS = 1_235_814_400

ATTENTION = ["scores", "softmax_max", "softmax_exp", "softmax_norm", "weighted_values"]
BLOCK = [
    *("kv_load", "norm", "q_proj", "k_proj", "v_proj", "rope:q", "rope:k", "kv_store", *ATTENTION, "o_proj", "residual"),
    *("norm", "gate_proj", "up_proj", "act", "down_proj", "residual"),
]
POINTS = [(1, 1, 1), (256, 1, 1), (2048, 1, 1), (777, 5, 1), (0, 1, 512), (100, 3, 7)]


def total(graph: OpGraph, context: int, batch: int = 1, query: int = 1) -> dict[str, int]:
    return dict(zip(QUANTITIES, graph.costs(context, batch, query).sum(axis=1).tolist(), strict=True))


def names(graph: OpGraph) -> list[str]:
    return [op.kind + (f":{op.part}" if op.part else "") for op in graph.ops]


@pytest.fixture(scope="module")
def model():
    return load("llama-3.2-1b")


@pytest.fixture(scope="module")
def fresh():
    """The first two layers, captured now."""
    config = resolve("llama-3.2-1b")
    return capture(replace(config, data={**config.data, "num_hidden_layers": 2}))


@pytest.mark.parametrize("granularity", ["op", "aten"])
def test_the_shipped_graphs_begin_as_a_capture_of_two_layers_does(fresh, granularity):
    shipped = load("llama-3.2-1b", granularity=granularity)
    for key, now in fresh[granularity].variants.items():
        first = shipped.variants[key].select(layers=2)
        assert [bare(op) for op in first.ops] == [bare(op) for op in now.ops]
        for context in (0, 300, 5000):
            point = (context, 3 if key[0] else 1, 4 if key[1] else 1)
            assert (first.costs(*point) == now.costs(*point)).all()


def bare(op):
    return op.kind, op.path, op.layer, op.part, op.heads, op.dtype, op.shape, op.inputs


@pytest.mark.slow
def test_the_shipped_graphs_equal_a_new_capture():
    for granularity, graph in capture(resolve("llama-3.2-1b")).items():
        stored = json.loads(gzip.decompress(shipped_path("llama-3.2-1b", granularity).read_bytes()))
        now = json.loads(gzip.decompress(encode(graph)))
        for library in ("torch", "transformers"):  # their versions may move on, the graph may not
            stored["provenance"].pop(library)
            now["provenance"].pop(library)
        assert now == stored


def test_facts(model):
    assert (model.layers, model.hidden, model.heads, model.kv_heads, model.head_dim) == (LAYERS, HIDDEN, HEADS, KV, DIM)
    assert (model.vocabulary, model.dtype) == (VOCAB, "bfloat16")
    attention = HIDDEN * DIM * (HEADS + 2 * KV) + HEADS * DIM * HIDDEN
    layer = attention + 3 * HIDDEN * INTER + 2 * HIDDEN
    assert model.parameters == VOCAB * HIDDEN + LAYERS * layer + HIDDEN == PARAMETERS
    assert model.parameter_bytes == WIDTH * PARAMETERS


@pytest.mark.parametrize("key", [(False, False), (False, True), (True, False), (True, True)])
def test_one_block_has_these_ops_in_this_order(model, key):
    block = model.variants[key].select(layers=1, scope="block")
    assert names(block) == BLOCK
    assert len(block.ops) == 21
    heads = {op.kind: op.heads for op in block.ops if op.heads}
    assert heads == dict.fromkeys(ATTENTION, HEADS)


def test_dependencies_of_one_block(model):
    block = model.step().select(layers=1, scope="block")
    label = names(block)
    needs = {name: {label[j] for j in op.inputs} for name, op in zip(label, block.ops, strict=True)}
    assert needs["kv_load"] == set()
    assert needs["kv_store"] == {"rope:k", "v_proj"}
    assert needs["scores"] == {"kv_load", "rope:q", "rope:k"}
    assert needs["weighted_values"] == {"kv_load", "v_proj", "softmax_norm"}
    assert needs["softmax_norm"] == {"softmax_exp"}
    assert needs["act"] == {"gate_proj", "up_proj"}
    assert needs["rope:q"] == {"q_proj"}  # and the table, outside of the block
    assert block.ops[label.index("o_proj")].inputs == (label.index("weighted_values"),)


@pytest.mark.parametrize(
    ("context", "batch", "query"), [(1, 1, 1), (256, 1, 1), (2048, 1, 1), (777, 5, 1), (0, 1, 512), (100, 3, 7)]
)
def test_bytes_of_a_step(model, context, batch, query):
    cost = total(model.step(batch, query), context, batch, query)
    # Every weight once, the embedding as the tied head; and the rows that the embedding looks up.
    assert cost["weight"] == WIDTH * PARAMETERS + WIDTH * HIDDEN * batch * query
    assert cost["kv_read"] == 32_768 * context * batch  # 2 * 16 layers * 8 heads * 64 * 2 bytes = 32,768 per token
    assert cost["kv_write"] == 32_768 * batch * query
    assert 2 * LAYERS * KV * DIM * WIDTH == 32_768


@pytest.mark.parametrize(("context", "batch", "query"), POINTS)
def test_flops_of_a_step(model, context, batch, query):
    linear = LAYERS * (2 * HIDDEN * DIM * (HEADS + KV) + 3 * HIDDEN * INTER)
    keys = context + query
    attention = LAYERS * 2 * HEADS * DIM * keys
    expected = 2 * (batch * query * (linear + attention) + batch * VOCAB * HIDDEN)  # the head: last token of each only
    assert total(model.step(batch, query), context, batch, query)["flops"] == expected


def test_flops_of_each_product_are_two_per_weight(model):
    costs = zip(model.step().ops, model.step().costs(9)[[0, 2]].T.tolist(), strict=True)
    matmuls = [cost for op, cost in costs if op.kind.endswith("_proj") or op.kind == "lm_head"]
    assert len(matmuls) == 7 * LAYERS + 1
    assert all(flops == 2 * weight // WIDTH > 0 for flops, weight in matmuls)


def test_groups_lose_nothing(fresh):
    for key, grouped in fresh["op"].variants.items():
        raw = fresh["aten"].variants[key]
        for context in (1, 300, 5000):
            point = (context, 3 if key[0] else 1, 4 if key[1] else 1)
            assert total(grouped, *point) == total(raw, *point)


def test_shapes(model):
    ops = {op.kind: op for op in model.step(2, 1).select(layers=1).ops}
    assert ops["scores"].shape == ("B", "8", "4", "N+1")
    assert ops["kv_load"].shape == ("B", "8", "N", "64")
    assert ops["lm_head"].shape == ("B", "128256")
    assert {op.kind: op for op in model.step(2, 2).ops}["q_proj"].shape == ("B*Q", "2048")


def test_all_lanes_at_once_equal_one_by_one(model):
    graph = model.step()
    contexts = np.array([0, 1, 255, 70_000])
    lanes = graph.costs(contexts)
    for i, n in enumerate(contexts.tolist()):
        assert (lanes[:, :, i] == graph.costs(n)).all()


def test_a_step_of_several_sequences_costs_what_its_batch_says_wherever_it_goes():
    model = load("llama-3.2-1b")
    step = model.step(3)
    assert (step.costs(100) == model.variants[True, False].costs(100, batch=3)).all()
    assert (step.select(2).costs(100) == model.variants[True, False].select(2).costs(100, batch=3)).all()
    # 3 sequences x 100 past rows x 8 heads x 64 x 2 bytes, of keys and of values.
    loaded = step.select(1).costs(100)[QUANTITIES.index("kv_read")].sum()
    assert loaded == 3 * 100 * 8 * 64 * 2 * 2
    assert model.step().batch == 1
