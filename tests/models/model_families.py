"""Small configs of many families, for the tests: the code of each family is real, only the sizes are not."""

from __future__ import annotations

from functools import cache
from typing import Any

from models.capture import capture
from models.config import ModelConfig
from models.graph import ModelGraph

_SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

#: Keys that each family adds to, or changes in, the small config.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 6},
    "mixtral": {**_MOE, "num_local_experts": 4, "sliding_window": None},
    "qwen2": {},
    "qwen2_moe": {**_MOE, "num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**_MOE, "num_experts": 4, "head_dim": 8},
    "phi": {},
    "phi3": {"sliding_window": None},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "num_hidden_layers": 3, "sliding_window_pattern": 3},
    "gpt2": {},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_oss": {**_MOE, "num_local_experts": 4, "head_dim": 8, "sliding_window": 6},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "starcoder2": {"sliding_window": None},
    "stablelm": {},
    "olmo": {},
    "olmo2": {},
    "olmoe": {**_MOE, "num_experts": 4},
    "cohere": {},
    "cohere2": {"sliding_window": 6},
    "granite": {"residual_multiplier": 0.5},
    "granitemoe": {**_MOE, "num_local_experts": 4},
    "deepseek_v2": {**_LATENT, **_MOE, "topk_method": "greedy"},
    "deepseek_v3": {**_LATENT, **_MOE, "n_group": 2},
    "smollm3": {},
    "nemotron": {},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "exaone4": {"sliding_window": 6, "sliding_window_pattern": 2},
    "ernie4_5": {},
    "helium": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "arcee": {},
    "hunyuan_v1_dense": {"head_dim": 8},
    "dbrx": {},
    "jais2": {},
    "minimax": {},
    "persimmon": {},
    "biogpt": {},
    "apertus": {},
    "bitnet": {},
    "ministral": {"sliding_window": 6, "head_dim": 8},
    "lfm2": {},
    "vaultgemma": {"head_dim": 8, "sliding_window": 6},
    "dots1": {
        **_MOE,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "head_dim": 8,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "falcon": {"ffn_hidden_size": 48},
    "gptj": {"rotary_dim": 4, "n_inner": 48},
    "bloom": {},
    "mamba": {},
    "bert": {},
    "roberta": {},
    "codegen": {"rotary_dim": 4, "n_inner": 48},
    "llama4_text": {
        **_MOE,
        "num_local_experts": 4,
        "head_dim": 8,
        "attention_chunk_size": 6,
        "interleave_moe_layer_step": 1,
        "intermediate_size_mlp": 48,
    },
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 2048,
    },
    "xglm": {"ffn_dim": 48},
    "diffllama": {},
}

#: Families that write out their attention themselves.
OWN_ATTENTION = ("bloom", "codegen", "falcon", "gpt_neo", "gptj", "xglm")


def small(model_type: str, **changes: Any) -> ModelConfig:
    """A small float32 config of a family."""
    data = {"model_type": model_type, "dtype": "float32", **_SMALL, **FAMILIES.get(model_type, {}), **changes}
    return ModelConfig(name=f"small-{model_type}", data=data)


@cache
def captured(model_type: str, mla: str = "latent", **changes: Any) -> dict[str, ModelGraph]:
    """The graphs of a small config by granularity, captured once for all tests."""
    return capture(small(model_type, **changes), mla=mla)
