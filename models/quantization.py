"""The `quantization_config` of a model's config: how its weights are stored on the hub, and what its products are of.

| method                                         | weights                                          | products              |
| ---------------------------------------------- | ------------------------------------------------ | --------------------- |
| `mxfp4`                                        | experts in mxfp4                                 | as captured           |
| `fp8`, `fbgemm_fp8`                            | fp8, by blocks with a scale of 4 bytes, or with  | fp8                   |
|                                                | one for a tensor or row, which is not counted    |                       |
| `gptq`, `awq`, `auto-round`                    | int4 or int8 by groups, with zero points         | as captured           |
| `bitsandbytes`                                 | 4 bits by 64 with a scale of 4 bytes (1 if these | as captured; int8     |
|                                                | are quantized, too), or int8                     | if weights are        |
| `compressed-tensors`, `modelopt`, `quark`      | by group of modules: fp8, int8, int4, nvfp4,     | that of activations,  |
|                                                | mxfp4 or mxfp8                                   | if they are quantized |

Scales of `bitsandbytes`: Dettmers, Pagnoni, Holtzman, Zettlemoyer, QLoRA (arXiv:2305.14314), section 3. Embedding, LM head and
routers stay as captured, and so do attention, experts or all others that the config leaves out. What cannot be honored is
reported, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.config import QUANTIZATION, parts, texts
from models.formats import ARITHMETIC, Formats
from models.modules import kinds_of
from sim.base.quantities import show

#: Keys of the modules that stay as they are, by method.
_EXCEPTIONS = (
    "modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "exclude", "llm_int8_skip_modules",
)  # fmt: skip

#: Kinds that methods leave as they are, in 16 bits.
_KEPT = {"router": "bf16", "lm_head": "bf16", "embedding": "bf16"}

#: Kinds that a config may store in formats of their own.
_KINDS = ("default", "attention", "experts")

_INTEGERS = {4: "int4", 8: "int8"}

#: Formats by type, bits and group, None: of any size.
_FLOATS: Mapping[tuple[Any, int | None], str] = {(8, None): "fp8", (8, 32): "mxfp8", (4, 16): "nvfp4", (4, 32): "mxfp4"}

_SHORT = {long: short for short, long in ARITHMETIC.items()}


@dataclass(frozen=True, slots=True)
class Quantization:
    """formats: as written in `mapping.formats`; empty if they are not known. more: what is not honored, and why."""

    formats: Mapping[str, Any]
    more: tuple[str, ...] = ()

    def without(self, key: str, *why: str) -> Quantization:
        """The same without one of the formats."""
        return Quantization({name: value for name, value in self.formats.items() if name != key}, (*self.more, *why))

    @property
    def note(self) -> str:
        """One line for reports."""
        if not self.formats:
            return "; ".join(self.more)
        said = [f"weights as its {QUANTIZATION[0]} says ({_table(self.formats['weights'])})"]
        if "arithmetic" in self.formats:
            said.append(f"products in the format of quantized activations ({_table(self.formats['arithmetic'])})")
        if "kv" in self.formats:
            said.append(f"KV cache {self.formats['kv']}")
        return "; ".join((*said, *self.more))


def _table(formats: Mapping[str, str]) -> str:
    return ", ".join(f"{kind} {name}" for kind, name in formats.items())


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a set of weights is stored.

    options: other keys of `mapping.formats` that it needs. arithmetic: the format of products by these weights, None: as
    captured.
    """

    weights: str
    options: Mapping[str, Any] = field(default_factory=dict)
    arithmetic: str | None = None


#: Schemes, each with the names of its modules; None: all that have no other.
Schemes = list[tuple[list[str] | None, Scheme]]


def quantization(config: Mapping[str, Any], dtype: str = "bfloat16") -> Quantization | None:
    """How a config says that weights are stored, None if it does not. dtype: that of all other products."""
    found = next((each[key] for each in parts(config) for key in QUANTIZATION if each.get(key)), None)
    if not isinstance(found, Mapping):
        return None
    method = str(found.get("quant_method", found.get("quant_algo", "without a method")))[:100]
    made = _of_method(method, found, parts(config)[-1], dtype)
    if made is None:
        advice = "weights as captured; mapping.formats.weights says otherwise"
        return Quantization({}, (f"{QUANTIZATION[0]} ({show(method)}) is not honored: {advice}",))
    return made


