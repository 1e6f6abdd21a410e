"""Selection of the first layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.op import Op
from sim.base.errors import InputError


def select(ops: Sequence[Op], layers: int | None = None, scope: str = "model") -> tuple[Op, ...]:
    """Keep the first `layers` layers (None: all); with scope `block`, only layers.

    An op that read the last layer's result then reads the same op of the last kept layer, as in a model whose config has
    that many layers. Raises InputError for more layers than there are.
    """
    total = 1 + max((op.layer for op in ops), default=-1)
    layers = total if layers is None else layers
    if not 1 <= layers <= total:
        raise InputError(f"layers: expected 1 to {total} (the model has {total} layers), found {layers}")
    last_layer = {_role(op): i for i, op in enumerate(ops) if op.layer == layers - 1}
    left_out = _left_out(ops, layers, scope)
    new_index: dict[int, int] = {}
    kept: list[Op] = []
    for i, op in enumerate(ops):
        if i in left_out:
            continue
        sources = (_in_place_of(ops, j, layers, last_layer) for j in op.inputs)
        new_index[i] = len(kept)
        # With scope block, sources outside of layers are left out; their results are available from the start.
        kept.append(replace(op, inputs=tuple(sorted({new_index[j] for j in sources if j in new_index}))))
    return tuple(kept)


def _in_place_of(ops: Sequence[Op], source: int, layers: int, last_layer: dict[tuple[str, str, str], int]) -> int:
    """The op to read instead of `source`: itself, or if its layer is left out the same op of the last layer that is kept."""
    op = ops[source]
    if op.layer < layers:
        return source
    if _role(op) not in last_layer:
        raise InputError(
            f"layers: layer {layers - 1} has no {op.kind!r} to replace that of layer {op.layer}; "
            f"use all {1 + max(op.layer for op in ops)} layers"
        )
    return last_layer[_role(op)]


def _left_out(ops: Sequence[Op], layers: int, scope: str) -> set[int]:
    """Indices of ops of the other layers, and of ops that only these use (a mask for a kind of layer that is left out)."""
    users: list[list[int]] = [[] for _ in ops]
    for i, op in enumerate(ops):
        for j in op.inputs:
            users[j].append(i)
    result: set[int] = set()
    for i in reversed(range(len(ops))):  # users come after what they use
        op = ops[i]
        outside = op.layer < 0 and (scope == "block" or (bool(users[i]) and result.issuperset(users[i])))
        if op.layer >= layers or outside:
            result.add(i)
    return result


def _role(op: Op) -> tuple[str, str, str]:
    """Kind, part and path of an op, the same in every layer."""
    return op.kind, op.part, op.path.replace(f".{op.layer}.", ".*.", 1).removesuffix(f".{op.layer}")
