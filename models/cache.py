"""A KV cache as inference engines keep it: preallocated buffers to which each step appends its rows.

transformers' own dynamic cache copies every cached row each step, and would charge the model for it.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from models.attention import ASIDE, role
from models.latent import Expand
from models.states import STATE_STORE
from sim.base.errors import InputError

#: Allocates the buffer of one layer: (layer, shape with past and new rows, number of past rows, like) -> tensor.
Allocate = Callable[[int, tuple[int, ...], int, torch.Tensor], torch.Tensor]

#: The role of the append; its two copies, of the keys and then of the values, become one op.
KV_STORE = "kv_store"


class AppendLayer(DynamicLayer):
    """The cache of one layer, with `context` tokens already in it.

    A layer with a window W holds the last min(context, W - 1) of them: with the new token that is what a query sees.
    kv_heads: how many there are, if the family repeats each for the heads that share it before it appends them (Falcon 40B);
    engines keep one of them.
    """

    def __init__(
        self,
        index: int,
        context: int,
        window: int | None,
        allocate: Allocate,
        expand: Expand | None = None,
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.kv_heads = kv_heads
        self.index, self.context, self.window, self.allocate, self.expand = index, context, window, allocate, expand
        self.past = context if window is None else min(context, window - 1)
        self.is_sliding = window is not None
        self.keys = self.values = torch.empty(0, device="meta")  # until the step writes them [B, KV, past + Q, D]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new rows [B, KV, Q, D]; returns all rows [B, KV, past + Q, D] of keys and of values.

        With an expanded cache the arguments are latents; their expansion is appended and returned.
        """
        if self.keys is not None and self.keys.numel():
            raise NotImplementedError("one layer of its cache is written twice in a step, which is not supported")
        if self.expand is not None:
            key_states, value_states = self.expand(key_states, value_states)
        if self.kv_heads is not None and key_states.shape[1] > self.kv_heads:
            group = key_states.shape[1] // self.kv_heads
            key_states, value_states = key_states[:, ::group], value_states[:, ::group]
        if value_states is key_states:  # rows that are both are kept once
            self.keys = self.values = self._kept(key_states)
        else:
            self.keys, self.values = (self._kept(rows) for rows in (key_states, value_states))
        return self.keys, self.values

    def _kept(self, rows: torch.Tensor) -> torch.Tensor:
        """A buffer with the past rows, and with new ones [B, KV, Q, D] appended."""
        new = rows.shape[-2]
        with role(ASIDE):
            buffer = self.allocate(self.index, (*rows.shape[:-2], self.past + new, rows.shape[-1]), self.past, rows)
        with role(KV_STORE):
            buffer.narrow(-2, self.past, new).copy_(rows)
        return buffer

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that the step sees, and the position of the first."""
        return self.past + query_length, self.context - self.past

    def get_seq_length(self) -> int:
        """Number of tokens before the step."""
        return self.context


class IndexedAppendLayer(AppendLayer):
    """The cache of a layer whose indexer keeps a key of its own for each token, and chooses tokens by them."""

    index_keys: torch.Tensor | None = None  # [B, past + Q, D]

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Append the keys [B, Q, D] of new tokens; returns all [B, past + Q, D]."""
        if self.index_keys is not None:
            raise NotImplementedError("the indexer of a layer writes its cache twice in a step, which is not supported")
        new = indexer_key_states.shape[1]
        with role(ASIDE):
            shape = (indexer_key_states.shape[0], self.past + new, indexer_key_states.shape[-1])
            self.index_keys = self.allocate(self.index, shape, self.past, indexer_key_states)
        with role(KV_STORE):
            self.index_keys.narrow(1, self.past, new).copy_(indexer_key_states)
        return self.index_keys


class BlockIndexedAppendLayer(IndexedAppendLayer):
    """The cache of a layer whose indexer chooses blocks of tokens."""

    def update_index(self, idx_k: torch.Tensor) -> torch.Tensor:
        """Append the keys [B, 1, Q, D] of new tokens; returns all [B, 1, past + Q, D]."""
        return self.update_indexer(idx_k.squeeze(1)).unsqueeze(1)


