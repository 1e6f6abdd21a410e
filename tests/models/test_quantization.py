"""Formats that the config of a model says, as Hugging Face configs write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from models.config import resolve
from models.formats import Formats
from models.quantization import as_formats, quantization
from sim.scenario import from_dict

KEPT = {"router": "bf16", "lm_head": "bf16", "embedding": "bf16"}
IN_16_BITS = {"router": "bf16", "lm_head": "bf16"}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def compressed(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(("written", "formats"), [
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
     {"weights": {"experts": "mxfp4"}}),
    ({**FP8, "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]},
     {"weights": {"default": "fp8", **KEPT}, "group": 16384, "scale": 4, "arithmetic": {"default": "fp8", **IN_16_BITS}}),
    (FP8, {"weights": {"default": "fp8", **KEPT}, "arithmetic": {"default": "fp8", **IN_16_BITS}}),
    ({**FP8, "activation_scheme": None}, {"weights": {"default": "fp8", **KEPT}}),
    ({"quant_method": "gptq", "bits": 4, "group_size": 64},
     {"weights": {"default": "int4", **KEPT}, "group": 64, "scale": 2, "zero_points": True}),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
     {"weights": {"default": "int4", **KEPT}, "group": 128, "scale": 2, "zero_points": True}),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.0.self_attn", "model.layers.1.self_attn"]},
     {"weights": {"default": "nvfp4", **KEPT, "attention": "bf16"},
      "arithmetic": {"default": "fp4", **IN_16_BITS, "attention": "bf16"}}),
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


#: Module names of a mixture with shared experts and a dense first layer, as those of Kimi-K2-Thinking.
MIXTURE = {
    "num_hidden_layers": 4, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16,
}  # fmt: skip
INT4 = {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True}


@pytest.mark.parametrize(("written", "formats"), [
    # Only the experts are quantized: all others are left out, by expressions.
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4}},
      "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"]},
     {"weights": {"experts": "int4"}, "group": 32, "scale": 2, "zero_points": False}),
    # Two groups, by the names of their modules.
    ({"quant_method": "compressed-tensors", "config_groups": {
        "attention": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 8, "type": "float"},
                      "input_activations": {"num_bits": 8, "type": "float"}},
        "rest": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 16},
                 "input_activations": {"num_bits": 4, "type": "float"}}}},
     {"weights": {"default": "nvfp4", **KEPT, "attention": "fp8"},
      "arithmetic": {"default": "fp4", **IN_16_BITS, "attention": "fp8"}}),
    # Modules one by one, in all four layers; the cache in fp8.
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "kv_cache_scheme": {"num_bits": 8, "type": "float"},
      "quantized_layers": {f"model.layers.{i}.{name}": {"quant_algo": algorithm} for i in range(4) for name, algorithm in (
          ("self_attn.q_b_proj", "FP8"), ("self_attn.kv_b_proj", "FP8"), ("self_attn.o_proj", "FP8"),
          *([("mlp.experts", "W4A16_NVFP4")] if i else []))}},
     {"weights": {"attention": "fp8", "experts": "nvfp4"}, "kv": "fp8",
      "arithmetic": {"default": "bf16", **IN_16_BITS, "attention": "fp8"}}),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]},
     {"weights": {"default": "int8", **KEPT}, "scale": 0, "arithmetic": {"default": "int8", **IN_16_BITS}}),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
     {"weights": {"default": "int4", **KEPT}, "group": 64, "scale": 1}),
    ({"quant_method": "quark", "exclude": ["re:.*self_attn.*"], "global_quant_config": {"weight": {"dtype": "fp4"}}},
     {"weights": {"default": "mxfp4", **KEPT, "attention": "bf16"}}),
])  # fmt: skip
def test_formats_by_kind(written: dict[str, Any], formats: dict[str, Any]) -> None:
    wrapped = {"model_type": "wrapper", "text_config": {**MIXTURE, "quantization_config": written}}
    for config in ({**MIXTURE, "quantization_config": written}, wrapped):
        found = quantization(config)
        assert found is not None
        assert found.formats == formats
        assert not found.more
        as_formats(found.formats, Formats())  # they are valid


def test_all_others_stay_only_if_both_dense_and_shared_ones_are_left_out() -> None:
    for left_out, kept in ((["*shared_experts*"], False), (["*shared_experts*", "model.layers.0.mlp.down_proj"], False),
                           (["*shared_experts*", "model.layers.0.mlp"], True)):  # fmt: skip
        found = quantization(
            {**MIXTURE, "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": left_out}}
        )
        assert found is not None
        assert (found.formats["weights"] == {"attention": "nvfp4", "experts": "nvfp4"}) == kept
        assert bool(found.more) != kept


@pytest.mark.parametrize("written", [
    {"quant_method": "gptq", "bits": 3, "group_size": 128},
    {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 2, "type": "int"}}}},
    {"quant_method": "compressed-tensors", "config_groups": {"a": 7}},
    {"quant_method": "modelopt", "quant_algo": "W2"},
    {"quant_method": "modelopt", "quantized_layers": {"model.layers.0.mlp": {"quant_algo": "W2"}}},
    {"quant_method": ["fp8"]},
    {"quant_method": "fp8", "weight_block_size": [4096, 4096]},  # beyond what a group may have
    {"quant_method": "gptq", "bits": [4], "group_size": 128},
    {"quant_method": "compressed-tensors", "config_groups": {  # groups of two sizes
        "a": {"targets": ["re:.*self_attn.*"], "weights": {**INT4, "group_size": 64}}, "b": {"weights": INT4}}},
])  # fmt: skip
def test_an_unknown_scheme_is_a_warning_with_a_key(written: dict[str, Any]) -> None:
    found = quantization({**MIXTURE, "quantization_config": written})
    assert found is not None
    assert not found.formats
    assert found.note.endswith("is not honored: weights as captured; mapping.formats.weights says otherwise")


#: Words that configs have as keys and as values; in random JSON they stand anywhere.
_WORDS = [
    "fp8",
    "modelopt",
    "compressed-tensors",
    "gptq",
    "bitsandbytes",
    "quark",
    "mxfp4",
    "NVFP4",
    "float",
    "int",
    "Linear",
    "re:.*attn.*",
]
_KEYS = [
    "quant_method",
    "quant_algo",
    "bits",
    "group_size",
    "weight_block_size",
    "config_groups",
    "weights",
    "num_bits",
    "type",
    "input_activations",
    "targets",
    "ignore",
    "kv_cache_scheme",
    "quantized_layers",
    "global_quant_config",
    "weight",
    "dtype",
    "block_structure",
    "activation_scheme",
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([4, 8, 16, 32, -1]) | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=6), max_leaves=12,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=8))
def test_whatever_a_config_has_is_valid_formats_or_a_note(written: dict[str, Any]) -> None:
    found = quantization({**MIXTURE, "quantization_config": written})
    if found is not None:
        as_formats(found.formats, Formats())
        assert found.note


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


def test_deepseek_v4_has_experts_in_four_bits() -> None:
    """By `expert_dtype` of its config; all other weights are in fp8 by blocks."""
    found = quantization(resolve("deepseek-v4-flash").data)
    assert found is not None
    kept = {"router": "bf16", "lm_head": "bf16", "embedding": "bf16"}
    assert found.formats["weights"] == {"default": "fp8", **kept, "experts": "mxfp4"}
    assert found.formats["arithmetic"] == {"default": "fp8", "router": "bf16", "lm_head": "bf16"}


def test_minimax_m2_is_in_fp8_as_published() -> None:
    """The hub has 4 bytes for each 128 x 128 numbers of attention and experts; router, embedding and LM head are bfloat16."""
    bf16, fp8 = weights_of("minimax-m2", weights="bf16"), weights_of("minimax-m2")
    products = 62 * (3072 * (2 * 6144 + 2 * 1024) + 8 * 3 * 3072 * 1536)
    assert bf16 - fp8 == products - products * 4 // 128**2


#: The formats of Qwen3-30B-A3B-FP8 (huggingface.co/Qwen/Qwen3-30B-A3B-FP8).
#: Its other keys are those of Qwen3-30B-A3B, which ships.
QWEN_FP8 = {**FP8, "modules_to_not_convert": ["lm_head"], "weight_block_size": [128, 128]}


def run_of(folder: Path, **keys: Any) -> Any:
    """A step of Qwen3-30B-A3B-FP8. The graph that ships serves, because formats change none."""
    path = folder / "qwen3-30b-a3b" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**resolve("qwen3-30b-a3b").data, "quantization_config": QWEN_FP8}))
    return sim.run(from_dict({
        "model": {"config": str(path)}, "mapping": {"softmax": "online", "heads": "fused", **keys.pop("mapping", {})},
        "workload": {"sequences": [{"context": 0, "tokens": 1}]}, **keys,
    }))  # fmt: skip


def test_a_mixture_in_fp8_by_blocks(tmp_path: Path) -> None:
    """Qwen3-30B-A3B-FP8 reads 3.37 GB of weights a token, 6.08 GB in bfloat16."""
    attention, experts, router = 2048 * 128 * (32 + 2 * 4 + 32), 8 * 3 * 2048 * 768, 128 * 2048
    kept = 48 * (router + 2 * 2048 + 2 * 128) + 2048 * (151_936 + 1) + 2048  # with norms, LM head and a row of the embedding
    found = run_of(tmp_path).metrics.bytes_read
    assert found == 48 * (attention + experts) * (1 + 4 / 128**2) + 2 * kept
    assert round(found / 1e9, 2) == 3.37
    found = run_of(tmp_path, mapping={"formats": {"weights": "bf16"}}).metrics.bytes_read
    assert found == 2 * (48 * (attention + experts) + kept)
    assert round(found / 1e9, 2) == 6.08


def test_products_take_the_format_of_quantized_activations_where_the_machine_has_a_rate_for_it(tmp_path: Path) -> None:
    def formats(**keys: Any) -> tuple[dict[str, str], str]:
        result = run_of(tmp_path, **keys)
        return {op.kind: op.dtype for op in result.plan.ops.ops}, " ".join(result.plan.notes)

    fast, note = formats()
    assert fast["q_proj"] == fast["down_proj"] == "float8_e4m3fn"
    assert fast["router"] == fast["lm_head"] == "bfloat16"
    assert "products in the format of quantized activations (default fp8" in note
    plain, note = formats(hardware={"engines": {"flops": {"bfloat16": "2 TFLOP/s"}}})
    assert set(plain.values()) == {"bfloat16"} | {plain["embedding"]}
    assert "products as captured, because hardware.engines.flops has no rate for fp8" in note
    said, note = formats(mapping={"formats": {"arithmetic": "bf16"}})
    assert said["q_proj"] == "bfloat16"
    assert "products" not in note
