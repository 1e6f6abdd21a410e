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

#: Sizes, strides and dtypes of results; of one that is no tuple the only ones.
_Meta = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]

#: Most results that are kept.
_MOST = 2**16

_KNOWN: dict[Any, _Meta] = {}


def result_of(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an op. Of one that returns new tensors without data, the shapes are looked up if they are known."""
    count = _new_tensors(func)
    if not count:
        return func(*args, **kwargs)
    try:
        key = (func, _sign(args), _sign(tuple(kwargs.items())))
        known = _KNOWN.get(key)
    except (TypeError, ValueError):  # an argument that has no hash, or a tensor with data
        return func(*args, **kwargs)
    if known is not None:
        made = tuple(torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in known)
        return made if count > 1 else made[0]
    out = func(*args, **kwargs)
    results = out if isinstance(out, tuple) else (out,)
    new = all(isinstance(each, torch.Tensor) and each.device.type == "meta" for each in results)
    if new and len(results) == count and len(_KNOWN) < _MOST:
        operands = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        if not operands.intersection(each.untyped_storage()._cdata for each in results):  # some views do not say that they are
            _KNOWN[key] = tuple((each.shape, each.stride(), each.dtype) for each in results)
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
def _new_tensors(func: Any) -> int:
    """The number of new tensors that an op returns; 0 if it returns anything else, or writes to an operand."""
    schema = func._schema
    new = all(each.alias_info is None and str(each.type) == "Tensor" for each in schema.returns)
    writes = any(argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments)
    return len(schema.returns) if new and not writes else 0
