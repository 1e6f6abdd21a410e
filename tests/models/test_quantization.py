"""Formats that the config of a model says, as Hugging Face configs write them."""

from __future__ import annotations

from typing import Any

import pytest

import sim
from models.config import ModelConfig, dtype_of
from models.formats import Formats
from models.quantization import as_formats, quantization
from sim.scenario import from_dict

KEPT = {"router": "bf16", "lm_head": "bf16", "embedding": "bf16"}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def compressed(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(("written", "formats"), [
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
     {"weights": {"experts": "mxfp4"}}),
    ({**FP8, "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
     {"weights": {"default": "fp8", **KEPT}, "group": 16384, "scale": 4}),
    (FP8, {"weights": {"default": "fp8", **KEPT}}),
    ({"quant_method": "gptq", "bits": 4, "group_size": 64},
     {"weights": {"default": "int4", **KEPT}, "group": 64, "scale": 2, "zero_points": True}),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
     {"weights": {"default": "int4", **KEPT}, "group": 128, "scale": 2, "zero_points": True}),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.0.self_attn", "model.layers.1.self_attn"]},
     {"weights": {"default": "nvfp4", **KEPT, "attention": "bf16"}}),
    (compressed(num_bits=8, type="float"), {"weights": {"default": "fp8", **KEPT}}),
    (compressed(num_bits=4, type="int", group_size=32, symmetric=True),
     {"weights": {"default": "int4", **KEPT}, "group": 32, "scale": 2, "zero_points": False}),
    (compressed(num_bits=8, type="int"), {"weights": {"default": "int8", **KEPT}, "scale": 0}),
])  # fmt: skip
def test_methods(written: dict[str, Any], formats: dict[str, Any]) -> None:
    found = quantization({"num_hidden_layers": 2, "quantization_config": written})
    assert found is not None
    assert found.formats == formats
    assert found.note.startswith("weights as its quantization_config says")
    assert "are not" not in found.note
    as_formats(found.formats, Formats(kv="fp8"))  # they are valid


def test_what_is_not_honored_is_said() -> None:
    unknown = quantization({"quantization_config": {"quant_method": "hqq"}})
    assert unknown is not None
    assert not unknown.formats
    assert unknown.note.startswith("quantization_config ('hqq') is not honored: weights as captured")
    partly = quantization({
        "num_hidden_layers": 4,
        "quantization_config": {**FP8, "modules_to_not_convert": ["model.layers.3.mlp.down_proj", "model.layers.0.mlp.gate"]},
    })  # fmt: skip
    assert partly is not None
    assert "1 of its exceptions, such as 'model.layers.3.mlp.down_proj', are not" in partly.note
    assert quantization({"num_hidden_layers": 4}) is None


def test_a_config_without_dtype_computes_in_16_bits_if_it_is_quantized() -> None:
    assert dtype_of(ModelConfig(name="", data={"quantization_config": {"quant_method": "mxfp4"}}), None) == "bfloat16"
    assert dtype_of(ModelConfig(name="", data={}), None) == "float32"


def weights_of(model: str, **formats: object) -> int:
    """Bytes of weights of one step."""
    result = sim.run(from_dict({
        "model": {"config": model}, "mapping": {"softmax": "online", "heads": "fused", "formats": formats},
        "workload": {"sequences": [{"context": 0, "tokens": 1}]},
    }))  # fmt: skip
    return result.metrics.bytes_read


def test_gpt_oss_is_as_published_unless_the_scenario_says_otherwise() -> None:
    published = weights_of("gpt-oss-20b")
    assert published == weights_of("gpt-oss-20b", weights={"experts": "mxfp4"})
    assert round(published / 1e9, 2) == 3.71
    assert round(weights_of("gpt-oss-20b", weights="bf16") / 1e9, 2) == 7.22


def test_fp8_by_blocks() -> None:
    """DeepSeek-V3: all products but LM head and routers in one byte a number, and 4 bytes for each 128 x 128 of them."""
    bf16, fp8 = weights_of("deepseek-v3", weights="bf16"), weights_of("deepseek-v3")
    kept = 2 * (7168 * (129_280 + 1) + 58 * 256 * (7168 + 1) + 61 * (2 * 7168 + 1536 + 512) + 7168)
    assert fp8 == pytest.approx(kept + (bf16 - kept) * (1 + 4 / 128**2) / 2, rel=1e-6)
