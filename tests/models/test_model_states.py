"""Layers that keep a state: its bytes and its arithmetic by hand, whatever the context, and how runs count them."""

import json
from typing import Any

import pytest

from models.capture import build, capture, quiet, record
from models.config import ModelConfig
from models.decoder import hf_config
from models.graph import QUANTITIES, ModelGraph, OpGraph
from models.grouping import group
from sim.machine.kv_cache import KVLayout, LayerGroup, kept_groups, layer_groups, state_bytes

STATE_READ, STATE_WRITE, KV_WRITE, FLOPS, VECTOR = (
    QUANTITIES.index(name) for name in ("state_read", "state_write", "kv_write", "flops", "vector_ops")
)

#: Small hybrids, and by hand the bytes of all states: float32, and of a convolution of width 4 the last 3 inputs.
DELTA = {
    "model_type": "qwen3_next", "num_hidden_layers": 2, "full_attention_interval": 2, "hidden_size": 64, "vocab_size": 128,
    "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
DELTA_STATE = (4 * 8 * 16 + 3 * (2 * 2 * 8 + 4 * 16)) * 4  # one of two layers

#: A head of Mamba 2 has 32 x 16 numbers; its convolution, the inputs and the keys and queries of one group.
MAMBA = {
    "hidden_size": 64, "vocab_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
MAMBA_STATE = (4 * 32 * 16 + 3 * (4 * 32 + 2 * 16)) * 4
OF_MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}

#: By model_type, other fields of a small model, and the bytes of its states.
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "mamba2": (
        {"num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1}, 2 * MAMBA_STATE,
    ),
    "bamba": ({"num_hidden_layers": 2, "attn_layer_indices": [1], **OF_MAMBA_2}, MAMBA_STATE),
    "granitemoehybrid": (
        {
            "num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 64,
            "num_local_experts": 4, "num_experts_per_tok": 2, **OF_MAMBA_2,
        },
        MAMBA_STATE,
    ),
    "falcon_h1": ({"num_hidden_layers": 2, "mamba_d_ssm": 128, **OF_MAMBA_2}, 2 * MAMBA_STATE),  # both in each layer
    "nemotron_h": (
        {
            "num_hidden_layers": 3, "hybrid_override_pattern": "M*-", "head_dim": 16, "mamba_num_heads": 4,
            "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 1,
        },
        MAMBA_STATE,
    ),
    "mamba": (
        {"num_hidden_layers": 2, "state_size": 16, "intermediate_size": 128, "time_step_rank": 4}, 2 * 128 * (16 + 3) * 4,
    ),
    "jamba": (
        {
            "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_dt_rank": 4,
        },
        128 * (16 + 3) * 4,
    ),
    "minimax": (
        {
            "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "head_dim": 16,
            "num_local_experts": 4, "num_experts_per_tok": 2,
        },
        4 * 16 * 16 * 4,
    ),
    "lfm2": ({"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, 64 * 2 * 4),  # a convolution of width 3
    "qwen3_5_text": ({key: value for key, value in DELTA.items() if "expert" not in key and key != "model_type"}, DELTA_STATE),
}  # fmt: skip


def graph_of(data: dict[str, Any]) -> ModelGraph:
    return capture(ModelConfig(name="small", data=data), "bfloat16")["op"]


@pytest.fixture(scope="module")
def delta() -> ModelGraph:
    return graph_of(DELTA)


def totals(ops: OpGraph, context: int, batch: int = 1, query: int = 1) -> list[int]:
    found: list[int] = ops.costs(context, batch, query).sum(axis=1).tolist()
    return found


def test_each_step_reads_and_writes_the_whole_state(delta: ModelGraph) -> None:
    for batch, query in ((1, 1), (1, 64), (5, 1), (5, 100)):
        for context in (0, 7, 1000, 100_000):
            costs = totals(delta.step(batch, query), context, batch, query)
            assert costs[STATE_READ] == costs[STATE_WRITE] == batch * DELTA_STATE
    assert totals(delta.step(), 9)[KV_WRITE] == 2 * 16 * 2  # the other layer, keys and values


def test_a_decoded_token_goes_over_each_element_of_the_state_seven_times(delta: ModelGraph) -> None:
    """Decay, the sum of state times key (two), the outer product and its addition, and the sum of state times query (two).

    These are the FLOPs of the gated delta rule for one token: 7 dk dv a head.
    """
    ops = delta.step()
    scan = next(i for i, op in enumerate(ops.ops) if op.kind == "scan")
    state = 4 * 8 * 16
    beside = 40 * 4 * (8 + 16)  # on vectors: norms of queries and keys, gates, conversions
    assert 7 * state <= ops.costs(50)[VECTOR, scan] <= 7 * state + beside


def test_chunks_of_a_prompt_multiply_as_the_chunked_delta_rule_does(delta: ModelGraph) -> None:
    """FLOPs of a chunk of C tokens and one head: of products within the chunk, and of three with the state.

    Keys with keys and queries with keys (2 C^2 dk each), a triangular system for values and keys (C^2 each column), scores
    times values (2 C^2 dv); the state times keys, and times queries, and its update (2 C dk dv each).
    """
    C, dk, dv, heads = 64, 8, 16, 4
    of_chunk = 2 * 2 * C * C * dk + C * C * (dv + dk) + 2 * C * C * dv + 3 * 2 * C * dk * dv
    for chunks in (1, 2, 10):
        ops = delta.step(1, C * chunks)
        scan = next(i for i, op in enumerate(ops.ops) if op.kind == "scan")
        assert ops.costs(50, 1, C * chunks)[FLOPS, scan] == chunks * heads * of_chunk


def test_a_sequence_holds_its_state_beside_its_pages(delta: ModelGraph) -> None:
    ops = delta.step()
    assert layer_groups(ops) == (LayerGroup(None, 64),)
    assert state_bytes(ops) == DELTA_STATE
    assert kept_groups(ops)[-1] == LayerGroup(0, DELTA_STATE)
    layout = KVLayout(16, layer_groups(ops), DELTA_STATE)
    assert layout.held_in_all(99, 100, 1) == 7 * 16 * 64 + DELTA_STATE  # 100 tokens in 7 pages
    assert layout.held_in_all(0, 0, 1) == 0


def test_a_graph_with_states_is_stored_and_read_again(delta: ModelGraph) -> None:
    again = ModelGraph.from_json(json.loads(json.dumps(delta.to_json())))
    for key, ops in delta.variants.items():
        assert again.variants[key] == ops


def test_layers_that_keep_a_state_and_see_a_window_or_all_tokens() -> None:
    """Inkling: convolutions of width 4 over keys, values and what attention and MLP get, in layers of two kinds."""
    data = {
        "model_type": "inkling_text", "num_hidden_layers": 2, "layer_types": ["hybrid_sliding", "hybrid"], "hidden_size": 64,
        "intermediate_size": 64, "vocab_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16, "sliding_window_size": 16, "d_rel": 4,
        "rel_extent": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    }  # fmt: skip
    with quiet():
        model = build(hf_config(ModelConfig(name="small", data=data)), "bfloat16")
        nodes = record(model, (2, 3, 1000)).nodes
    loads = {(node.name, node.layer): sum(node.costs) for node in nodes if node.name in ("kv_load", "state_load")}
    assert loads == {
        ("kv_load", 0): 2 * 15 * 2 * 4 * 16 * 2,
        ("kv_load", 1): 2 * 1000 * 2 * 2 * 16 * 2,
        ("state_load", 0): 2 * 3 * (2 * 4 * 16 + 2 * 64) * 4,
        ("state_load", 1): 2 * 3 * (2 * 2 * 16 + 2 * 64) * 4,
    }


def test_windows_that_are_kept_as_they_are_needed() -> None:
    """Zaya: two convolutions of width 2 over queries and keys need two past inputs, and half of the values the last token."""
    data = {
        "model_type": "zaya", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "moe_intermediate_size": 16, "router_hidden_size": 8,
    }  # fmt: skip
    with quiet():
        nodes = record(build(hf_config(ModelConfig(name="small", data=data)), "bfloat16"), (3, 2, 1000)).nodes
    moved = {(node.name, node.layer): sum(node.costs) for node in nodes if node.name in ("kv_load", "state_load")}
    state = 4 * (2 * (4 + 2) * 16 + 2 * 16 // 2)
    assert moved == {
        **{("kv_load", layer): 3 * 1000 * 2 * 2 * 16 * 2 for layer in (0, 1)},
        **{("state_load", layer): 3 * state for layer in (0, 1)},
    }


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_families(model_type: str) -> None:
    fields, state = FAMILIES[model_type]
    model = graph_of({"model_type": model_type, **MAMBA, **fields})
    for batch, query in ((1, 1), (3, 1), (2, 300)):
        costs = totals(model.step(batch, query), 1000, batch, query)
        assert costs[STATE_READ] == costs[STATE_WRITE] == batch * state
    kinds = [op.kind for op in model.step().ops]
    assert kinds.count("state_load") == kinds.count("state_store") > 0
    assert kinds.count("conv") == kinds.count("state_load") * (model_type != "minimax")
    assert not [kind for kind in kinds if kind in ("aten.mm", "aten.addmm", "aten.bmm")]
    assert totals(model.step(1, 2000), 0, 1, 2000)[FLOPS] > 900 * totals(model.step(1, 2), 0, 1, 2)[FLOPS]


#: Models that keep states outside of the cache of transformers, and by hand the bytes of the states of each layer.
OWN: dict[str, tuple[dict[str, Any], dict[int, int]]] = {
    "recurrent_gemma": (  # of RG-LRU, one number a channel, and of its convolution of width 4 the last 3 inputs
        {
            "num_hidden_layers": 3, "hidden_size": 64, "lru_width": 64, "intermediate_size": 96, "vocab_size": 128,
            "num_attention_heads": 4, "num_key_value_heads": 1, "attention_window_size": 32,
        },
        dict.fromkeys((0, 1), 64 * (1 + 3) * 4),
    ),
    "xlstm": (  # a head has a matrix of keys and values, their normalizer and a maximum
        {"num_hidden_layers": 2, "num_blocks": 2, "hidden_size": 128, "embedding_dim": 128, "num_heads": 4, "vocab_size": 128},
        dict.fromkeys((0, 1), 4 * (16 * 32 + 16 + 1) * 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", OWN)
def test_states_outside_of_the_cache_of_transformers(model_type: str) -> None:
    fields, layers = OWN[model_type]
    with quiet():
        model = build(hf_config(ModelConfig(name="small", data={"model_type": model_type, **fields})), "bfloat16")
        for batch, query in ((1, 1), (3, 1), (2, 5)):
            recording = record(model, (batch, query, 1000))
            nodes = recording.nodes
            assert {each.kind for each in group(recording) if each.kind.startswith("aten.")} <= {"aten.mul"}  # of the embedding
            for name, quantity in (("state_load", STATE_READ), ("state_store", STATE_WRITE)):
                moved = {node.layer: node.costs[quantity] for node in nodes if node.name == name}
                assert moved == {layer: batch * state for layer, state in layers.items()}
            rows = [node.costs[QUANTITIES.index("kv_read")] for node in nodes if node.name == "kv_load"]
            assert rows == ([batch * 31 * 2 * 16 * 2] if model_type == "recurrent_gemma" else [])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OWN)
def test_graphs_with_states_outside_of_the_cache(model_type: str) -> None:
    fields, layers = OWN[model_type]
    model = graph_of({"model_type": model_type, **fields})
    for batch, query in ((1, 1), (3, 1), (2, 300)):
        costs = totals(model.step(batch, query), 1000, batch, query)
        assert costs[STATE_READ] == costs[STATE_WRITE] == batch * sum(layers.values())
    assert totals(model.step(1, 640), 0, 1, 640)[FLOPS] > 9 * totals(model.step(1, 64), 0, 1, 64)[FLOPS]
