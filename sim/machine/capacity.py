"""Memory of the device that a run needs: weights, and the KV cache of all sequences at their final context."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.formats import ELEMENT, WEIGHT, Formats, stored_bytes
from models.graph import ModelGraph, OpGraph
from sim.machine.kv_cache import KVLayout, layer_groups, state_bytes
from sim.mapping.tasks import MOST_TIERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that a run holds in memory. weights: those in each tier (`tiers`) are not among them."""

    weights: int
    kv: int
    tiers: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return self.weights + self.kv


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Bytes that a model holds in memory, whatever its sequences. layout: of the KV cache, without pages."""

    weights: int
    tiers: tuple[int, ...]
    layout: KVLayout

    def with_sequences(self, sequences: Iterable[tuple[int, int]]) -> Footprint:
        """The footprint with some sequences, as in `footprint`."""
        kv = sum(self.layout.held_in_all(context, context, 1) * count for context, count in sequences)
        return Footprint(weights=self.weights, kv=kv, tiers=self.tiers)


def footprint(
    model: ModelGraph, kept: OpGraph, formats: Formats, *, whole: bool, sequences: Iterable[tuple[int, int]],
    tier: npt.NDArray[np.int8] | None = None,
) -> Footprint:  # fmt: skip
    """Compute the bytes that a run holds in memory.

    kept: the ops that are simulated, bytes already in `formats`. whole: with embedding and LM head.
    sequences: for each group (final context, how many); a cache has no pages, and holds the tokens that later ones would see.
    tier: [op], the number of the tier where its weights are, -1 for the memory; None: all are there.
    """
    return holder(model, kept, formats, whole=whole, tier=tier).with_sequences(sequences)


def holder(
    model: ModelGraph, kept: OpGraph, formats: Formats, *, whole: bool, tier: npt.NDArray[np.int8] | None = None
) -> Holder:
    """The part of a footprint that does not depend on the sequences. Arguments as in `footprint`."""
    tiers = () if tier is None else tuple(_held(kept, tier == number) for number in range(MOST_TIERS))
    return Holder(
        weights=_weights(model, kept, formats, whole=whole) - sum(tiers), tiers=tiers,
        layout=KVLayout(1, layer_groups(kept), state_bytes(kept)),
    )  # fmt: skip


def _weights(model: ModelGraph, kept: OpGraph, formats: Formats, *, whole: bool) -> int:
    """Bytes of the weights of the ops that are simulated, including those that a single step does not read.

    A step reads all weights of its ops, but of a mixture of experts a few, and rows of the embeddings, whose tables take what
    the parameter count leaves; nothing, where the LM head is the same tensor.
    """
    held = _held(kept)
    if not whole:
        return held
    element = ELEMENT[model.dtype]
    tables = max(0, model.parameter_bytes - _held(model.step()))
    return held + stored_bytes(tables, element, formats.of_weights("embedding"))


def _held(ops: OpGraph, chosen: npt.NDArray[np.bool_] | None = None) -> int:
    """Bytes of all weights of ops but embeddings: all experts of a device, whether a step reads them or not.

    chosen: [op]; None: all.
    """
    read: list[int] = ops.costs(0)[WEIGHT].tolist()
    counted = [True] * len(ops.ops) if chosen is None else chosen.tolist()
    return sum(
        size if op.experts is None or op.experts.shares else len(op.experts.here) * op.experts.bytes
        for op, size, counts in zip(ops.ops, read, counted, strict=True)
        if counts and "embedding" not in op.kind
    )
