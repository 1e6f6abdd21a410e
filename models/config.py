"""Find a model's config: a shipped name, a config.json, or a Hugging Face id. Nothing here imports torch or transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from sim.base.errors import InputError, nearest, unknown
from sim.base.quantities import show

#: Increase it whenever a capture of the same model may differ: stored graphs are then captured again.
CAPTURE_VERSION = 3

CONFIGS = Path(__file__).parent / "configs"

#: Contents of the cache of multi-head latent attention: see `models.latent`.
MLA_FORMS = ("latent", "expanded")

DTYPES = ("bfloat16", "float16", "float32")

#: The hub's own limit is 96 characters for both together.
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")

#: Largest file that is read; real configs have a few kilobytes.
MAX_BYTES = 2**20

#: A capture builds and runs every layer; larger numbers would take hours, and no existing model has them.
MAX_LAYERS = 10_000

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "n_heads")

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
        captured = {key: value for key, value in self.data.items() if key != "quantization_config"}
        return hashlib.sha256(json.dumps(captured, sort_keys=True).encode()).hexdigest()


def names() -> tuple[str, ...]:
    """The shipped models, in alphabetical order."""
    return tuple(sorted(path.stem for path in CONFIGS.glob("*.json")))


def notes(name: str) -> dict[str, Any]:
    """Notes of a shipped config: `_source`, and `_parameters` as published."""
    data = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return {key: value for key, value in data.items() if key.startswith("_")}


def resolve(config: str) -> ModelConfig:
    """Find the config that `model.config` names.

    In this order: a shipped name; a path to a config.json or to its folder; a Hugging Face id (`owner/name`).
    Raises InputError, in one line, for anything that is not the config of a causal language model.
    """
    if config in names():
        return _read(CONFIGS / f"{config}.json", config)
    path = Path(config).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # the text of an OSError repeats the whole path
        raise InputError(f"model config {show(config)} is not a usable path: {reason}") from error
    if is_folder:
        if not (path / "config.json").exists():
            raise InputError(f"{_where(path)}: the folder has no config.json")
        return _read(path / "config.json", path.resolve().name)
    if exists:
        return _read(path, path.parent.resolve().name if path.name == "config.json" else path.stem)
    if path.suffix == ".json" or config.startswith((".", "/", "~")):
        raise InputError(f"{_where(path)}: no such file")
    if _HUB_ID.fullmatch(config):
        try:
            # transformers takes seconds to import, so only this case imports it.
            hub = import_module("models.hub")
        except ImportError as error:
            raise InputError(
                f"model config {show(config)}: not a shipped name, not a file, and asking the Hugging Face hub needs "
                "transformers (pip install transformers)"
            ) from error
        return _checked(config, hub.fetch(config), config)
    raise InputError(f"unknown model config {show(config)}{nearest(config[:200], names())}; known: {', '.join(names())}")


def dtype_of(config: ModelConfig, dtype: str | None) -> str:
    """The dtype to run in: the one asked for, else the config's own, else float32 as in transformers.

    Weights that are quantized are computed with in 16 bits, if the config names no dtype.
    """
    other = "bfloat16" if config.data.get("quantization_config") else "float32"
    chosen = dtype or config.data.get("dtype") or config.data.get("torch_dtype") or other
    if chosen not in DTYPES:
        raise unknown("model dtype", str(chosen), DTYPES)
    return str(chosen)


def _where(path: Path) -> str:
    """A path as errors name it: in full, or shortened if it is very long or not printable."""
    text = str(path)
    return text if len(text) <= 200 and text.isprintable() else show(text)


def _read(path: Path, name: str) -> ModelConfig:
    where = _where(path)
    # A device may be endless, and opening a pipe waits for a writer.
    if not path.is_file():
        raise InputError(f"{where}: expected a config.json, found no regular file")
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
    if data.get("is_encoder_decoder"):
        raise InputError(
            f"{where}: {show(data['model_type'])} is an encoder-decoder; only causal (decoder-only) models are supported"
        )
    if architectures and not any(str(a).endswith(_DECODERS) for a in architectures) and not data.get("is_decoder"):
        raise InputError(
            f"{where}: {str(architectures[0])[:100]} is not a causal language model (encoder-only, or without a language head)"
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
