"""Mixtures of experts: a step reads the routed experts and the shared ones, however a family writes them."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from models.capture import build, quiet, record
from models.config import ModelConfig
from models.decoder import hf_config, make
from models.graph import QUANTITIES
from models.routed import choose_experts

WEIGHT, FLOPS = QUANTITIES.index("weight"), QUANTITIES.index("flops")

#: Names that configs have for the number of experts, and for those that a token chooses.
COUNT = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")

#: Mixtures of transformers that can be captured.
MIXTURES = (
    "afmoe", "aria_text", "axk1", "beam", "cohere2_moe", "deepseek_v3", "ernie4_5_moe", "exaone_moe", "flex_olmo", "flint",
    "glm4_moe", "glm4_moe_lite", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoeshared", "hy_v3", "kolibri1", "laguna",
    "llama4_text", "mellum", "mimo_v2_flash", "minimax", "minimax_m2", "minimax_m3_vl_text", "mixtral", "nemotron_h", "olmoe",
    "phimoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "solar_open",
)  # fmt: skip


def small(model_type: str) -> Any:
    """The default config with few layers."""
    config = CONFIG_MAPPING[model_type]()
    config.num_hidden_layers = min(config.num_hidden_layers, 4)
    for name in ("layer_types", "mlp_layer_types", "layers_block_type", "moe_layer_freq"):
        if isinstance(kinds := getattr(config, name, None), list):
            setattr(config, name, kinds[: config.num_hidden_layers])
    return config


def experts_read(config: Any, tokens: int) -> set[tuple[int, int]]:
    """Numbers of experts, and of choices for each token, of the products with experts. No other product reads experts."""
    with quiet():
        nodes = record(build(config, "bfloat16"), (1, tokens, 5)).nodes
    for node in nodes:
        dense = node.costs[FLOPS] and any("experts." in name and "shared" not in name for name in node.weights)
        assert not dense, f"{node.name} at {node.path} reads experts that were not chosen"
    return {(node.experts[0], node.costs[WEIGHT] // node.experts[1] // tokens) for node in nodes if node.experts != (0, 0)}


@pytest.mark.parametrize("model_type", ["llama4_text", "mixtral"])
def test_a_token_reads_the_experts_that_it_chooses(model_type: str) -> None:
    check(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MIXTURES)
def test_every_mixture(model_type: str) -> None:
    check(model_type)


def check(model_type: str) -> None:
    config = small(model_type)
    count, chosen = (next(getattr(config, name) for name in names if hasattr(config, name)) for names in (COUNT, CHOSEN))
    assert 1 <= chosen < count
    for tokens in (1, 3):
        assert experts_read(config, tokens) == {(count, chosen)}


#: Small models whose code loops over experts.
LOOPS: dict[str, dict[str, Any]] = {
    "step3p5": {
        "hidden_size": 32, "intermediate_size": 16, "moe_intermediate_size": 16, "share_expert_dim": 16, "vocab_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"], "layer_types": ["full_attention"] * 2,
        "sliding_window": 8,
    },
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 64,
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500000},
    },
    "longcat_flash": {  # two of six experts return the token
        "num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "vocab_size": 64,
        "num_attention_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
        "head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", LOOPS)
def test_experts_one_after_another_make_what_chosen_ones_make(model_type: str) -> None:
    config = hf_config(ModelConfig(name="small", data={"model_type": model_type, **LOOPS[model_type]}))
    assert experts_read(config, 3) == {(4, 2)}
    torch.manual_seed(0)
    model = make(config, dtype=torch.float32).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    tokens = torch.randint(0, 64, (2, 7))
    with torch.no_grad():
        looped = model(input_ids=tokens).logits
        choose_experts(model)
        chosen = model(input_ids=tokens).logits
    assert any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(chosen, looped, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", [1, 2])
def test_chosen_experts_make_what_all_of_them_make(chosen: int) -> None:
    config = CONFIG_MAPPING["llama4_text"](
        num_hidden_layers=2, hidden_size=32, intermediate_size=16, intermediate_size_mlp=32, vocab_size=64, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=chosen, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    tokens = torch.randint(0, 64, (2, 7))
    with torch.no_grad():
        dense = model(tokens).logits
        choose_experts(model)
        routed = model(tokens).logits
    assert any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(routed, dense, rtol=1e-4, atol=1e-5)
