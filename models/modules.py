"""Names of modules, as the `quantization_config` of a model lists them, and the kinds of weights that they stand for.

A name is a module (`model.layers.3.self_attn.q_proj`), a pattern (`model.layers.*`), or, after `re:`, a regular expression. It
is read by its words and never run as an expression: what a config says may not take time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Modules that no format changes anyhow (vectors; LM head, embedding and routers), or that do not take part in decode.
_UNCHANGED = re.compile(
    r"norm|lm_head|embed|router|(^|[.*])gate$|shared_expert_gate|bias|conv1d"
    r"|vis(ion|ual)|vit[._]|image|audio|patch|projector|aligner|mtp|nextn|eagle"
)

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)")

#: Names of single projections, and what each stands for.
_PROJECTION = re.compile(r"(?:^|[._])(\w+_proj|wq|wk|wv|wo|wqkv|w[123]|fc[12]|dense|c_attn|c_fc|c_proj|out|qkv)(?:[^\w]|$)")
_OF_ALTERNATIVES = re.compile(r"\(([\w|]+)\)_proj")

#: Parts of a block, and words of their modules; the first that fits.
_PARTS = {
    "shared": re.compile(r"shared_?expert"),
    "experts": re.compile(r"expert"),
    "attention": re.compile(r"attn|attention"),
    "mlp": re.compile(r"mlp|feed_forward|ffn|(gate|up|down)_proj|fc[12]"),
}

#: Sets of projections: a part is complete with one of each set.
_QKV = frozenset(("qkv_proj", "qkv", "wqkv", "c_attn", "query_key_value"))
_ATTENTION = (
    frozenset(("o_proj", "wo", "out_proj", "dense", "c_proj")),
    frozenset(("q_proj", "q_b_proj", "wq")) | _QKV,
    frozenset(("v_proj", "kv_b_proj", "wv")) | _QKV,
)
_FEED_FORWARD = (
    frozenset(("down_proj", "w2", "fc2", "c_proj")),
    frozenset(("up_proj", "gate_up_proj", "w3", "fc1", "c_fc")),
)


@dataclass(frozen=True, slots=True)
class Kinds:
    """kinds: of weights, as in `mapping.formats.weights`, all of whose modules are named. left: names of parts of others."""

    kinds: frozenset[str]
    left: tuple[str, ...]


def kinds_of(names: Iterable[str], config: Mapping[str, Any]) -> Kinds:
    """Kinds of weights that names of modules make up. config: that of the decoder.

    Kinds hold for all layers, so that names of some layers, or of some projections, are left.
    """
    layers = _layers(config)
    found: dict[str, dict[int | None, set[str]]] = {part: {} for part in _PARTS}
    of_part: dict[str, list[str]] = {part: [] for part in _PARTS}
    left: list[str] = []
    for name in names:
        text = _readable(name)
        at = _LAYER.search(text)
        layer = int(at[1]) if at else None
        if _UNCHANGED.search(text) or (layer is not None and layer >= layers["attention"] > 0):  # layers after the last: drafts
            continue
        part = next((part for part, word in _PARTS.items() if word.search(text)), None)
        if part is None:
            left.append(name)
            continue
        found[part].setdefault(layer, set()).update(_projections(text))
        of_part[part].append(name)
    whole = {part for part in _PARTS if _complete(part, found[part], layers[part])}
    kinds = whole & {"attention", "experts"}
    others = {part for part in ("mlp", "shared") if layers[part]}
    if others and others <= whole:
        kinds |= {"default"}
    elif others:
        whole -= others
    left += [name for part, of in of_part.items() if part not in whole and layers[part] for name in of]
    return Kinds(frozenset(kinds), tuple(left))


def _readable(name: str) -> str:
    """A name without the marks of patterns at its ends, and without those that escape a dot."""
    text = name.removeprefix("re:").replace("\\", "").lower()
    return re.sub(r"^[\^.*]+|(\.?[*$]+|\.weight)+$", "", text)


def _projections(text: str) -> set[str]:
    """Names of projections in a name, `all` if it stands for all of its part."""
    chosen = {f"{each}_proj" for group in _OF_ALTERNATIVES.findall(text) for each in group.split("|")}
    return chosen or set(_PROJECTION.findall(text)) or {"all"}


def _complete(part: str, named: Mapping[int | None, set[str]], layers: int) -> bool:
    """Whether all projections of a part are named, in all of its layers. named: projections by layer, None: in all layers."""
    needed = _ATTENTION if part == "attention" else _FEED_FORWARD
    everywhere = named.get(None, set())

    def complete(words: set[str]) -> bool:
        return "all" in words or all(each & words for each in needed)

    if complete(everywhere):
        return True
    return 0 < layers <= sum(complete(words | everywhere) for layer, words in named.items() if layer is not None)


def _layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Number of layers that have each part, 0 if none has. Dense layers of a mixture are those that its config lists."""
    layers = _count(config, "num_hidden_layers", "n_layer", "num_layers")
    experts = _count(config, "n_routed_experts", "num_experts", "num_local_experts")
    if not experts:
        return {"attention": layers, "mlp": max(layers, 1), "experts": 0, "shared": 0}
    listed = config.get("mlp_only_layers")
    dense = _count(config, "first_k_dense_replace") or (len(listed) if isinstance(listed, list) else 0)
    shared = _count(config, "n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size")
    mixtures = max(layers - dense, 1)
    return {"attention": layers, "mlp": dense, "experts": mixtures, "shared": mixtures if shared else 0}


def _count(config: Mapping[str, Any], *keys: str) -> int:
    return next((value for key in keys if isinstance(value := config.get(key), int) and value > 0), 0)
