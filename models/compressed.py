"""Compressed caches: a row stands for a window of tokens, and is made when the last of them comes (DeepSeek-V4).

A layer keeps, beside the KV cache of a sliding window, one row for each m tokens (m = `compress_rate`), which attention reads
together with the window; what it makes of each token (a value and a gate) waits in a buffer until the window of m is whole:

| step                     | the buffer                      | the compressed rows                        |
| ------------------------ | ------------------------------- | ------------------------------------------ |
| any                      | gets a row for each new token   | all are read, or those an indexer chooses  |
| ends a window            | its N mod m rows are read       | get a row for each window that ends        |

An indexer has such a buffer and such rows of its own. Engines keep them in place, too: in `inference/model.py` of the
checkpoint the buffer is `kv_state` and `score_state`, for a window of m tokens, and for two where windows overlap.

transformers joins the rows of the window with the compressed ones by a copy. Here both are in one buffer, so that attention
reads them where they are. As rows cost the same wherever they are, those that are not chosen stand in front:

    compressed rows | rows of the window | new ones | new compressed rows
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, PretrainedConfig

from models.attention import ASIDE, CHOSEN_BY, role
from models.cache import KV_STORE, Allocate, AppendLayer

#: The entry of a layer's rows that attention reads; others are of its indexer.
_READ = "compressor"


def is_compressed(layer: Any) -> bool:
    """Whether a layer of a cache of transformers keeps compressed rows."""
    return hasattr(layer, "store_compression_weights")


def rates(layers: Sequence[Any]) -> list[int]:
    """By layer of a cache, the tokens that a compressed row stands for; 0 if it keeps none."""
    return [int(layer.compress_rate) if is_compressed(layer) else 0 for layer in layers]


def compressed_layers(config: PretrainedConfig, context: int, allocate: Allocate) -> dict[int, AppendLayer]:
    """The caches of the layers that keep compressed rows, by layer, with `context` tokens already in them."""
    layers: list[Any] = DynamicCache(config=config).layers
    return {
        i: CompressedAppendLayer(i, context, layers[i].sliding_window, rate, allocate)
        for i, rate in enumerate(rates(layers))
        if rate
    }


class CompressedAppendLayer(AppendLayer):
    """The cache of a layer with compressed rows, with `context` tokens already in it."""

    def __init__(self, index: int, context: int, window: int, rate: int, allocate: Allocate) -> None:
        super().__init__(index, context, window, allocate)
        self.compress_rate = rate
        self.rows = context // rate  # before the step
        self.closed = 0  # windows that the step ends
        self.chosen: torch.Tensor | None = None  # [B, Q, K], the rows that an indexer has chosen
        self.chooses = False  # an indexer is about to
        self._chunks: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new rows [B, KV, Q, D], which are keys and values at once; returns those of the window and them."""
        if value_states is not key_states:
            raise NotImplementedError("keys and values of a compressed cache that are not the same")
        new = key_states.shape[-2]
        self.closed = (self.context + new) // self.compress_rate - self.rows
        with role(ASIDE):
            past = self.rows + self.past
            shape = (*key_states.shape[:-2], past + new + self.closed, key_states.shape[-1])
            self.keys = self.values = self.allocate(self.index, shape, past, key_states)
        with role(KV_STORE):
            self.keys.narrow(-2, past, new).copy_(key_states)
        seen = self.keys.narrow(-2, self.rows, self.past + new)
        return seen, seen

    def store_compression_weights(
        self, name: str, kv: torch.Tensor, gate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Append what is made of new tokens [B, Q, D] to the buffers; returns that of whole windows, and where they begin."""
        waiting, new = self.context % self.compress_rate, kv.shape[1]
        whole = self.closed * self.compress_rate
        chunks = []
        for made in (kv, gate):
            with role(ASIDE):
                buffer = self.allocate(self.index, (made.shape[0], waiting + new, made.shape[-1]), waiting, made)
            with role(KV_STORE):
                buffer.narrow(1, waiting, new).copy_(made)
            chunks.append(buffer[:, :whole])
        return chunks[0], chunks[1], self.rows * self.compress_rate

    def update_overlap_state(
        self, name: str, chunk_kv: torch.Tensor, chunk_gate: torch.Tensor, head_dim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the last window [B, C, m, D] for the next one, which overlaps it; returns what is kept of the one before."""
        before = []
        for made in (chunk_kv[:, -1, :, :head_dim], chunk_gate[:, -1, :, :head_dim]):
            with role(ASIDE):
                kept = self.allocate(self.index, (made.shape[0], 2 * made.shape[1], head_dim), made.shape[1], made)
            with role(KV_STORE):
                kept.narrow(1, made.shape[1], made.shape[1]).copy_(made)
            before.append(kept[:, : made.shape[1]])
        return before[0], before[1]

    def update_compressor_states(self, name: str, compressed: torch.Tensor) -> torch.Tensor:
        """Append new rows [B, C, D]; returns a tensor in the shape of all [B, rows, D]."""
        if name == _READ:
            assert self.keys is not None
            buffer = self.keys.flatten(0, 1)  # [B, all rows, D]
            if self.closed:
                with role(KV_STORE):
                    buffer[:, -self.closed :].copy_(compressed)
            return buffer[:, buffer.shape[1] - self.rows - self.closed :]
        with role(ASIDE):
            shape = (compressed.shape[0], self.rows + self.closed, compressed.shape[-1])
            kept = self.allocate(self.index, shape, self.rows, compressed)
        if self.closed:
            with role(KV_STORE):
                kept.narrow(1, self.rows, self.closed).copy_(compressed)
        self.chooses = True
        return kept

    def attended(self) -> torch.Tensor:
        """The rows that attention reads: all, or the chosen ones, those of the window, and new ones."""
        assert self.keys is not None
        if self.chosen is None:
            return self.keys
        before = self.rows - (self.chosen.shape[-1] - self.closed)  # compressed rows that no query has chosen
        return self.keys[..., before:, :]


class JoinedRows(TorchFunctionMode):
    """Attention reads the rows of a window and compressed ones where they are: their concatenation is no copy.

    layers: of the cache.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self._layers = [layer for layer in layers if isinstance(layer, CompressedAppendLayer)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "cat" and (layer := self._layer_of(args[0])) is not None:
            joined = layer.attended()
            if layer.chosen is not None:
                vars(joined)[CHOSEN_BY] = layer.chosen
            return joined
        out = func(*args, **(kwargs or {}))
        if name == "topk":
            for layer in self._layers:
                if layer.chooses:
                    layer.chosen, layer.chooses = out.indices, False
        return out

    def _layer_of(self, tensors: Sequence[torch.Tensor]) -> CompressedAppendLayer | None:
        """The layer whose rows some tensors are."""
        held = {each.untyped_storage()._cdata for each in tensors}
        of = (layer for layer in self._layers if layer.keys is not None and {layer.keys.untyped_storage()._cdata} == held)
        return next(of, None)
