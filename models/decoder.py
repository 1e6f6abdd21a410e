"""The decoder that a model's config describes, as transformers has it.

| the config                                            | its decoder                                        |
| ----------------------------------------------------- | -------------------------------------------------- |
| a type with a causal language model                   | that                                               |
| a wrapper for images or sound, the keys of its text   | the text model, with an LM head                    |
| model in `text_config` or among its own               |                                                    |
| a type unknown here, but a class known by its name in | that class (Kimi-K2 is `DeepseekV3ForCausalLM`)    |
| `architectures`                                       |                                                    |

A config is data: code that a repository brings along (`auto_map`) is never fetched and never run.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from importlib.metadata import version
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as _CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from models.config import QUANTIZATION, ModelConfig, nested, parts, texts
from sim.base.errors import InputError, nearest
from sim.base.quantities import show

#: Keys of a config that say nothing about its ops: formats of stored weights, and code of the repository's own.
_LEFT_OUT = (*QUANTIZATION, "auto_map")

_ROPE = ("rope_scaling", "rope_parameters")

#: Types of text models without a class for causal language models, which `TextDecoder` can decode with.
_TEXT_MODELS = tuple(name for name in MODEL_MAPPING_NAMES if name.endswith("_text"))

#: Rotary encodings that have a shape of their own; all others are that of the default, with other frequencies.
_ROPE_SHAPES = ("default", "axial", "proportional")


def hf_config(config: ModelConfig) -> PretrainedConfig:
    """The transformers config of the decoder. Raises InputError if its type is unknown or is not a causal language model."""
    try:
        data = _decoder(_plain(config.data))
        model_type = _known_type(data, own_code=any(part.get("auto_map") for part in parts(config.data)))
        result: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict({**data, "model_type": model_type})
        if model_type not in _CAUSAL:
            result = _inside(result)
    except InputError as error:
        raise InputError(f"{config.name}: {error}") from None
    except Exception as error:  # transformers validates with several exception types
        raise InputError(f"{config.name}: transformers rejects the config: {one_line(error)}") from error
    if result.model_type not in (*_CAUSAL, *_TEXT_MODELS):
        raise InputError(f"{config.name}: model_type {model_type!r} is not a causal language model (it does not decode)")
    # Decoders of other families may have the field too, and leave it false; only models for masked tokens are encoders.
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(result, "is_decoder", None) is False:
        raise InputError(f"{config.name}: model_type {model_type!r} is encoder-only (its config has no is_decoder: true)")
    return result


def make(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The model of a decoder's config. options: `dtype`, `attn_implementation` and others of transformers."""
    made: PreTrainedModel
    if config.model_type in _CAUSAL:
        made = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
        return made
    made = TextDecoder._from_config(config, **options)  # what from_config of an Auto class calls
    return made


class TextDecoder(PreTrainedModel):
    """A text model that transformers has only inside of a wrapper, with an LM head."""

    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  # as transformers declares it
    _supports_attention_backend = True
    _supports_sdpa = True
    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config, trust_remote_code=False)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,  # [B, Q]
        position_ids: torch.Tensor | None = None,  # [B, Q]
        past_key_values: Any = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Logits of the last `logits_to_keep` tokens of each sequence [B, kept, V]; 0 keeps all."""
        hidden = self.model(
            input_ids=input_ids, position_ids=position_ids, past_key_values=past_key_values, use_cache=use_cache
        ).last_hidden_state  # fmt: skip
        return CausalLMOutputWithPast(logits=self.lm_head(hidden[:, -logits_to_keep:]), past_key_values=past_key_values)


def one_line(error: Exception) -> str:
    """An error of another library in one line: its type and the start of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}"


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config, because transformers edits what it gets; without what no op depends on."""
    made = deepcopy({key: value for key, value in data.items() if key not in _LEFT_OUT})
    for key, value in made.items():
        if key in _ROPE and isinstance(value, dict):
            made[key] = _unscaled(value)
        elif isinstance(value, dict):
            made[key] = _plain(value)
    return made


def _unscaled(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a rotary encoding, or of one for each type of layer, without the rule by which it is scaled.

    A scaled encoding multiplies by other numbers, not by more of them; some rules (dynamic NTK) read the positions, which a
    model without data does not have.
    """
    made = {key: _unscaled(value) if isinstance(value, dict) else value for key, value in rope.items()}
    chosen = made.pop("type", None)
    if made.setdefault("rope_type", chosen) not in _ROPE_SHAPES:
        made["rope_type"] = "default"
    return made


def _decoder(data: dict[str, Any]) -> dict[str, Any]:
    """The config of the decoder in a wrapper's config, else the config itself."""
    found = nested(data)
    if found is None:
        return data
    key, inner = found
    outer = CONFIG_MAPPING[data["model_type"]] if data.get("model_type") in CONFIG_MAPPING else None
    if "model_type" not in inner and outer is not None:
        inner["model_type"] = _type_of_part(outer, key)
    if "tie_word_embeddings" not in inner and (tied := data.get("tie_word_embeddings", _tied(outer))) is not None:
        inner["tie_word_embeddings"] = tied and (
            "tie_word_embeddings" in data or _tied(CONFIG_MAPPING.get(inner["model_type"]))
        )
    made = _decoder(inner)
    decodes = made["model_type"] not in CONFIG_MAPPING or made["model_type"] in (*_CAUSAL, *_TEXT_MODELS)
    return data if not decodes and data.get("model_type") in _CAUSAL else made


def _type_of_part(outer: Any, key: str) -> Any:
    """The type of a part of a wrapper that does not name it."""
    with suppress(Exception):  # classes of wrappers make their parts in ways of their own
        return getattr(outer(), key).model_type
    return None


def _tied(kind: Any) -> bool | None:
    """Whether a class of configs ties embedding and LM head by default, None if it does not say."""
    return None if kind is None else getattr(kind, "tie_word_embeddings", None)


def _inside(outer: PretrainedConfig) -> PretrainedConfig:
    """The config of the text model of a wrapper, whose keys may stand among its own."""
    text: PretrainedConfig = outer.get_text_config(decoder=True)
    if text is not outer and getattr(outer, "tie_word_embeddings", None) is not None:
        text.tie_word_embeddings = outer.tie_word_embeddings
    return text


def _known_type(data: Mapping[str, Any], *, own_code: bool) -> str:
    """The type that transformers knows a config by: its own, or that of the class in `architectures`."""
    model_type = data.get("model_type")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return model_type
    for name in texts(data.get("architectures")):
        types = [each for each, made in _CAUSAL.items() if made == name]
        if types:  # Qwen2ForCausalLM is that of `qwen2`, though other types use it, too
            return min(types, key=lambda each: (not name.lower().startswith(each.replace("_", "")), -len(each)))
    raise InputError(_unknown_type(str(model_type), data, own_code=own_code))


def _unknown_type(model_type: str, data: Mapping[str, Any], *, own_code: bool) -> str:
    """The error about an unknown type: which release of transformers or which change would help."""
    here = version("transformers")
    wrong = f"unknown model_type {show(model_type)} in transformers {here}{nearest(model_type[:100], _CAUSAL)}"
    written = data.get("transformers_version")
    if isinstance(written, str) and _release(written) > _release(here):
        return f"{wrong}; the config is of transformers {show(written)}: install that (pip install --upgrade transformers)"
    own = "the code of its repository is never run; " if own_code else ""
    return f"{wrong}; {own}try a later release, or a known model_type in a copy of the config"


def _release(text: str) -> tuple[int, ...]:
    """A version as numbers, to compare: 5.23.0.dev0 is (5, 23, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", text[:40])[:3])
