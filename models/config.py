"""Find a model's config: a shipped name, a config.json, or a Hugging Face id. Nothing here imports torch or transformers."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sim.base.errors import InputError, nearest, unknown
from sim.base.files import in_home, is_input, kind_of, shown
from sim.base.quantities import show

#: Increase it whenever a capture of the same model may differ: stored graphs are then captured again.
CAPTURE_VERSION = 5

CONFIGS = Path(__file__).parent / "configs"

#: Contents of the cache of multi-head latent attention: see `models.latent`.
MLA_FORMS = ("latent", "expanded")

DTYPES = ("bfloat16", "float16", "float32")

#: The hub's own limit is 96 characters for both together.
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")

_HUB_ADDRESS = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)")

#: Largest file that is read; configs have a few kilobytes, with a list of quantized modules a few megabytes.
MAX_BYTES = 2**24

#: A capture builds and runs every layer; larger numbers would take hours, and no existing model has them.
MAX_LAYERS = 10_000

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "n_heads")

#: Dtypes of stored weights, and no dtype at all.
_STORED = re.compile(r"auto|(torch\.)?(float8_\w+|u?int8)|")

#: Keys of the formats of stored weights. A capture does not depend on them.
QUANTIZATION = ("quantization_config", "compression_config")

#: Keys under which wrappers for images or sound have the config of their decoder.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")

#: Endings of the class names of models that decode.
_DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model's config as its config.json has it.

    name: for messages and traces. data: the contents, without keys that start with an underscore (those are notes).
    """

    name: str
    data: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the contents that a capture depends on, the same for any order of keys."""
        captured = {key: value for key, value in self.data.items() if key not in QUANTIZATION}
        return hashlib.sha256(json.dumps(captured, sort_keys=True).encode()).hexdigest()


def names() -> tuple[str, ...]:
    """The shipped models, in alphabetical order."""
    return _names(CONFIGS.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _names(_stamp: int) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in CONFIGS.glob("*.json")))


def notes(name: str) -> dict[str, Any]:
    """Notes of a shipped config: `_source`, `_parameters` as published, and `_confirmed` if its sizes are from other places."""
    data = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return {key: value for key, value in data.items() if key.startswith("_")}


def resolve(config: str, folder: Path | None = None) -> ModelConfig:
    """Find the config that `model.config` names.

    In this order: a shipped name; a path to a config.json or to its folder, relative to `folder` (default: the working
    directory); a Hugging Face id (`owner/name`), which is the shipped model if it ships.
    Raises InputError, in one line, for anything that is not the config of a causal language model.
    """
    if config in names():
        return _read(CONFIGS / f"{config}.json", config)
    path = (folder or Path()) / in_home(config)
    found = kind_of(path)
    if found == "folder":
        if kind_of(path / "config.json") is None:
            raise InputError(f"{shown(path)}: the folder has no config.json")
        return _read(path / "config.json", _folder_name(path))
    if found is not None:
        return _read(path, _folder_name(path.parent) if path.name == "config.json" else path.stem)
    if path.suffix == ".json" or config.startswith((".", "/", "~")):
        raise InputError(f"{shown(path)}: no such file")
    if _HUB_ID.fullmatch(config):
        shipped = hub_ids().get(config.lower())
        return resolve(shipped) if shipped is not None else _from_hub(config)
    raise InputError(
        f"unknown model config {show(config)}{nearest(config[:200], names())}; known: {', '.join(names())}; "
        "others by the path of their config.json, or by their id on the Hugging Face hub (owner/name)"
    )


def _folder_name(path: Path) -> str:
    return Path(os.path.realpath(path)).name


@cache
def hub_ids() -> dict[str, str]:
    """The shipped models by their Hugging Face ids, in lower case; `_same` in a config lists those of the same sizes."""
    found = {}
    for name in names():
        made = notes(name)
        for text in (made["_source"], *made.get("_same", ())):
            if match := _HUB_ADDRESS.match(text):
                found[match[1].lower()] = name
    return found


def _from_hub(config: str) -> ModelConfig:
    """The config of a Hugging Face id. Raises InputError if it is not available; the error names shipped models like it."""
    about = f"model config {show(config)}: not a shipped name, not a file"
    try:
        # Only this case imports the hub's client, which takes a second.
        hub = import_module("models.hub")
    except ImportError as error:
        raise InputError(
            f"{about}, and asking the Hugging Face hub needs huggingface_hub (pip install huggingface-hub)"
        ) from error
    try:
        path: Path = hub.fetch(config)
    except InputError as error:
        near = get_close_matches(config.rpartition("/")[2].lower(), names(), n=3, cutoff=0.5)
        shipped = f"; near it ship {', '.join(near)}" if near else "; `sim list models` shows what ships"
        raise InputError(f"{about}, {error}{shipped}") from error
    return _read(path, config)


def nested(data: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Key and config of the decoder that a wrapper's config contains, None if it has none."""
    return next(((key, data[key]) for key in _NESTED if isinstance(data.get(key), dict) and data[key]), None)


