"""The `quantization_config` of a model's config: how its weights are stored on the hub.

| method               | weights                                                                                     |
| -------------------- | ------------------------------------------------------------------------------------------- |
| `mxfp4`              | experts in mxfp4                                                                            |
| `fp8`                | fp8, by blocks with a scale of 4 bytes, or with one scale for a tensor, which is not counted |
| `gptq`, `awq`        | int4 or int8 by groups, with zero points                                                    |
| `compressed-tensors` | one group of fp8, int8, int4, nvfp4 or mxfp4                                                |
| `modelopt`           | nvfp4 or fp8                                                                                |

Embedding, LM head and routers stay as captured, and so does attention if the config leaves out all of it. What cannot be
honored is reported, never dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from models.formats import Formats
from sim.base.quantities import show

#: Key of a model's config. A capture does not depend on it.
KEY = "quantization_config"

#: Keys of the modules that stay as they are, by method.
_EXCEPTIONS = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules")

#: Kinds that methods leave as they are, in 16 bits.
_KEPT = {"router": "bf16", "lm_head": "bf16", "embedding": "bf16"}

#: Modules that no format changes anyhow: vectors, and the kinds of `_KEPT`.
_UNCHANGED = re.compile(r"norm|lm_head|embed|router|(^|[.*])gate$|shared_expert_gate|bias")

_INTEGERS = {4: "int4", 8: "int8"}


@dataclass(frozen=True, slots=True)
class Quantization:
    """formats: those of weights, as written in `mapping.formats`; empty if they are not known. note: one line for reports."""

    formats: Mapping[str, Any]
    note: str


def quantization(config: Mapping[str, Any]) -> Quantization | None:
    """How a config says that weights are stored, None if it does not."""
    found = next(filter(None, (each.get(KEY) for each in _parts(config))), None)
    if not isinstance(found, Mapping):
        return None
    method = str(found.get("quant_method", found.get("quant_algo", "without a method")))[:100]
    formats = _formats(method, found)
    if formats is None:
        advice = "weights as captured; mapping.formats.weights says otherwise"
        return Quantization({}, f"{KEY} ({show(method)}) is not honored: {advice}")
    layers = next((n for each in _parts(config) if isinstance(n := each.get("num_hidden_layers"), int)), 0)
    left, attention = _exceptions(found, layers, experts_only=method == "mxfp4")
    weights = formats["weights"]
    if attention and isinstance(weights, dict) and "default" in weights:
        weights["attention"] = "bf16"
    text = ", ".join(f"{kind} {name}" for kind, name in weights.items())
    more = f"; {len(left)} of its exceptions, such as {show(left[0])}, are not" if left else ""
    return Quantization(formats, f"weights as its {KEY} says ({text}){more}")


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A config, and that of the decoder nested in it."""
    text = config.get("text_config")
    return [config, *([text] if isinstance(text, Mapping) else [])]


def _formats(method: str, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """`mapping.formats` of a method, None if it is not known."""
    if method == "mxfp4":
        return {"weights": {"experts": "mxfp4"}}
    made: dict[str, Any] | None = None
    if method == "fp8":
        block = found.get("weight_block_size")
        made = {"name": "fp8"}
        if isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block):
            made |= {"group": block[0] * block[1], "scale": 4}
    elif method in ("gptq", "awq"):
        zero = method == "gptq" or found.get("zero_point") is not False
        made = _integer(found.get("bits"), found.get("group_size"), zero=zero)
    elif method.startswith("modelopt"):
        made = {"NVFP4": {"name": "nvfp4"}, "FP8": {"name": "fp8"}}.get(str(found.get("quant_algo")))
    elif method == "compressed-tensors":
        made = _compressed(found.get("config_groups"))
    return None if made is None else {"weights": {"default": made.pop("name"), **_KEPT}, **made}


def _integer(bits: Any, group: Any, *, zero: bool) -> dict[str, Any] | None:
    """Integers by groups; a group of -1 is a row, whose scale is not counted."""
    if bits not in _INTEGERS or not isinstance(group, int):
        return None
    if group < 1:
        return {"name": _INTEGERS[bits], "scale": 0}
    return {"name": _INTEGERS[bits], "group": group, "scale": 2, "zero_points": zero}


def _compressed(groups: Any) -> dict[str, Any] | None:
    """The one group of `compressed-tensors`, None if there are several."""
    if not isinstance(groups, Mapping) or len(groups) != 1:
        return None
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    bits, size = weights.get("num_bits"), weights.get("group_size")
    if weights.get("type") == "float":
        names: dict[tuple[Any, Any], str] = {(8, None): "fp8", (4, 16): "nvfp4", (4, 32): "mxfp4"}
        name = names.get((bits, size))
        return None if name is None else {"name": name}
    return _integer(bits, -1 if size is None else size, zero=weights.get("symmetric") is False)


def _exceptions(found: Mapping[str, Any], layers: int, *, experts_only: bool) -> tuple[list[str], bool]:
    """Exceptions that are not honored, and whether all of attention is one."""
    names = [str(name)[:200] for key in _EXCEPTIONS for name in _list(found.get(key))]
    layers_of: dict[str, set[str]] = {}
    for name in names:
        layers_of.setdefault(re.sub(r"\d+", "*", name), set()).add(name)
    left: list[str] = []
    attention = False
    for pattern, each in layers_of.items():
        whole = not any(re.search(r"\d", name) for name in each) or len(each) >= layers > 0
        if _UNCHANGED.search(pattern):
            continue
        if whole and re.search(r"attn\*?$|attention\*?$", pattern):
            attention = True
        elif not (experts_only and "experts" not in pattern):
            left += sorted(each)
    return left, attention


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def as_formats(written: Mapping[str, Any], formats: Formats) -> Formats:
    """Formats as they are given, with those of weights that a config says."""
    return Formats.model_validate({**formats.model_dump(exclude_none=True, exclude_defaults=True), **written})
