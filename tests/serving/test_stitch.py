"""Graphs of steps of several sequences, against the captures that they are stitched from."""

from __future__ import annotations

import numpy as np
import pytest

import models.library
from models.graph import QUANTITIES, IntArray, Members, ModelGraph, StepLanes
from sim.mapping.settings import ModelMapping
from sim.mapping.steps import BatchGraph, Shape, StepGraphs

MODELS = ("llama-3.2-1b", "gemma-2-2b", "qwen3-0.6b", "phi-3-mini-4k", "gpt2", "opt-1.3b", "mixtral-8x7b")
EXACT = [QUANTITIES.index(name) for name in ("flops", "weight", "kv_read", "kv_write")]


def lanes(context: list[int], query: list[int], logits: int, loads: list[int] | None = None) -> StepLanes:
    """One step of members with these contexts and new tokens."""
    columns = [np.array(column, dtype=np.int64)[:, None] for column in (context, query, context if loads is None else loads)]
    number, sequence = np.zeros(1, dtype=np.int64), np.arange(len(context))[:, None]
    members = Members(
        sequence=sequence, context=columns[0], query=columns[1], loads=columns[2], kept=0 * columns[0],
        logits=np.where(sequence == 0, logits, 0), home=0 * sequence,
    )  # fmt: skip
    return StepLanes(sequence=number, token=number, context=columns[0].sum(axis=0), members=members)


def stitched(model: ModelGraph, shape: Shape) -> BatchGraph:
    ops = StepGraphs(model.variants, ModelMapping(weights="resident"))(shape).ops
    assert isinstance(ops, BatchGraph)
    return ops


def total(model: ModelGraph, context: list[int], query: list[int], **rest: int) -> IntArray:
    shape = Shape(tuple(q > 1 for q in query), logits=bool(rest.get("logits", 1)))
    if shape.plain:
        return model.step().costs(context[0]).sum(axis=1)
    graph = stitched(model, shape)
    return graph.costs_of(lanes(context, query, rest.get("logits", len(query))))[:, :, 0].sum(axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_alike_members_cost_what_was_captured(name: str) -> None:
    """FLOPs, weights and KV bytes to the byte. (Masks and copies are made differently for one sequence and for several.)"""
    model = models.library.load(name)
    experts = any(op.experts is not None for op in model.step().ops)
    for context in (7, 600):
        for batch, query in ((1, 1), (3, 1), (1, 5), (3, 5)):
            if experts and batch * query > 1:
                continue  # which experts tokens share is drawn for each token, and a capture takes them all
            captured = model.step(batch, query).costs(context, batch, query).sum(axis=1)
            found = total(model, [context] * batch, [query] * batch)
            assert found[EXACT].tolist() == captured[EXACT].tolist(), (batch, query)


def test_each_member_has_its_own_context_and_all_share_the_weights() -> None:
    """Llama-3.2-1B, by hand: 2,471,645,184 bytes of weights a step, 4,096 of the embedding a token, 32,768 KV a token."""
    model = models.library.load("llama-3.2-1b")
    contexts, queries = [100, 900, 0], [1, 4, 30]
    flops, _, weight, kv_read, kv_write, *_ = total(model, contexts, queries, logits=6).tolist()
    once = int(model.step().costs(0)[QUANTITIES.index("weight")].sum()) - 4096
    assert weight == once + 4096 * sum(queries)
    assert kv_read == 32_768 * sum(contexts)
    assert kv_write == 32_768 * sum(queries)
    hidden, mlp, kv, layers, vocabulary = 2048, 8192, 512, 16, 128_256
    linear = 2 * layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp) * sum(queries)
    attention = 4 * layers * hidden * sum(q * (n + q) for n, q in zip(contexts, queries, strict=True))
    assert flops == linear + attention + 2 * hidden * vocabulary * 6


def test_a_chunk_without_logits_has_no_lm_head() -> None:
    model = models.library.load("llama-3.2-1b")
    with_head, without = (stitched(model, Shape((True,), logits=logits)) for logits in (True, False))
    assert {op.kind for op in with_head.ops} - {op.kind for op in without.ops} == {"lm_head"}


def test_a_follower_loads_its_own_part_and_waits_for_its_leaders() -> None:
    model = models.library.load("llama-3.2-1b")
    graph = stitched(model, Shape((False, False), leaders=(-1, 0)))
    costs = graph.costs_of(lanes([500, 500], [1, 1], 2, loads=[500, 20]))
    assert int(costs[QUANTITIES.index("kv_read")].sum()) == 32_768 * 520
    loads = [i for i, op in enumerate(graph.ops) if op.kind == "kv_load" and op.layer == 3]
    (second,) = [i for i, op in enumerate(graph.ops) if op.kind == "scores" and op.layer == 3 and graph.owner[i] == 1]
    assert set(loads) <= set(graph.ops[second].inputs)


def test_swapping_moves_the_cache_and_nothing_else() -> None:
    model = models.library.load("llama-3.2-1b")
    for direction, quantity in (("out", "kv_read"), ("in", "kv_write")):
        graph = stitched(model, Shape((False,), swap=direction))  # type: ignore[arg-type]
        moved = dict(zip(QUANTITIES, graph.costs_of(lanes([300], [0], 0))[:, :, 0].sum(axis=1).tolist(), strict=True))
        assert moved == dict.fromkeys(QUANTITIES, 0) | {quantity: 32_768 * 300}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("deepseek-v3.2", 61 * 1_408 * 10_000),  # latents and keys of the indexer
        # Windows of 127 in all layers; a row with the keys of an indexer for 4 tokens in 21 of them, one for 128 in 20.
        ("deepseek-v4-flash", 43 * 1_024 * 127 + 21 * 1_280 * 2_500 + 20 * 1_024 * 78),
    ],
)
def test_all_rows_are_swapped_also_those_that_are_not_chosen(name: str, size: int) -> None:
    graph = stitched(models.library.load(name), Shape((False,), swap="out"))
    assert int(graph.costs_of(lanes([10_000], [0], 0)).sum()) == size
