"""Layers that read the KV cache of another layer: they load it, too, and keep none."""

from models.capture import build, hf_config, record
from models.config import ModelConfig
from models.graph import QUANTITIES

KV_READ, KV_WRITE = QUANTITIES.index("kv_read"), QUANTITIES.index("kv_write")

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
