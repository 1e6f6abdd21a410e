"""Compressed caches (DeepSeek-V4): hand arithmetic of a small model, and its captured costs against further recordings."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from transformers import PreTrainedModel

from models.capture import build, capture, quiet, record
from models.config import ModelConfig
from models.decoder import hf_config
from models.graph import QUANTITIES, ModelGraph
from models.masks import CLOSED, CLOSES, COMPRESSED, QUERY_CLOSED, QUERY_ROWS, ROWS, WAITING, WAITING_MORE, pairs
from models.recording import KV_LOAD
from models.rewrites.softmax import fuse_softmax
from sim.machine.kv_cache import KVLayout, LayerGroup, layer_groups, state_bytes

#: A layer with a window of 8 alone, one that chooses 3 rows of 4 tokens each, and one with rows of 8 tokens.
SMALL = ModelConfig(
    name="compressed",
    data={
        "model_type": "deepseek_v4", "vocab_size": 64, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "qk_rope_head_dim": 8, "q_lora_rank": 24,
        "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "num_hash_layers": 1, "sliding_window": 8,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "hc_mult": 2, "hc_sinkhorn_iters": 1, "o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 12,
        "index_topk": 3,
    },
)  # fmt: skip

KV_READ, KV_WRITE = QUANTITIES.index("kv_read"), QUANTITIES.index("kv_write")

#: Bytes of a row of a head of 16 that is key and value, of a key of the indexer, and of what the buffers get for a token:
#: value and gate, of the chosen rows twice as wide, since windows overlap.
ROW, KEY = 16 * 2, 12 * 2
CSA_TOKEN, HCA_TOKEN = 2 * 2 * (16 + 12) * 2, 2 * 16 * 2

#: Bytes of what is kept of a window for the next one, which overlaps it: half of what the buffers have of it.
OVERLAP = 4 * CSA_TOKEN // 2


@cache
def model() -> PreTrainedModel:
    with quiet():
        return build(hf_config(SMALL), "bfloat16")


def moved(quantity: int, N: int) -> list[int]:
    """Bytes that each layer reads, or writes, in a step of one token at context N."""
    with quiet():
        nodes = record(model(), (1, 1, N)).nodes
    return [sum(node.costs[quantity] for node in nodes if node.layer == layer) for layer in range(3)]


@pytest.mark.parametrize("N", [5, 7, 22, 23, 31])
def test_bytes_of_a_step(N: int) -> None:
    """A step reads 7 tokens of the window; 3 rows with the keys of all, or all rows; and where it ends a window its buffer."""
    recent = min(N, 7)
    csa, hca = (N + 1) % 4 == 0, (N + 1) % 8 == 0
    rows, chosen = N // 4, min(3, (N + 1) // 4) - csa  # one of those chosen is new
    assert moved(KV_READ, N) == [
        recent * ROW,
        (recent + chosen) * ROW + rows * KEY + csa * (3 * CSA_TOKEN + OVERLAP),
        (recent + N // 8) * ROW + hca * 7 * HCA_TOKEN,
    ]
    assert moved(KV_WRITE, N) == [
        ROW, ROW + CSA_TOKEN + csa * (ROW + KEY + OVERLAP), ROW + HCA_TOKEN + hca * ROW,
    ]  # fmt: skip


def test_attention_waits_for_the_choice_of_the_indexer() -> None:
    with quiet():
        recording = record(model(), (1, 1, 40))
    choice = [i for i, node in enumerate(recording.nodes) if node.name == "aten.topk" and "indexer" in node.path]
    scores = [node for node in recording.nodes if node.role == "scores" and node.layer == 1]
    assert len(choice) == 1
    assert choice[0] in scores[0].inputs
    assert not [
        node.path for node in recording.nodes if node.name == "aten.cat" and node.path.endswith("self_attn") and not node.hint
    ]
    loads = [node.layer for node in recording.nodes if node.name == KV_LOAD]
    assert loads == [0, 1, 2]


@pytest.mark.parametrize("m", [2, 4, 7])
def test_terms_count_rows(m: int) -> None:
    """Against rows and windows counted token by token."""
    for Q, N in product(range(1, 20), range(25)):
        rows = sum((t + 1) % m == 0 for t in range(N))
        closed = sum((t + 1) % m == 0 for t in range(N, N + Q))
        waiting = N - rows * m
        expected = {
            ROWS: rows, CLOSED: closed, CLOSES: int(closed > 0), WAITING: waiting * (closed > 0),
            WAITING_MORE: waiting * (closed > 1), QUERY_ROWS: Q * rows, QUERY_CLOSED: Q * closed,
            COMPRESSED: sum((t + 1) // m for t in range(N, N + Q)),
        }  # fmt: skip
        for kind, count in expected.items():
            assert pairs(kind, m, Q, N) == count
            assert pairs(kind, m, np.array([Q]), np.array([N])).tolist() == [count]


@cache
def captured() -> dict[str, ModelGraph]:
    return capture(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize(("B", "Q"), [(1, 1), (3, 1), (1, 2), (1, 11), (2, 5)])
def test_costs_are_those_of_every_step(B: int, Q: int) -> None:
    """At contexts in front of, at and beyond the ends of windows, of 8 tokens and of 3 rows of 4: not only where captured."""
    graph = captured()["op"].step(B, Q)
    for N in [*range(3, 34), 63, 64, 100, 127, 1000]:
        with quiet():
            nodes = record(model(), (B, Q, N)).nodes
        expected = np.array([node.costs for node in nodes]).sum(axis=0)
        assert graph.costs(N, B, Q).sum(axis=1).tolist() == expected.tolist(), N
        if N % 8 == 7:  # where no op is without costs
            load = [op for op, each in enumerate(graph.ops) if each.kind == "kv_load"]
            assert graph.costs(N, B, Q)[KV_READ, load].tolist() == [
                node.costs[KV_READ] for node in nodes if node.name == KV_LOAD
            ]


@pytest.mark.slow
def test_a_sequence_holds_rows_a_window_and_buffers() -> None:
    step = captured()["op"].step()
    assert layer_groups(step) == (LayerGroup(None, ROW + KEY, 4), LayerGroup(None, ROW, 8), LayerGroup(8, 3 * ROW))
    assert state_bytes(step) == 4 * CSA_TOKEN + OVERLAP + 8 * HCA_TOKEN


@pytest.mark.slow
def test_pairs_with_rows_that_a_prompt_sees() -> None:
    """A prompt of 20 tokens: the one at position t sees floor(t / 8) rows, and the last 8 tokens."""
    model = captured()["op"]
    graph = fuse_softmax(model.step(1, 20), 2, chunked=model.chunked)
    scores = next(i for i, op in enumerate(graph.ops) if op.kind == "scores" and op.layer == 2)
    seen = sum(t // 8 + min(t, 8) for t in range(1, 21))
    assert graph.costs(0, 1, 20)[QUANTITIES.index("flops"), scores] == 2 * 16 * 4 * seen


def test_pages_hold_whole_rows() -> None:
    """Rows of 4 tokens in pages of 10: 2 of the first, 3 of the second, as 20 tokens have 5; without pages as they come."""
    group = (LayerGroup(None, 56, 4),)
    assert [KVLayout(1, group).held(0, tokens, 1) for tokens in (3, 4, 7, 8)] == [0, 56, 56, 112]
    assert [KVLayout(10, group).held(0, tokens, 1) for tokens in (0, 1, 10, 11, 20)] == [0, 2 * 56, 2 * 56, 5 * 56, 5 * 56]
    assert KVLayout(10, group).held(0, 20, 1, after=10) == 3 * 56
    assert LayerGroup(None, 57, 4).token_bytes == 15
