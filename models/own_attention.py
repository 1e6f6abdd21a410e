"""Attention that a family writes out itself, seen as attention: a product with cached keys, a softmax, a product with values.

Families of before transformers' attention interface (BLOOM, Falcon, GPT-J) call `torch.matmul` and `softmax` themselves. While
`OwnAttention` is active it sees these calls before torch does. It gives their ops the roles of `models.attention`, takes the
softmax in three passes, and multiplies heads that share keys side by side, so that the cache is read where it lies. Copies of
the cache in another type, or with its heads repeated, are not made: kernels convert and repeat what they read on the way.

Everything between the products stays as the family has it: scaling, biases by distance, masks.
"""

# torch is only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from models.attention import ASIDE, attend, role, softmax_passes

#: The name under which transformers knows attention that families write out.
NAME = "eager"

_PRODUCTS = {"matmul", "bmm", "baddbmm"}

#: Functions that give all elements of a tensor in another order, shape or type, or repeated.
_VIEWS = {
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "swapaxes", "unsqueeze", "squeeze", "contiguous",
    "expand", "broadcast_to", "repeat_interleave", "to", "float", "half", "bfloat16", "type", "type_as", "view_as",
    "reshape_as", "getitem", "get",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Scores:
    """Facts of scores. heads: of the queries. passed: whether a softmax made probabilities of them."""

    heads: int
    passed: bool = False
    result: bool = False  # weighted values, until they are laid out for the output projection

    @property
    def role(self) -> str:
        return "weighted_values" if self.result else "softmax_norm" if self.passed else "scores"


class OwnAttention(TorchFunctionMode):
    """Gives roles to attention that is written out.

    is_cache: tells whether a tensor is all that a layer caches of its keys, or of its values.
    """

    def __init__(self, is_cache: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self._is_cache = is_cache
        self._rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by id, itself and the cache [B, KV, T, D] that it shows
        self._scores: dict[int, tuple[torch.Tensor, _Scores]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        operands = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        rows = [self._cache_of(each) for each in operands]
        scores = next((self._scores[id(each)][1] for each in operands if id(each) in self._scores), None)
        if name == "scaled_dot_product_attention" and rows[1] is not None and rows[2] is not None:
            return _attend(rows, *args, **kwargs)
        if name in _PRODUCTS and len(operands) > 1 and rows[-1] is not None:
            return self._product(name, operands, rows[-1], scores, kwargs)
        if scores is not None:
            return self._between(name, func, args, kwargs, scores)
        if operands and rows[0] is not None and name in _VIEWS:
            with role(ASIDE):
                out = func(*args, **kwargs)
            whole = isinstance(out, torch.Tensor) and (out.numel() >= operands[0].numel())
            if whole:
                self._rows[id(out)] = (out, rows[0])
            return out
        return func(*args, **kwargs)

    def _cache_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The cache [B, KV, T, D] of which a tensor shows all rows, None if it shows none, or not all."""
        if id(tensor) in self._rows:
            return self._rows[id(tensor)][1]
        if tensor.dim() == 4 and tensor.is_contiguous() and self._is_cache(tensor):
            self._rows[id(tensor)] = (tensor, tensor)
            return tensor
        return None

    def _product(self, name: str, operands: Any, cache: torch.Tensor, scores: _Scores | None, options: Any) -> torch.Tensor:
        """The scores of queries [..., Q, D] with keys, or the values weighted by probabilities [..., Q, T]."""
        left = operands[-2]
        B, KV, _, D = cache.shape
        shape, size = left.shape[:-1], left.shape[-1]
        if scores is None:
            if size != D:
                raise NotImplementedError("its own attention multiplies its cache in an order that is not known")
            heads = left.shape[1] if left.dim() == 4 else left.shape[0] // B
            found = _Scores(heads)
            with role(found.role, heads):
                keys = cache.transpose(2, 3)
                out = torch.matmul(left.to(cache.dtype).reshape(B, KV, -1, D), keys).view(*shape, keys.shape[-1])
                if name == "baddbmm":
                    out = _added(operands[0], out, **options)
        else:
            found = replace(scores, result=True)
            with role(found.role, found.heads):
                out = torch.matmul(left.reshape(B, KV, -1, size), cache).view(*shape, D)
        self._scores[id(out)] = (out, found)
        return out

    def _between(self, name: str, func: Any, args: Any, options: Any, scores: _Scores) -> Any:
        """Run what a family does with scores, probabilities, or weighted values."""
        if scores.result and name not in _VIEWS:
            return func(*args, **options)
        if name == "softmax":
            out = softmax_passes(args[0].to(torch.float32), scores.heads, options.get("dtype") or args[0].dtype)
            scores = replace(scores, passed=True)
        else:
            with role(scores.role, scores.heads):
                out = func(*args, **options)
        if isinstance(out, torch.Tensor):
            self._scores[id(out)] = (out, scores)
        return out


def _added(start: torch.Tensor, product: torch.Tensor, beta: float = 1, alpha: float = 1, **_: Any) -> torch.Tensor:
    """The sum of a multiple of a product and of what it starts from, as `baddbmm` has it."""
    scaled = product if isinstance(alpha, (int, float)) and alpha == 1 else product * alpha
    return scaled if isinstance(beta, (int, float)) and beta == 0 else scaled + start


def _attend(
    rows: Any,
    query: torch.Tensor,
    _key: torch.Tensor,
    _value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """Attention that a family leaves to torch: [B, H, Q, Dv]."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attend([(query, rows[1])], rows[2], attn_mask, scale).transpose(1, 2)
