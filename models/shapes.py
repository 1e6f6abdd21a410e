"""Results of aten ops on tensors without data, which depend on the shapes of their operands alone.

torch works out the shape of a result in Python for many ops. Layers repeat the same ops at the same shapes, so it is done once.
"""

# torch is only partly typed.
# mypy: allow-untyped-calls

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

#: Size, stride and dtype of a result.
_Meta = tuple[torch.Size, tuple[int, ...], torch.dtype]

#: Most results that are kept.
_MOST = 2**16

_KNOWN: dict[Any, _Meta] = {}


def result_of(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an op. Of one that returns a new tensor without data, the shape is looked up if it is known."""
    if not _returns_new(func):
        return func(*args, **kwargs)
    try:
        key = (func, _sign(args), _sign(tuple(kwargs.items())))
        known = _KNOWN.get(key)
    except (TypeError, ValueError):  # an argument that has no hash, or a tensor with data
        return func(*args, **kwargs)
    if known is not None:
        return torch.empty_strided(known[0], known[1], dtype=known[2], device="meta")
    out = func(*args, **kwargs)
    if isinstance(out, torch.Tensor) and out.device.type == "meta" and len(_KNOWN) < _MOST:
        operands = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        if out.untyped_storage()._cdata not in operands:  # some views do not say that they are
            _KNOWN[key] = (out.shape, out.stride(), out.dtype)
    return out


def _sign(value: Any) -> Any:
    """A hashable value, equal for operands of equal shapes. Raises ValueError for a tensor with data."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "meta":
            raise ValueError("a tensor with data")
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_sign, value))
    return type(value), value  # 1, 1.0 and True are equal


@cache
def _returns_new(func: Any) -> bool:
    """Whether an op returns one new tensor and writes to none of its operands."""
    schema = func._schema
    new = len(schema.returns) == 1 and schema.returns[0].alias_info is None and str(schema.returns[0].type) == "Tensor"
    return new and all(argument.alias_info is None or not argument.alias_info.is_write for argument in schema.arguments)
