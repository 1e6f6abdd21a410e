"""The models that predictions are judged by: published shapes, none of which a calibration has."""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig, resolve


def _llama(name: str, **shape: Any) -> ModelConfig:
    return ModelConfig(name=name, data={"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, **shape})


UNSEEN = (
    _llama(  # https://huggingface.co/HuggingFaceTB/SmolLM2-360M/blob/main/config.json
        "smollm2-360m", hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15,
        num_key_value_heads=5, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    resolve("qwen2.5-0.5b"),
    _llama(  # https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0/blob/main/config.json, whose 2048 positions are a limit
        "tinyllama-1.1b", hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32000, max_position_embeddings=4096, tie_word_embeddings=False,
    ),
    resolve("llama-3.2-1b"),
)  # fmt: skip

#: With those for devices that have the memory.
ALL = (*UNSEEN, resolve("llama-3.2-3b"), resolve("llama-3.1-8b"))
