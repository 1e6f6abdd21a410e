"""Masks of attention, and how many pairs of a query and a key they let through.

Under the first three masks the keys that a query sees depend only on its position t, counted from 1:

| mask    | keys seen             | by all positions up to t            |
| ------- | --------------------- | ----------------------------------- |
| causal  | t                     | T(t) = t (t + 1) / 2                |
| window  | min(t, W)             | T(t) - T(t - W) where t > W         |
| chunked | (t - 1) mod C + 1     | floor(t / C) T(C) + T(t mod C)      |

So Q new tokens after N others see the difference between t = N + Q and t = N, and a prompt has as many pairs in parts as whole.

Under a prefix mask all tokens of a prompt of P that is fed in whole, with nothing before it, see each other: P^2 pairs. Those
after it see what they see under the mask without a prefix: causal, or a window, which hides nothing within the prompt.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from models.op import IntArray
from sim.base.kernel import kernel

CAUSAL, WINDOW, CHUNKED, PREFIX = range(4)

#: An integer, or integers side by side.
Integers = TypeVar("Integers", int, IntArray)


class Mask(NamedTuple):
    """A mask. kind: `CAUSAL`, `WINDOW`, `CHUNKED` or `PREFIX`.

    size: tokens of the window, the query's own included, or of a chunk; of a prefix mask those of the window after the prompt,
    0 if there is none.
    """

    kind: int
    size: int = 0


@kernel
def pairs(kind: int, size: int, query: Integers, context: Integers) -> Integers:
    """Pairs that a mask lets through, of `query` new tokens after `context` others."""
    seen = pairs_up_to(kind, size, context + query) - pairs_up_to(kind, size, context)
    if kind == PREFIX:
        hidden: Integers = (query * query - seen) * (context == 0)
        return seen + hidden
    return seen


@kernel
def pairs_up_to(kind: int, size: int, tokens: Integers) -> Integers:
    """Pairs that a mask lets through among the first tokens of a sequence; of a prefix mask, without its prefix."""
    if kind == CHUNKED:
        return tokens // size * triangle(size) + triangle(tokens % size)
    if kind == WINDOW or (kind == PREFIX and size > 0):
        return triangle(tokens) - triangle(tokens - size) * (tokens > size)
    return triangle(tokens)


@kernel
def triangle(count: Integers) -> Integers:
    """The sum of 1 to `count`."""
    return count * (count + 1) // 2
