"""Memory of the device that a run needs: weights, and the KV cache of all sequences at their final context."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from models.formats import ELEMENT, WEIGHT, Formats, is_matrix
from models.graph import ModelGraph, OpGraph
from sim.base.units import ceil_div
from sim.machine.kv_cache import KVLayout, layer_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that a run holds in memory."""

    weights: int
    kv: int

    @property
    def total(self) -> int:
        return self.weights + self.kv


def footprint(
    model: ModelGraph, kept: OpGraph, formats: Formats, *, whole: bool, sequences: Iterable[tuple[int, int]]
) -> Footprint:
    """Compute the bytes that a run holds in memory.

    kept: the ops that are simulated, bytes already in `formats`. whole: with embedding and LM head.
    sequences: for each group (final context, how many); a cache has no pages, and takes what its last decode step holds.
    """
    layout = KVLayout(1, layer_groups(kept))
    kv = sum(layout.held(context - 1, context, 1) * count for context, count in sequences)
    return Footprint(weights=_weights(model, kept.layers(), formats, whole=whole), kv=kv)


def _weights(model: ModelGraph, layers: int, formats: Formats, *, whole: bool) -> int:
    """Bytes of the weights of the first `layers` layers, including those that a single step does not read.

    A step reads one row of the embedding, and of a mixture of experts a few, so the parameter count decides. Layers
    count as alike (a first layer without experts would make the others a little larger); all of them are exact.
    """
    ops, element = model.step(), ELEMENT[model.dtype]
    read: list[int] = ops.costs(0)[WEIGHT].tolist()
    outside = sum(size for op, size in zip(ops.ops, read, strict=True) if op.layer < 0 and "embedding" not in op.kind)
    table = model.vocabulary * model.hidden * element
    if model.parameter_bytes - sum(read) >= table:  # else the LM head is the same tensor
        outside += table
    vectors = sum(size for op, size in zip(ops.ops, read, strict=True) if op.layer >= 0 and not is_matrix(ops, op))
    others = sum(size for op, size in zip(ops.ops, read, strict=True) if op.layer < 0 and not is_matrix(ops, op))
    inside = vectors + formats.weight_bytes(model.parameter_bytes - outside - vectors, element)
    held = ceil_div(inside * layers, model.layers)
    return held + (others + formats.weight_bytes(outside - others, element) if whole else 0)