class StateLayer(LinearAttentionLayer):
    """The state of one layer as a step finds it; the step replaces all of it.

    conv, recurrent: by number of the state, its window of past inputs [B, C, K - 1] and its recurrent part.
    """

    def __init__(self, conv: Mapping[int, torch.Tensor], recurrent: Mapping[int, torch.Tensor], states: int) -> None:
        super().__init__(number_of_states=states)
        self.conv_states: dict[int, torch.Tensor] = dict(conv)  # type: ignore[assignment]  # none is missing here
        self.recurrent_states: dict[int, torch.Tensor] = dict(recurrent)  # type: ignore[assignment]
        self.has_previous_state = dict.fromkeys(range(states), True)
        self.is_conv_states_initialized = {i: i in conv for i in range(states)}
        self.is_recurrent_states_initialized = {i: i in recurrent for i in range(states)}
        for i, window in conv.items():
            self.conv_kernel_size[i] = window.shape[-1] + 1

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> torch.Tensor:
        """Append new inputs [B, C, Q] and keep the last; returns the past and the new ones."""
        window = self.conv_states[state_idx]
        full = torch.cat([window, conv_states], dim=-1)
        with role(STATE_STORE):
            window.copy_(full[..., -window.shape[-1] :])
        return full

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any) -> torch.Tensor:
        """Replace the recurrent part; returns the new one."""
        with role(STATE_STORE):
            self.recurrent_states[state_idx].copy_(recurrent_states)
        return recurrent_states


class StateAppendLayer(StateLayer, AppendLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc, override]
    """The cache of a layer that keeps a state and attends to a KV cache.

    transformers combines them so, too, and knows by the class that the layer attends, when it makes masks.
    """

    def __init__(self, state: StateLayer, rows: AppendLayer) -> None:
        self.__dict__.update({**state.__dict__, **rows.__dict__})


class OwnStates:
    """Access to states by the names that MiniMax has for it; a mixin of its own class of cache."""

    layers: list[Any]

    def __len__(self) -> int:
        return len(self.layers)

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        """The state of a layer."""
        layer = self.layers[layer_idx]
        return layer.recurrent_states[0] if isinstance(layer, StateLayer) else None

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        """Replace the state of a layer."""
        self.layers[layer_idx].update_recurrent_state(linear_cache)


def own_cache(model: torch.nn.Module) -> type[DynamicCache] | None:
    """The class of cache that the module of a model defines for states of its own, if it does."""
    defined = vars(sys.modules[type(model).__module__]).values()
    found = [each for each in defined if isinstance(each, type) and hasattr(each, "get_linear_cache")]
    return found[0] if found else None


def append_cache(
    config: PretrainedConfig,
    context: int,
    allocate: Allocate,
    expand: Mapping[int, Expand] | None = None,
    states: Mapping[int, StateLayer] | None = None,
    own: type[DynamicCache] | None = None,
    made: Mapping[int, AppendLayer] | None = None,
) -> DynamicCache:
    """The cache for one step after `context` tokens, with each layer's kind and window as transformers reads the config.

    expand: by layer, the function that expands latents to rows of the cache. states: the states of layers that keep one.
    own: the class of cache that the model insists on. made: by layer, caches of other kinds.
    Raises InputError for a model with a cache of another kind.
    """
    cache = DynamicCache(config=config)
    repeated = getattr(config, "num_kv_heads", None) if getattr(config, "new_decoder_architecture", False) else None
    images = getattr(config, "cross_attention_layers", None) or ()  # layers that attend to an image alone, skipped without one
    for i, layer in enumerate(cache.layers):
        if i in images:
            continue
        if states and i in states:
            cache.layers[i] = states[i]
            if isinstance(layer, DynamicLayer):
                window = getattr(layer, "sliding_window", None)
                cache.layers[i] = StateAppendLayer(states[i], AppendLayer(i, context, window, allocate))
        elif made and i in made:
            cache.layers[i] = made[i]
        elif type(layer) is DynamicLayer:
            cache.layers[i] = AppendLayer(i, context, None, allocate, (expand or {}).get(i), repeated)
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[i] = AppendLayer(i, context, layer.sliding_window, allocate)
        elif type(layer) is DynamicIndexedLayer:
            cache.layers[i] = IndexedAppendLayer(i, context, None, allocate, (expand or {}).get(i))
        elif isinstance(layer, DynamicLayer) and hasattr(layer, "update_index"):
            cache.layers[i] = BlockIndexedAppendLayer(i, context, None, allocate)
        elif type(layer).__name__ != "DummyLayer":  # a dummy shares the cache of another layer
            raise InputError(
                f"model_type {config.model_type!r}: layer {i} keeps a cache of another kind ({type(layer).__name__}); "
                "only KV caches, and states of a fixed size, can be captured"
            )
    if own is not None:
        kept: Any = type(own.__name__, (OwnStates, own), {})()
        kept.layers, kept.layer_class_to_replicate = cache.layers, None
        return kept  # type: ignore[no-any-return]
    return cache


def windows(config: PretrainedConfig) -> list[int]:
    """The attention windows of the model's layers, distinct and ascending."""
    layers = DynamicCache(config=config).layers
    return sorted({layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)})
