"""Sparse attention: the indexer reads its own keys of all tokens, attention the rows of the tokens that it chooses."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from model_families import small

from models.capture import capture
from models.config import ModelConfig
from models.graph import QUANTITIES, ModelGraph
from sim.machine.kv_cache import LayerGroup, layer_groups

K, C, R, INDEX, HEADS, INDEX_HEADS = 6, 16, 4, 12, 4, 3

_SIZES: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": C, "qk_rope_head_dim": R, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "index_topk": K, "index_head_dim": INDEX, "index_n_heads": INDEX_HEADS,
    "mlp_layer_types": ["dense", "sparse"],
}  # fmt: skip


def config(model_type: str, **changes: Any) -> ModelConfig:
    return small(model_type, **(_SIZES | changes))


@cache
def graph(model_type: str = "deepseek_v32", indexers: tuple[str, ...] = ()) -> ModelGraph:
    changes = {"indexer_types": list(indexers)} if indexers else {}
    return capture(config(model_type, **changes))["op"]


def total(made: ModelGraph, quantity: str, N: int, B: int = 1, Q: int = 1) -> int:
    return int(made.step(B, Q).costs(N, B, Q)[QUANTITIES.index(quantity)].sum())


@pytest.mark.parametrize("N", [0, 1, K - 2, K - 1, K, 40])
@pytest.mark.parametrize("B", [1, 3])
def test_a_step_reads_all_keys_of_the_indexer_and_the_chosen_rows(N, B):
    layers, size = 2, 4  # float32
    assert total(graph(), "kv_read", N, B) == B * layers * size * (N * INDEX + min(N, K - 1) * (C + R))
    assert total(graph(), "kv_write", N, B) == B * layers * size * (INDEX + C + R)


@pytest.mark.parametrize("N", [2, 40])
def test_attention_multiplies_the_chosen_rows_and_the_indexer_all(N):
    step = graph().step()
    flops = step.costs(N)[QUANTITIES.index("flops")]
    seen = min(N, K - 1) + 1
    of = {
        kind: sum(int(f) for f, op in zip(flops, step.ops, strict=True) if op.kind == kind)
        for kind in ("scores", "weighted_values")
    }
    assert of == {"scores": 2 * 2 * HEADS * (C + R) * seen, "weighted_values": 2 * 2 * HEADS * C * seen}
    grows = flops - step.costs(N - 1)[QUANTITIES.index("flops")]
    attention = 2 * 2 * HEADS * (2 * C + R) if N < K else 0
    assert grows.sum() == attention + 2 * (2 * INDEX_HEADS * INDEX + 2 * INDEX_HEADS)  # a score of each head, and their sum


def test_scores_wait_for_the_choice():
    step = graph().step()
    below: set[int] = set()
    for i, op in enumerate(step.ops):
        if op.kind == "indexer" or below.intersection(op.inputs):
            below.add(i)
    assert {op.layer for i, op in enumerate(step.ops) if op.kind == "scores" and i in below} == {0, 1}


def test_all_tokens_are_kept_whatever_is_read():
    assert layer_groups(graph().step()) == (LayerGroup(None, 2 * 4 * (INDEX + C + R)),)


def test_a_layer_that_uses_the_choice_of_another_has_no_keys_of_an_indexer():
    made = graph("glm_moe_dsa", ("full", "shared"))
    assert total(made, "kv_read", 40) == 4 * (40 * INDEX + 2 * (K - 1) * (C + R))
    assert layer_groups(made.step()) == (LayerGroup(None, 4 * (INDEX + 2 * (C + R))),)


def test_what_an_indexer_computes_is_one_op():
    """As in engines, where one kernel multiplies the keys of all tokens, and another chooses."""
    step = graph().step()
    found = [op for op in step.ops if op.kind == "indexer"]
    assert [op.layer for op in found] == [0, 1]
    flops = step.costs(40)[QUANTITIES.index("flops")].tolist()
    assert [flops[step.ops.index(op)] for op in found] == [41 * (2 * INDEX_HEADS * INDEX + 2 * INDEX_HEADS)] * 2
    assert sum(op.kind == "index_proj" for op in step.ops) == 2 * 3


#: A layer that attends to all tokens, and one whose indexer chooses three blocks of two, for both heads of keys.
OF_BLOCKS: dict[str, Any] = {
    "head_dim": 8, "rotary_dim": 4, "layer_types": ["full_attention", "minimax_m3_sparse"], "num_local_experts": 4,
    "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"], "dense_intermediate_size": 48,
    "shared_intermediate_size": 24, "index_n_heads": 2, "index_head_dim": INDEX, "index_block_size": 2, "index_topk_blocks": 3,
}  # fmt: skip


def test_chosen_blocks_are_read_whole():
    made = capture(small("minimax_m3_vl_text", **OF_BLOCKS))["op"]
    row = 2 * 2 * 8 * 4  # keys and values of two heads, in float32
    for N in (1, K - 2, K - 1, K, 41):
        assert total(made, "kv_read", N, B=3) == 3 * (N * row + min(N, K - 1) * row + N * INDEX * 4)
        assert total(made, "kv_write", N, B=3) == 3 * (2 * row + INDEX * 4)
    step = made.step()
    flops = step.costs(41)[QUANTITIES.index("flops")].tolist()
    assert [f for f, op in zip(flops, step.ops, strict=True) if op.kind == "scores"] == [2 * 4 * 8 * 42, 2 * 4 * 8 * K]
    assert layer_groups(step) == (LayerGroup(None, 2 * row + INDEX * 4),)
    assert (made.kv_heads, made.head_dim) == (2, 8)
