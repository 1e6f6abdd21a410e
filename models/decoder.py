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
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as _CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from models.config import QUANTIZATION, ModelConfig, nested, parts, texts
from sim.base.errors import InputError, nearest
from sim.base.quantities import show

#: Keys of a config that say nothing about its ops: formats of stored weights, and code of the repository's own.
_LEFT_OUT = (*QUANTIZATION, "auto_map")

_ROPE = ("rope_scaling", "rope_parameters")

#: Keys of a text model that a wrapper may have among its own.
_OF_TEXT = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "sliding_window", "num_key_value_heads")

#: Wrappers that decode after a prompt which sees itself whole; their text models alone have a causal mask.
_PREFIX = ("paligemma",)

#: Rotary encodings that have a shape of their own; all others are that of the default, with other frequencies.
_ROPE_SHAPES = ("default", "axial", "proportional")


def hf_config(config: ModelConfig) -> PretrainedConfig:
    """The transformers config of the decoder. Raises InputError if its type is unknown or is not a causal language model."""
    try:
        data = _decoder(_plain(config.data))
        model_type = _known_type(data, own_code=any(part.get("auto_map") for part in parts(config.data)))
        data.pop("model_type", None)  # a class of configs has its own
        result: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(data)
        if model_type not in _CAUSAL:
            result = _inside(result, data)
    except InputError as error:
        raise InputError(f"{config.name}: {error}") from None
    except Exception as error:  # transformers validates with several exception types
        raise InputError(f"{config.name}: transformers rejects the config: {one_line(error)}") from error
    if not _decodes(result.model_type):
        raise InputError(f"{config.name}: model_type {model_type!r} is not a causal language model (it does not decode)")
    if _sees_later_tokens(result) and not sees_whole_prompt(config):
        raise InputError(f"{config.name}: its tokens see later ones (use_bidirectional_attention), so it does not decode")
    # Decoders of other families may have the field too, and leave it false; only models for masked tokens are encoders.
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(result, "is_decoder", None) is False:
        raise InputError(f"{config.name}: model_type {model_type!r} is encoder-only (its config has no is_decoder: true)")
    return result


def sees_whole_prompt(config: ModelConfig) -> bool:
    """Whether all tokens of a prompt see each other, those of images included (prefix LM)."""
    return config.data.get("model_type") in _PREFIX


def _sees_later_tokens(config: PretrainedConfig) -> bool:
    """Whether a text model is an encoder of a decoder's layers. Of Gemma 4, `vision` is of the tokens of an image alone."""
    return getattr(config, "use_bidirectional_attention", None) in (True, "all")


def make(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The model of a decoder's config. options: `dtype`, `attn_implementation` and others of transformers."""
    made: PreTrainedModel
    if config.model_type in _CAUSAL:
        made = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
        return made
    found = _text_class(config.model_type)
    assert found is not None, "the type of a decoder"
    made = (found if found.__name__.endswith("ForCausalLM") else TextDecoder)._from_config(config, **options)
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
        found = _text_class(config.model_type)
        assert found is not None, "the type of a text model"
        self.model = found(config)
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


def _decodes(model_type: str) -> bool:
    """Whether a type has a causal language model, or a text model that can have an LM head."""
    return model_type in _CAUSAL or _text_class(model_type) is not None


@cache
def _text_class(model_type: str) -> Any:
    """The class of a decoder that no mapping of transformers has, because only a wrapper uses it; None if there is none."""
    if model_type not in CONFIG_MAPPING:
        return None
    config = CONFIG_MAPPING[model_type]
    try:
        module = import_module(config.__module__.replace(".configuration_", ".modeling_"))
    except ImportError:  # a library for images or sound that is not installed
        return None
    of = [each for each in vars(module).values() if isinstance(each, type) and getattr(each, "config_class", None) is config]
    models = {each.__name__: each for each in of if not each.__name__.endswith("PreTrainedModel")}
    endings = ("ForCausalLM", "TextModel", *(["Model"] if model_type.endswith("_text") else []))
    return next((models[name] for ending in endings for name in models if name.endswith(ending)), None)


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
    if any(isinstance(value, dict) for value in made.values()):
        return made
    if made.setdefault("rope_type", chosen) not in _ROPE_SHAPES:
        made["rope_type"] = "default"
    return made


def _decoder(data: dict[str, Any]) -> dict[str, Any]:
    """The config of the decoder in a wrapper's config, else the config itself."""
    found = nested(data)
    if found is None:
        return data
    key, inner = found
    outer = data.get("model_type")
    if "model_type" not in inner and isinstance(outer, str) and outer in CONFIG_MAPPING:
        inner["model_type"] = _type_of_part(CONFIG_MAPPING[outer], key)
    if "tie_word_embeddings" not in inner:
        tied = [data["tie_word_embeddings"]] if "tie_word_embeddings" in data else _tied(outer) + _tied(inner.get("model_type"))
        inner |= {"tie_word_embeddings": all(tied)} if tied else {}
    made = _decoder(inner)
    known = made.get("model_type") in CONFIG_MAPPING
    return data if known and not _decodes(made["model_type"]) and outer in _CAUSAL else made


def _type_of_part(outer: Any, key: str) -> Any:
    """The type of a part of a wrapper that does not name it."""
    with suppress(Exception):  # classes of wrappers make their parts in ways of their own
        return getattr(outer(), key).model_type
    return None


def _tied(model_type: Any) -> list[bool]:
    """Whether a type ties embedding and LM head if its config does not say; empty if its class does not say, either."""
    tied = getattr(CONFIG_MAPPING[model_type], "tie_word_embeddings", None) if model_type in CONFIG_MAPPING else None
    return [] if tied is None else [tied]


def _inside(outer: PretrainedConfig, data: Mapping[str, Any]) -> PretrainedConfig:
    """The config of the text model of a wrapper, whose keys stand among its own (`data`)."""
    text: PretrainedConfig = outer.get_text_config(decoder=True)
    if any(key in data and getattr(text, key, data[key]) != data[key] for key in _OF_TEXT):
        text = CONFIG_MAPPING[text.model_type].from_dict(dict(data))  # its class dropped them
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