def _of_method(method: str, found: Mapping[str, Any], decoder: Mapping[str, Any], dtype: str) -> Quantization | None:
    """The formats of a method, None if they are not known, or cannot be written."""
    schemes = _schemes(method, found)
    if schemes is None:
        return None
    kinds, left = _by_kind(schemes, _exceptions(found), decoder)
    options = _options(kinds.values())
    if options is None or not any(kinds.values()):
        return None
    if method == "mxfp4":  # attention and the rest are left out by name, or not at all
        kinds, left = {"default": None, "attention": None, "experts": kinds["experts"]}, [n for n in left if "experts" in n]
    if (
        decoder.get("expert_dtype") or found.get("expert_dtype")
    ) == "fp4":  # of DeepSeek-V4, in blocks of 32 that share a scale
        kinds["experts"] = Scheme("mxfp4", {}, kinds["default"].arithmetic if kinds["default"] is not None else None)
    formats = {"weights": _weights(kinds), **options, **_arithmetic(kinds, dtype), **_kv(found)}
    try:
        as_formats(formats, Formats())
    except ValueError:  # such as a group of more numbers than a matrix has
        return None
    return Quantization(formats, (f"{len(left)} of its exceptions, such as {show(left[0])}, are not",) if left else ())


def _by_kind(
    schemes: Schemes, exceptions: list[str], decoder: Mapping[str, Any]
) -> tuple[dict[str, Scheme | None], list[str]]:  # fmt: skip
    """The scheme of each kind, None: as captured; and names of modules that have another than the rest of their kind."""
    general = next((scheme for names, scheme in schemes if names is None), None)
    of: dict[str, Scheme | None] = dict.fromkeys(_KINDS, general)
    left: list[str] = []
    named: list[tuple[list[str], Scheme | None]] = [(names, scheme) for names, scheme in schemes if names is not None]
    for names, scheme in [*named, (exceptions, None)]:
        kinds = kinds_of(names, decoder)
        left += kinds.left
        for kind in kinds.kinds:
            of[kind] = scheme
    return of, left


def _weights(kinds: Mapping[str, Scheme | None]) -> dict[str, str]:
    """`mapping.formats.weights`: kinds that differ from the default have keys of their own."""
    if kinds["default"] is None:  # all others are as captured
        return {kind: scheme.weights for kind, scheme in kinds.items() if scheme is not None}
    names = {kind: "bf16" if scheme is None else scheme.weights for kind, scheme in kinds.items()}
    default = names.pop("default")
    return {"default": default, **_KEPT, **{kind: name for kind, name in names.items() if name != default}}


def _arithmetic(kinds: Mapping[str, Scheme | None], dtype: str) -> dict[str, Any]:
    """`mapping.formats.arithmetic` of weights whose activations are quantized as well; nothing if there are none."""
    plain = _SHORT.get(dtype, dtype)
    names = {kind: plain if scheme is None else scheme.arithmetic or plain for kind, scheme in kinds.items()}
    if set(names.values()) == {plain}:
        return {}
    default = names.pop("default")
    others = {kind: name for kind, name in names.items() if name != default}
    return {"arithmetic": {"default": default, "router": plain, "lm_head": plain, **others}}


def _kv(found: Mapping[str, Any]) -> dict[str, str]:
    """`mapping.formats.kv`; nothing if the cache is not quantized."""
    scheme = found.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and scheme.get("num_bits") == 8:
        return {"kv": "fp8" if scheme.get("type") == "float" else "int8"}
    return {"kv": "fp8"} if str(found.get("kv_cache_quant_algo")) == "FP8" else {}


def _options(schemes: Iterable[Scheme | None]) -> dict[str, Any] | None:
    """Options of all schemes, None if they contradict each other: groups have one size in a run."""
    made: dict[str, Any] = {}
    for scheme in schemes:
        for key, value in {} if scheme is None else scheme.options.items():
            if made.setdefault(key, value) != value:
                return None
    return made


def _schemes(method: str, found: Mapping[str, Any]) -> Schemes | None:
    """The schemes of a method, None if it is not known."""
    one: Scheme | None = None
    if method == "mxfp4":
        one = Scheme("mxfp4")
    elif method in ("fp8", "fbgemm_fp8"):
        one = _fp8(found)
    elif method in ("gptq", "awq", "auto-round", "auto_round"):
        zero = found.get("zero_point") is not False if method == "awq" else method == "gptq" or found.get("sym") is False
        one = _integer(found.get("bits"), found.get("group_size"), zero=zero)
    elif method == "bitsandbytes":
        one = _bitsandbytes(found)
    elif method == "quark":
        one = _quark(found.get("global_quant_config"))
    elif method.startswith("modelopt"):
        return _modelopt(found)
    elif method == "compressed-tensors":
        return _groups(found.get("config_groups"))
    return None if one is None else [(None, one)]


def _fp8(found: Mapping[str, Any]) -> Scheme:
    """fp8 by blocks, or without counted scales."""
    block = found.get("weight_block_size")
    blocks = isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)
    options = {"group": block[0] * block[1], "scale": 4} if blocks and isinstance(block, list) else {}
    quantized = found.get("activation_scheme", "dynamic") in ("dynamic", "static")
    return Scheme("fp8", options, "fp8" if quantized else None)


def _integer(bits: Any, group: Any, *, zero: bool, arithmetic: str | None = None) -> Scheme | None:
    """Integers by groups; a group of -1 is a row, whose scale is not counted."""
    if not isinstance(bits, int) or bits not in _INTEGERS or not isinstance(group, int):
        return None
    if group < 1:
        return Scheme(_INTEGERS[bits], {"scale": 0}, arithmetic)
    return Scheme(_INTEGERS[bits], {"group": group, "scale": 2, "zero_points": zero}, arithmetic)


