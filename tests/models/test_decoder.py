"""The decoder inside of a config: wrappers, types that only their classes tell, and rotary scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_families import _SMALL, FAMILIES, small

from models.capture import build, record
from models.config import ModelConfig
from models.decoder import TextDecoder, hf_config
from models.graph import QUANTITIES
from models.recording import Recording
from sim.base.errors import InputError

KV_READ = QUANTITIES.index("kv_read")

QWEN3 = {**_SMALL, "head_dim": 8}


def recorded(**data: Any) -> Recording:
    """One step of a config: 2 sequences, 3 tokens each, after 5."""
    return record(build(hf_config(ModelConfig(name="made", data=data)), "bfloat16"), (2, 3, 5))


def costs(recording: Recording) -> list[tuple[str, tuple[int, ...], tuple[int, int]]]:
    """Names, costs and experts of all ops that have weights or touch the KV cache."""
    return [(node.name, node.costs, node.experts) for node in recording.nodes if any(node.costs[2:5])]


def parameters(**data: Any) -> int:
    model = build(hf_config(ModelConfig(name="made", data=data)), "bfloat16")
    return sum(p.numel() for p in dict.fromkeys(model.parameters()))


@pytest.mark.parametrize(
    ("wrapper", "text"),
    [
        ("qwen3_vl", "qwen3"),
        ("qwen3_vl_moe", "qwen3_moe"),
        ("qwen2_5_vl", "qwen2"),
        ("mistral3", "mistral"),
        ("kimi_k25", "deepseek_v3"),
    ],
)
def test_a_wrapper_decodes_as_the_text_model_inside(wrapper: str, text: str) -> None:
    alone = {"model_type": text, **_SMALL, **FAMILIES[text], "sliding_window": None, "tie_word_embeddings": False}
    inside = {key: value for key, value in alone.items() if key not in ("tie_word_embeddings", "model_type")}
    kind = {"mistral3": "mistral", "kimi_k25": "kimi_k2"}.get(wrapper, f"{wrapper}_text")
    mrope = {} if wrapper in ("mistral3", "kimi_k25") else {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    for tied in (False, True):
        decoder = {**inside, **mrope, "model_type": kind, "architectures": ["DeepseekV3ForCausalLM"]}
        wrapped = {"model_type": wrapper, "tie_word_embeddings": tied, "vision_config": {}, "text_config": decoder}
        assert costs(recorded(**wrapped)) == costs(recorded(**{**alone, "tie_word_embeddings": tied}))
        assert parameters(**wrapped) == parameters(**{**alone, "tie_word_embeddings": tied})


def test_windows_of_a_wrapper() -> None:
    """Gemma 3 27B at 131,072 tokens: 10 of 62 layers keep all, the others 1,023; of 16 heads of 128. 10.41 GiB in all."""
    text = {
        "model_type": "gemma3_text", "hidden_size": 5376, "num_hidden_layers": 6, "num_attention_heads": 32,
        "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024, "vocab_size": 64, "intermediate_size": 64,
    }  # fmt: skip
    data = {"model_type": "gemma3", "vision_config": {}, "text_config": text}
    nodes = record(build(hf_config(ModelConfig(name="made", data=data)), "bfloat16"), (1, 1, 131_072)).nodes
    window, whole = 1023 * 8192, 131_072 * 8192
    assert [node.costs[KV_READ] for node in nodes if node.name == "kv_load"] == [*[window] * 5, whole]
    assert 10 * whole + 52 * window == 11_173_199_872


def test_a_wrapper_may_have_the_keys_of_its_decoder_among_its_own() -> None:
    """Qwen2.5-VL was published so."""
    keys = {key: value for key, value in _SMALL.items() if not key.endswith("token_id")}
    flat = {"model_type": "qwen2_5_vl", **keys, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    for tied in (False, True):
        expected = parameters(model_type="qwen2", **_SMALL, tie_word_embeddings=tied)
        assert parameters(**flat, tie_word_embeddings=tied) == expected


def test_a_wrapper_whose_class_drops_the_keys_of_its_decoder() -> None:
    """Kimi-K2.5 as some repackage it: the keys of DeepSeek-V3, without `text_config`."""
    known = {**small("deepseek_v3").data, "tie_word_embeddings": False}
    assert costs(recorded(**{**known, "model_type": "kimi_k25"})) == costs(recorded(**known))


@pytest.mark.parametrize("kind", ["qwen2_5_omni_text", "paddleocr_vl_text", "mistral4"])
def test_a_text_model_that_no_mapping_has(kind: str) -> None:
    extra = {"head_dim": 8, "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    if kind == "mistral4":
        extra = {key: value for key, value in FAMILIES["deepseek_v3"].items() if key != "n_group"}
    inside = recorded(model_type="wrapper", text_config={"model_type": kind, **_SMALL, **extra})
    assert inside.nodes[-1].path == "lm_head"
    assert any(node.name == "kv_store" for node in inside.nodes)


@pytest.mark.parametrize(("wrapper", "said", "tied"), [
    ("qwen3_vl_moe", {}, False),  # its text model alone would be tied by default
    ("mistral3", {}, False),  # Mistral Small 3 has an LM head of its own, though its wrapper's class says that it is tied
    ("gemma3", {}, True), ("qwen3_vl", {"tie_word_embeddings": True}, True), ("gemma3", {"tie_word_embeddings": False}, False),
])  # fmt: skip
def test_whether_the_lm_head_of_a_wrapper_is_its_embedding(wrapper: str, said: dict[str, bool], tied: bool) -> None:
    config = hf_config(ModelConfig(name="", data={"model_type": wrapper, **said, "text_config": {"num_hidden_layers": 2}}))
    assert bool(config.tie_word_embeddings) == tied
    assert config.num_hidden_layers == 2


def test_a_wrapper_of_a_type_that_is_not_known() -> None:
    inner = {"model_type": "qwen3", **QWEN3, "tie_word_embeddings": False}
    plain = recorded(**inner)
    for key in ("text_config", "llm_config", "language_config"):
        assert costs(recorded(model_type="some_vl", **{key: inner})) == costs(plain)
    assert costs(recorded(model_type="omni", thinker_config={"model_type": "thinker", "text_config": inner})) == costs(plain)


def test_a_text_model_without_a_head_of_its_own_gets_one() -> None:
    model = build(hf_config(ModelConfig(name="", data={
        "model_type": "qwen3_vl_text", **QWEN3, "rope_scaling": {"mrope_section": [1, 1, 2]}, "tie_word_embeddings": False,
    })), "float32", "cpu", "eager")  # fmt: skip
    assert isinstance(model, TextDecoder)
    tokens = torch.tensor([[1, 2, 3]])
    found = model(tokens).logits
    assert torch.equal(found, model.lm_head(model.model(tokens).last_hidden_state))
    assert torch.allclose(model(tokens, logits_to_keep=1).logits, found[:, -1:], atol=1e-5)


def test_a_type_that_only_its_class_tells() -> None:
    """Kimi-K2 has a type of its own, and the class of DeepSeek-V3."""
    known = dict(small("deepseek_v3").data)
    assert costs(recorded(**{**known, "model_type": "kimi_k2"}, architectures=["DeepseekV3ForCausalLM"])) == costs(
        recorded(**known)
    )
    assert (
        hf_config(ModelConfig(name="", data={"model_type": "own", "architectures": ["Qwen2ForCausalLM"]})).model_type == "qwen2"
    )


@pytest.mark.parametrize(("keys", "says"), [
    ({}, "; try a later release, or a known model_type in a copy of the config"),
    ({"transformers_version": "99.1.0"}, "of transformers '99.1.0': install that (pip install --upgrade transformers)"),
    ({"transformers_version": "4.1"}, "; try a later release"),
    ({"auto_map": {"AutoConfig": "own.Config"}}, "; the code of its repository is never run; try a later release"),
])  # fmt: skip
def test_an_unknown_type_says_what_would_help(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match="made: unknown model_type 'quite_own' in transformers") as caught:
        hf_config(ModelConfig(name="made", data={"model_type": "quite_own", **keys}))
    assert says in str(caught.value)


@pytest.mark.parametrize("scaling", [
    {"type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 4.0}, {"type": "yarn", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 128},
    {"type": "longrope", "long_factor": [1.0] * 4, "short_factor": [1.0] * 4}, {"type": "of_its_own"}, {"factor": 2.0}, {},
])  # fmt: skip
def test_rotary_scaling_costs_nothing(scaling: dict[str, Any]) -> None:
    plain = {"model_type": "llama", **_SMALL}
    with_it, without = recorded(**plain, rope_scaling=scaling), recorded(**plain)
    assert [(node.name, node.costs) for node in with_it.nodes] == [(node.name, node.costs) for node in without.nodes]


@pytest.mark.parametrize(("kind", "seen"), [("gemma3_text", True), ("gemma2", True), ("gemma4_text", "all")])
def test_an_encoder_of_the_layers_of_a_decoder_is_refused(kind: str, seen: object) -> None:
    """As EmbeddingGemma is: its tokens see those after them. Only with images do those of Gemma 4, `vision`."""
    config = ModelConfig(name="made", data={"model_type": kind, "use_bidirectional_attention": seen})
    with pytest.raises(InputError, match=r"^made: its tokens see later ones \(use_bidirectional_attention\), so it does not d"):
        hf_config(config)
    hf_config(ModelConfig(name="made", data={"model_type": "gemma4_text", "use_bidirectional_attention": "vision"}))


def test_layers_that_attend_to_an_image_are_skipped_without_one() -> None:
    """Llama 3.2 Vision, three layers of which the second attends to an image: text reads two, and the LM head."""
    D, F, V, KV, kept = 64, 96, 128, 2 * 16, 2
    inner = {
        "model_type": "mllama_text_model", "num_hidden_layers": 3, "cross_attention_layers": [1], "hidden_size": D,
        "intermediate_size": F, "vocab_size": V, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = ModelConfig(name="small", data={"model_type": "mllama", "text_config": inner, "tie_word_embeddings": False})
    nodes = record(build(hf_config(config), "bfloat16"), (1, 1, 1000)).nodes
    costs = dict(zip(QUANTITIES, map(sum, zip(*(node.costs for node in nodes), strict=True)), strict=True))
    layer = 2 * D * D + 2 * D * KV + 3 * D * F + 2 * D
    assert costs["weight"] == 2 * (kept * layer + V * D + D + D)  # the last norm, and a row of the embedding
    assert costs["kv_read"] == kept * 1000 * 2 * KV * 2
