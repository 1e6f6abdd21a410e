"""States of layers that keep one of a fixed size instead of a KV cache: Mamba, gated delta rule, short convolutions.

A step loads the whole state of each sequence and stores it again, however long the context is. It has two parts: the last
K - 1 inputs of a causal convolution of width K, and the recurrent part of a scan, such as a matrix of keys and values per
head. Both are counted in float32, in which the recurrences are computed, as llama.cpp keeps them (`R` and `S` buffers of
src/llama-memory-recurrent.cpp); `mapping.formats.state` says otherwise.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

#: Names of the op that loads the state of a layer onto the chip, and of the one that stores the next.
STATE_LOAD, STATE_STORE = "state_load", "state_store"

#: Bytes of an element of a state in memory.
STATE_ELEMENT = 4


@dataclass(frozen=True, slots=True)
class StateShapes:
    """Shape and dtype of the parts of a layer's state, for one sequence, by number of the state. states: how many."""

    conv: dict[int, tuple[tuple[int, ...], Any]]
    recurrent: dict[int, tuple[tuple[int, ...], Any]]
    states: int


def state_shapes(layers: Sequence[Any], beside: Sequence[Any] = (), exact: Collection[int] = ()) -> dict[int, StateShapes]:
    """By layer, what layers of a transformers cache hold after a step of one sequence; those without a state are left out.

    A convolution of width K needs K - 1 past inputs; transformers keeps K, but in layers `exact`, which keep what they need.
    beside: by layer, its state where the cache keeps it outside of its layers, else something empty.
    """
    if len(beside):
        parts_of = {i: state for i, state in enumerate(beside) if len(state)}
        return {i: StateShapes({}, {0: (tuple(state.shape), state.dtype)}, 1) for i, state in parts_of.items()}
    shapes = {}
    for number, layer in enumerate(layers):
        conv, recurrent = getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})
        parts = StateShapes(
            {i: (tuple(t.shape) if number in exact else _window(t.shape), t.dtype) for i, t in conv.items() if t is not None},
            {i: (tuple(t.shape), t.dtype) for i, t in recurrent.items() if t is not None},
            max(len(conv), len(recurrent)),
        )
        if parts.conv or parts.recurrent:
            shapes[number] = parts
    return shapes


def exact_windows(cache: Any, step: Callable[[], Any]) -> set[int]:
    """The layers that keep as many past inputs of a convolution as they need. step: a further step of one token.

    Their code joins past inputs and new ones itself, and hands the cache as many as it keeps; that of others hands it new ones.
    """
    found: set[int] = set()
    update = cache.update_conv_state

    def watched(conv_states: Any, layer_idx: int, *args: Any, **options: Any) -> Any:
        if conv_states.shape[-1] > 1:
            found.add(layer_idx)
        return update(conv_states, layer_idx, *args, **options)

    cache.update_conv_state = watched
    step()
    return found


def _window(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] - 1)