def parts(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A config, and those of the decoder nested in it, the outermost first."""
    found = [data]
    while (inside := nested(found[-1])) is not None:
        found.append(inside[1])
    return found


def texts(value: Any) -> list[str]:
    """The texts of a list, none if it is no list."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def dtype_of(config: ModelConfig, dtype: str | None) -> str:
    """The dtype to run in: the one asked for, else the config's own, else bfloat16.

    transformers takes that of the checkpoint where the config names none, and checkpoints are in bfloat16.
    """
    chosen = dtype or stated_dtype(config) or DTYPES[0]
    if chosen not in DTYPES:
        raise unknown("model dtype", chosen, DTYPES)
    return chosen


def stated_dtype(config: ModelConfig) -> str | None:
    """The dtype that the config names for its decoder, None if there is none, or only one of stored weights."""
    for part in reversed(parts(config.data)):
        for key in ("dtype", "torch_dtype"):
            value = part.get(key)
            if isinstance(value, str) and not _STORED.fullmatch(value):
                return value.removeprefix("torch.")
    return None


def _read(path: Path, name: str) -> ModelConfig:
    is_input(path)
    # A device may be endless, and opening a pipe waits for a writer.
    if kind_of(path) != "file":
        raise InputError(f"{shown(path)}: expected a config.json, found no regular file")
    there = path.stat()
    return _parsed(path, name, (there.st_mtime_ns, there.st_size, there.st_ino))


@lru_cache(maxsize=64)
def _parsed(path: Path, name: str, _stamp: tuple[int, ...]) -> ModelConfig:
    where = shown(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{where}: larger than {MAX_BYTES} bytes")
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte {error.start}: {error.reason})") from error
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}:{error.lineno}:{error.colno}: broken JSON: {error.msg}") from error
    except ValueError as error:  # Python's own limit on the digits of a number
        raise InputError(f"{where}: broken JSON: a number of absurd length") from error
    except RecursionError as error:
        raise InputError(f"{where}: broken JSON: nested too deeply") from error
    return _checked(where, data, name)


def _checked(where: str, data: Any, name: str) -> ModelConfig:
    """Check everything that can be checked without transformers. Raises InputError."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(data).__name__}")
    if not isinstance(data.get("model_type"), str):
        near = nearest("model_type", data) if "model_type" not in data else ""
        raise InputError(f"{where}: no model_type{near}; expected the config.json of a Hugging Face model")
    architectures = data.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(each, str) for each in architectures):
        raise InputError(f"{where}: architectures: expected a list of class names, found {show(data['architectures'])}")
    if data.get("is_encoder_decoder"):
        raise InputError(
            f"{where}: {show(data['model_type'])} is an encoder-decoder; only causal (decoder-only) models are supported"
        )
    decodes = any(each.endswith(_DECODERS) for each in architectures) or data.get("is_decoder") or nested(data)
    if architectures and not decodes:
        raise InputError(
            f"{where}: {architectures[0][:100]} is not a causal language model (encoder-only, or without a language head)"
        )
    for part in (data, *(value for value in data.values() if isinstance(value, dict))):
        _check_counts(where, part)
    return ModelConfig(name=name, data={k: v for k, v in data.items() if not k.startswith("_")})


def _check_counts(where: str, data: Mapping[str, Any]) -> None:
    """Check the numbers of layers and heads, in a config or in one nested in it, such as `text_config`."""
    for key in (*_LAYERS, *_HEADS):
        count, most = data.get(key), MAX_LAYERS if key in _LAYERS else None
        if isinstance(count, (int, float)) and not isinstance(count, bool) and not 1 <= count <= (most or count):
            wanted = f"expected 1 to {most}" if most else "expected at least 1"
            raise InputError(f"{where}: {key}: {wanted}, found {show(count)}")
