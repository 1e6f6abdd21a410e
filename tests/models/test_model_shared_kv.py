"""KV caches that several share: layers that read that of another load it, too, and keep none; heads of a group have one."""

from typing import Any

import pytest

from models import own_attention
from models.capture import build, hf_config, record
from models.config import ModelConfig
from models.graph import QUANTITIES

KV_READ, KV_WRITE, FLOPS = (QUANTITIES.index(name) for name in ("kv_read", "kv_write", "flops"))

#: Six layers, of which the last two share; every third attends to all tokens, the others to a window of 16.
GEMMA_3N = {
    "model_type": "gemma3n_text", "num_hidden_layers": 6, "num_kv_shared_layers": 2, "sliding_window": 16, "hidden_size": 64,
    "intermediate_size": 64, "vocab_size": 128, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "laurel_rank": 8, "activation_sparsity_pattern": None,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}  # fmt: skip
ROW = 2 * 2 * 16 * 2  # keys and values of two heads of 16, in bfloat16


def test_layers_that_share_a_cache_load_it_and_keep_none() -> None:
    model = build(hf_config(ModelConfig(name="small", data=GEMMA_3N)), "bfloat16")
    nodes = record(model, (1, 1, 1000)).nodes
    loads = {node.layer: node.costs[KV_READ] for node in nodes if node.name == "kv_load"}
    window, whole = 15 * ROW, 1000 * ROW
    assert loads == {0: window, 1: window, 2: whole, 3: window, 4: window, 5: whole}
    assert {node.layer: node.costs[KV_WRITE] for node in nodes if node.name == "kv_store"} == dict.fromkeys(range(4), ROW)
    assert sum(node.costs[KV_READ] for node in nodes) == sum(loads.values())
    for node in nodes:
        if node.role == "scores":  # a layer waits for its own load
            assert node.layer in {nodes[j].layer for j in node.inputs if nodes[j].name == "kv_load"}


@pytest.mark.parametrize(
    ("sizes", "kv_heads"),
    [
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2),  # Falcon 40B and 180B, whose code repeats them
        ({"new_decoder_architecture": False, "multi_query": True}, 1),  # Falcon 7B
    ],
)
def test_heads_of_a_group_have_one_cache(sizes: dict[str, Any], kv_heads: int) -> None:
    data = {"model_type": "falcon", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 100}
    model = build(hf_config(ModelConfig(name="small", data=data | sizes)), "bfloat16", attention_name=own_attention.NAME)
    recording = record(model, (3, 1, 100))
    row = 2 * kv_heads * 8 * 2  # keys and values of heads of 8, in bfloat16; of 3 sequences in 2 layers
    assert sum(node.costs[KV_READ] for node in recording.nodes) == 3 * 2 * 100 * row
    assert sum(node.costs[KV_WRITE] for node in recording.nodes) == 3 * 2 * row
    scores = [node.costs[FLOPS] for node in recording.nodes if node.role == "scores" and node.costs[FLOPS]]
    assert scores == [3 * 2 * 8 * 8 * 101] * 2  # of all heads
    assert recording.kv_shape == (kv_heads, 8)
