"""Parts of a buffer that views cover: boxes, a begin and an end by dimension, and how much several of them cover together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise, product

#: Begin and end by dimension of a buffer.
Box = tuple[tuple[int, int], ...]


def box_of(size: Sequence[int], stride: Sequence[int], offset: int, shape: Sequence[int]) -> Box | None:
    """The box of a contiguous buffer of a shape that a view covers; None if it leaves gaps or is no box.

    size, stride, offset: of the view, in elements. A view may repeat a dimension (stride 0), split one, or join several.
    """
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    begin = [offset // step % length for step, length in zip(strides, shape, strict=True)]
    extent = [1] * len(shape)
    left = sorted(((step, length) for step, length in zip(stride, size, strict=True) if step and length > 1), reverse=True)
    elements = math.prod(length for _, length in left)
    while left:
        step, length = left.pop(0)
        at = next((i for i, each in enumerate(strides) if each <= step and shape[i] > 1), None)
        if at is None or step % strides[at]:
            return None
        times = step // strides[at]
        if begin[at] + extent[at] + (length - 1) * times <= shape[at]:
            extent[at] += (length - 1) * times
            continue
        more, rest = divmod(length, shape[at])
        if rest or times != 1 or begin[at] or extent[at] > 1:
            return None
        extent[at] = shape[at]
        left.insert(0, (strides[at] * shape[at], more))
    box = tuple((first, first + length) for first, length in zip(begin, extent, strict=True))
    return box if math.prod(extent) == elements else None


def rows_before(box: Box, past: int) -> Box:
    """The part of a box whose rows, the last dimension but one, are from before `past`."""
    first, last = box[-2]
    return (*box[:-2], (min(first, past), min(last, past)), box[-1])


def volume(box: Box) -> int:
    """The elements of a box."""
    return math.prod(last - first for first, last in box)


def covered(boxes: Iterable[Box]) -> int:
    """The elements that are in some of the boxes, each counted once."""
    kept: list[Box] = []
    for box in sorted({box for box in boxes if volume(box)}, key=volume, reverse=True):
        if not any(_contains(other, box) for other in kept):
            kept.append(box)
    if not kept:
        return 0
    cuts = [sorted({edge for box in kept for edge in box[i]}) for i in range(len(kept[0]))]
    cells = product(*(list(pairwise(edges)) for edges in cuts))
    return sum(volume(cell) for cell in cells if any(_contains(box, cell) for box in kept))


def _contains(outer: Box, inner: Box) -> bool:
    return all(a <= c and d <= b for (a, b), (c, d) in zip(outer, inner, strict=True))
