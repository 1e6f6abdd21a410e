"""Memory of the device that a run needs: weights, and the KV cache of all sequences at their final context."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.formats import ELEMENT, WEIGHT, Formats, stored_bytes
from models.graph import ModelGraph, OpGraph
from sim.machine.kv_cache import KVLayout, layer_groups, state_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that a run holds in memory. weights: those in the memory of the host (`host`) are not among them."""

    weights: int
    kv: int
    host: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Bytes that a model holds in memory, whatever its sequences. layout: of the KV cache, without pages."""

    weights: int
    host: int
    layout: KVLayout

    def with_sequences(self, sequences: Iterable[tuple[int, int]]) -> Footprint:
        """The footprint with some sequences, as in `footprint`."""
        kv = sum(self.layout.held_in_all(context, context, 1) * count for context, count in sequences)
        return Footprint(weights=self.weights, kv=kv, host=self.host)


def footprint(
    model: ModelGraph, kept: OpGraph, formats: Formats, *, whole: bool, sequences: Iterable[tuple[int, int]],
    hosted: npt.NDArray[np.bool_] | None = None,
) -> Footprint:  # fmt: skip
    """Compute the bytes that a run holds in memory.

    kept: the ops that are simulated, bytes already in `formats`. whole: with embedding and LM head.
    sequences: for each group (final context, how many); a cache has no pages, and holds the tokens that later ones would see.
    hosted: [op], whether its weights are in the memory of the host; None: none are.
    """
    return holder(model, kept, formats, whole=whole, hosted=hosted).with_sequences(sequences)


def holder(
    model: ModelGraph, kept: OpGraph, formats: Formats, *, whole: bool, hosted: npt.NDArray[np.bool_] | None = None
) -> Holder:
    """The part of a footprint that does not depend on the sequences. Arguments as in `footprint`."""
    host = 0 if hosted is None else _held(kept, hosted)
    return Holder(
        weights=_weights(model, kept, formats, whole=whole) - host, host=host,
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