def _bitsandbytes(found: Mapping[str, Any]) -> Scheme:
    """Blocks of 4 bits, or rows of 8 bits whose products are of 8 bits as well."""
    if found.get("load_in_4bit") or found.get("_load_in_4bit"):
        return Scheme("int4", {"group": 64, "scale": 1 if found.get("bnb_4bit_use_double_quant") else 4})
    return Scheme("int8", {"scale": 0}, "int8")


def _quark(found: Any) -> Scheme | None:
    """One scheme for all weights."""
    weight, activation = (found.get(key) if isinstance(found, Mapping) else None for key in ("weight", "input_tensors"))
    dtypes = {"fp4": "mxfp4", "fp8_e4m3": "fp8", "int8": "int8"}
    name = dtypes.get(str(weight.get("dtype"))) if isinstance(weight, Mapping) else None
    of = str(activation.get("dtype")) if isinstance(activation, Mapping) else ""
    products = {"fp4": "fp4", "fp8_e4m3": "fp8", "int8": "int8"}
    return None if name is None else Scheme(name, {"scale": 0} if name == "int8" else {}, products.get(of))


#: Schemes of ModelOpt by algorithm.
_ALGORITHMS = {
    "FP8": Scheme("fp8", {}, "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN": Scheme("fp8", {}, "fp8"),
    "NVFP4": Scheme("nvfp4", {}, "fp4"),
    "NVFP4_AWQ": Scheme("nvfp4", {}, "fp4"),
    "W4A16_NVFP4": Scheme("nvfp4"),
    "W4A8_NVFP4_FP8": Scheme("nvfp4", {}, "fp8"),
    "MXFP8": Scheme("mxfp8", {}, "fp8"),
    "MXFP4": Scheme("mxfp4"),
    "W4A8_MXFP4_FP8": Scheme("mxfp4", {}, "fp8"),
}


def _modelopt(found: Mapping[str, Any]) -> Schemes | None:
    """Schemes by group, by module, or one for all."""
    layers = found.get("quantized_layers")
    if isinstance(layers, Mapping):
        names: dict[str, list[str]] = {}
        for name, each in layers.items():
            names.setdefault(str(each.get("quant_algo")) if isinstance(each, Mapping) else "", []).append(str(name))
        schemes: Schemes = [(of, _ALGORITHMS[algorithm]) for algorithm, of in names.items() if algorithm in _ALGORITHMS]
        return schemes if len(schemes) == len(names) else None
    if groups := _groups(found.get("config_groups")):
        return groups
    one = _ALGORITHMS.get(str(found.get("quant_algo")))
    return None if one is None else [(None, one)]


def _groups(groups: Any) -> Schemes | None:
    """Groups of modules, as `compressed-tensors` and ModelOpt write them; None if one of them is not known."""
    if not isinstance(groups, Mapping) or not groups:
        return None
    made: Schemes = []
    for group in groups.values():
        scheme = _of_group(group) if isinstance(group, Mapping) else None
        if scheme is None:
            return None
        named = [name for name in texts(group.get("targets")) if "." in name or name.startswith("re:")]
        made.append((named or None, scheme))  # other targets are classes, such as Linear
    return made


def _of_group(group: Mapping[str, Any]) -> Scheme | None:
    """The scheme of one group, None if it is not known."""
    weights, activations = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping):
        return None
    bits, size = weights.get("num_bits"), weights.get("group_size")
    if not isinstance(bits, int):
        return None
    arithmetic = None
    if isinstance(activations, Mapping):
        floats = activations.get("type") == "float"
        names = {8: "fp8" if floats else "int8", 4: "fp4" if floats else None}
        arithmetic = next((name for number, name in names.items() if activations.get("num_bits") == number), None)
    if weights.get("type") != "float":
        return _integer(bits, -1 if size is None else size, zero=weights.get("symmetric") is False, arithmetic=arithmetic)
    block = weights.get("block_structure")
    if bits == 8 and isinstance(block, list):
        return _fp8({"weight_block_size": block, "activation_scheme": "dynamic" if arithmetic else None})
    name = _FLOATS.get((bits, size) if isinstance(size, int) and size > 0 else (bits, None))
    return None if name is None else Scheme(name, {}, arithmetic)


def _exceptions(found: Mapping[str, Any]) -> list[str]:
    """Names of modules that stay as they are."""
    return [name[:200] for key in _EXCEPTIONS for name in texts(found.get(key))]


def as_formats(written: Mapping[str, Any], formats: Formats) -> Formats:
    """Formats as a scenario says them, and those of the config for all that it does not say."""
    said = formats.model_dump(exclude_none=True, exclude_defaults=True)
    chosen = {key: said[key] for key in ("arithmetic", "kv") if key in said}
    return Formats.model_validate({**said, **written, **chosen})
