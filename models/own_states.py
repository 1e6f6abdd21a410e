"""States that a model keeps outside of the cache of transformers.

| they are in                                         | such as        |
| --------------------------------------------------- | -------------- |
| attributes of modules                               | RecurrentGemma |
| tensors by layer, `rnn_state` of the argument       | xLSTM          |
| `cache_params`                                      |                |

A first step of the model leaves them there, or returns them: so they are found without a list of families.
"""

# torch and transformers are only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from models.attention import role
from models.states import STATE_STORE

#: Shape, of one sequence, and dtype of a tensor.
Part = tuple[tuple[int, ...], torch.dtype]

#: Tensors of states for a step, by layer.
Tensors = Mapping[int, Sequence[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class OwnStates:
    """States of a model by layer. argument: of the model's call that takes them; empty if they are attributes of modules.

    holders: of attributes, the path of the module and the name, for each part.
    """

    parts: Mapping[int, tuple[Part, ...]]
    argument: str = ""
    holders: Mapping[int, tuple[tuple[str, str], ...]] | None = None

    def mixer(self, layer: int) -> str:
        """Path of the outermost module that holds a part of the state of a layer, empty if that is no module."""
        return min((path for path, _ in (self.holders or {}).get(layer, ())), key=len, default="")

    def tensors(self, batch: int, device: torch.device) -> Tensors:
        """Tensors for the states of so many sequences, without contents."""
        return {
            layer: [torch.empty((batch, *shape[1:]), dtype=dtype, device=device) for shape, dtype in parts]
            for layer, parts in self.parts.items()
        }

    @property
    def window(self) -> int:
        """The most past inputs of a convolution among the states, [B, D, K - 1]; 0 without convolutions."""
        return max((shape[-1] for parts in self.parts.values() for shape, _ in parts if len(shape) == 3), default=0)

    @contextmanager
    def placed(self, model: torch.nn.Module, tensors: Tensors, context: int) -> Iterator[dict[str, Any]]:
        """Let the model find its states in `tensors` and store them there; yields arguments of its call."""
        if self.argument:
            held = {layer: list(of) for layer, of in tensors.items()}
            yield {self.argument: SimpleNamespace(rnn_state=held, rnn_state_initial=False, seqlen_offset=context)}
        else:
            with _in_modules(model, self.holders or {}, tensors):
                yield {}


@contextmanager
def _in_modules(model: torch.nn.Module, holders: Mapping[int, Sequence[tuple[str, str]]], tensors: Tensors) -> Iterator[None]:
    """States as attributes of modules. What a module has there after its call is stored.

    transformers starts prompts anew by `_setup_cache`; here a part of a prompt goes on from the state that is there.
    """
    held: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for layer, of in holders.items():
        for (path, name), tensor in zip(of, tensors[layer], strict=True):
            held.setdefault(path, []).append((name, tensor))
    changed: list[Any] = [module for module in model.modules() if hasattr(module, "_setup_cache")]
    for module in changed:
        module._setup_cache = lambda *_args, **_options: None
    wrapped: list[Any] = [model.get_submodule(path) for path in held]
    for module, places in zip(wrapped, held.values(), strict=True):
        for name, tensor in places:
            setattr(module, name, tensor)
        module.forward = _storing(module, module.forward, places)
    try:
        yield
    finally:
        for module in wrapped:
            del module.forward
        for module in changed:
            del module._setup_cache


def _storing(module: Any, forward: Callable[..., Any], places: Sequence[tuple[str, torch.Tensor]]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        result = forward(*args, **options)
        for name, tensor in places:
            made = getattr(module, name)
            if made is not tensor:
                with role(STATE_STORE):
                    tensor.copy_(made)
                setattr(module, name, tensor)
        return result

    return call


def found_in(model: torch.nn.Module, layers_path: str, step: Callable[[], Any]) -> OwnStates | None:
    """The states that a model has after a first step, which `step` makes; None if it has none of its own."""
    before = {id(tensor): tensor for _, _, tensor in _attributes(model)}  # alive, so that no new one has the id of an old one
    result = step()
    kept = getattr(getattr(result, "cache_params", None), "rnn_state", None)
    if isinstance(kept, dict):
        return OwnStates({layer: tuple(map(_part, of)) for layer, of in kept.items()}, "cache_params")
    parts: dict[int, list[Part]] = {}
    holders: dict[int, list[tuple[str, str]]] = {}
    for path, name, tensor in _attributes(model):
        if id(tensor) not in before and path.startswith(f"{layers_path}."):
            layer = int(path[len(layers_path) + 1 :].split(".", 1)[0])
            parts.setdefault(layer, []).append(_part(tensor))
            holders.setdefault(layer, []).append((path, name))
    if not parts:
        return None
    return OwnStates({i: tuple(of) for i, of in parts.items()}, holders={i: tuple(of) for i, of in holders.items()})


def _attributes(model: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Tensors that modules have as plain attributes: path, name, tensor."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield path, name, value


def _part(tensor: torch.Tensor) -> Part:
    return tuple(tensor.shape), tensor.dtype
