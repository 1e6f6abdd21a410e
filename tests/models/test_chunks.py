"""Chunked attention in decode: what a token sees begins anew with each chunk."""

from __future__ import annotations

import json

import pytest
from model_families import captured

from models.graph import QUANTITIES, ModelGraph
from sim.machine.kv_cache import LayerGroup, layer_groups

C = 6
ROW = 2 * 2 * 8 * 4  # keys and values of 2 heads of 8, float32


def graph(*, stored: bool = False) -> ModelGraph:
    made = captured("llama4_text", no_rope_layer_interval=2)["op"]
    return ModelGraph.from_json(json.loads(json.dumps(made.to_json()))) if stored else made


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("N", [0, 1, C - 2, C - 1, C, C + 1, 3 * C - 1, 3 * C, 100])
def test_a_step_reads_the_tokens_of_its_chunk(stored, B, N):
    costs = graph(stored=stored).step(B).costs(N, B)
    assert costs[QUANTITIES.index("kv_read")].sum() == B * ROW * (N % C + N)
    assert costs[QUANTITIES.index("kv_write")].sum() == B * ROW * 2


@pytest.mark.parametrize("N", [0, C - 1, C, 3 * C + 2])
def test_attention_multiplies_the_tokens_of_its_chunk(N):
    step = graph().step()
    flops = step.costs(N)[QUANTITIES.index("flops")]
    attention = sum(int(f) for f, op in zip(flops, step.ops, strict=True) if op.kind in ("scores", "weighted_values"))
    assert attention == 2 * 2 * 4 * 8 * (N % C + 1 + N + 1)  # two products of 4 heads of 8


def test_the_pages_of_a_layer_with_chunks_are_those_of_a_window():
    assert layer_groups(graph().step()) == (LayerGroup(None, ROW), LayerGroup(C, ROW))
