"""Layers that issue the same ops at the same costs: a capture runs one of each kind, and passes by the others.

Which layers are alike follows from a recording of all of them, with the kinds of their caches. Whether the costs of one hold
for all others at other points, too, is checked by recordings of all layers.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from models.cache import KV_STORE
from models.recording import KV_LOAD, Node, Recording

#: First of its kind, by layer.
Firsts = Mapping[int, int]


def firsts(recording: Recording, kinds: Sequence[Hashable]) -> dict[int, int]:
    """By layer, the first layer that has the same ops with the same costs, and the same kind. kinds: by layer, of its cache."""
    inside: dict[int, list[int]] = {}
    for i, node in enumerate(recording.nodes):
        if node.layer >= 0:
            inside.setdefault(node.layer, []).append(i)
    result, known = {}, dict[Hashable, int]()
    for layer, indices in sorted(inside.items()):
        place = {i: n for n, i in enumerate(indices)}
        ops = tuple(_facts(recording.nodes[i], place, recording.layers_path) for i in indices)
        result[layer] = known.setdefault((kinds[layer] if layer < len(kinds) else layer, ops), layer)
    return result | {layer: layer for layer in _read_by(recording, set(result.values()))}


def _read_by(recording: Recording, layers: set[int]) -> set[int]:
    """Layers from which some layers take more than what each hands on to the next: those whose KV cache they read."""
    roles: dict[int, set[str]] = {}
    for node in recording.nodes:
        roles.setdefault(node.layer, set()).add(node.role)
    reading = {layer for layer in layers if KV_LOAD in roles[layer] and KV_STORE not in roles[layer]}
    nodes = recording.nodes
    return {nodes[j].layer for node in nodes if node.layer in reading for j in node.inputs if nodes[j].layer >= 0}


def _facts(node: Node, place: Mapping[int, int], layers_path: str) -> Hashable:
    """Facts of a node that are the same in layers that are alike. place: of the nodes of its layer."""
    return (
        node.name, node.path.replace(f"{layers_path}.{node.layer}", "", 1), node.role, node.heads, node.hint, node.dtype,
        node.shape, node.costs, node.experts, tuple(place.get(i, -1) for i in node.inputs),
        tuple(tuple(place.get(i, -1) for i in source) for source in node.sources),
    )  # fmt: skip


@contextmanager
def passed_by(model: torch.nn.Module, recording: Recording, first: Firsts) -> Iterator[None]:
    """Let the model pass by layers that are not the first of their kind: they hand on what they get.

    What a layer returns beside its result (the tokens that its indexer chose) is handed on as the last one returned it.
    """
    layers: Any = model.get_submodule(recording.layers_path)
    passed = [layers[layer] for layer in first if first[layer] != layer]
    before = [vars(layer).get("forward") for layer in passed]
    beside: list[Any] = [None] * max((recording.hands_on or 0) - 1, 0)

    def keep(_module: Any, _args: Any, result: Any) -> None:
        beside[:] = result[1:] if isinstance(result, tuple) else ()

    hooks = [layers[layer].register_forward_hook(keep) for layer in first if first[layer] == layer]
    for layer in passed:
        layer.forward = _Pass(recording.hands_on or 0, beside)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, forward in zip(passed, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


class _Pass:
    """A layer's forward function that returns its input. length: of the tuple that it returns, 0 if it returns a tensor.

    beside: what is in the tuple after the input.
    """

    def __init__(self, length: int, beside: Sequence[Any]) -> None:
        self.length, self.beside = length, beside

    def __call__(self, *args: Any, **options: Any) -> Any:
        hidden = args[0] if args else options["hidden_states"]
        return (hidden, *self.beside) if self.length else hidden


def places(whole: Recording, short: Recording, first: Firsts) -> list[int]:
    """For each node of the whole recording, the number of the one like it in one without the layers that were passed by.

    Raises ValueError if they differ.
    """
    by_layer: dict[int, list[int]] = {}
    for i, node in enumerate(short.nodes):
        by_layer.setdefault(node.layer, []).append(i)
    at: dict[int, int] = {}
    result = []
    for node in whole.nodes:
        n = at.setdefault(node.layer, 0)
        theirs = by_layer.get(first.get(node.layer, -1), [])[n : n + 1]
        other = short.nodes[theirs[0]] if theirs else None
        if other is None or _issued(other) != _issued(node):
            raise ValueError("the layers that are left issue other ops")
        at[node.layer] = n + 1
        result += theirs
    if len(set(result)) != len(short.nodes):
        raise ValueError("the layers that are left issue more ops")
    return result


def _issued(node: Node) -> tuple[Any, ...]:
    return node.name, node.role, node.costs, node.shape
