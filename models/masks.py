"""Masks of attention, and how many pairs of a query and a key they let through.

Under the first three masks the keys that a query sees depend only on its position t, counted from 1:

| mask    | keys seen             | by all positions up to t            |
| ------- | --------------------- | ----------------------------------- |
| causal  | t                     | T(t) = t (t + 1) / 2                |
| window  | min(t, W)             | T(t) - T(t - W) where t > W         |
| chunked | (t - 1) mod C + 1     | floor(t / C) T(C) + T(t mod C)      |

So Q new tokens after N others see the difference between t = N + Q and t = N, and a prompt has as many pairs in parts as whole.

Compressed caches have one row for each m tokens, made when the last of them comes: floor(t / m) rows after t tokens. What
depends on them is counted as pairs are, by terms of the same kind (x = the rows before the step, y = those that it makes):

| term         | counts                                                                               |
| ------------ | ------------------------------------------------------------------------------------ |
| rows         | x = floor(N / m)                                                                     |
| closed       | y = floor((N + Q) / m) - x                                                           |
| closes       | 1 where y > 0: once for all windows that the step ends                               |
| waiting      | N mod m where y > 0: tokens from before the step, of the first window that it ends   |
| waiting more | the same, where y > 1                                                                |
| query rows   | Q x                                                                                  |
| query closed | Q y                                                                                  |
| compressed   | rows that the queries see: the sum of floor(t / m) over their positions t            |

Under a prefix mask all tokens of a prompt of P that is fed in whole, with nothing before it, see each other: P^2 pairs. Those
after it see what they see under the mask without a prefix: causal, or a window, which hides nothing within the prompt.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from models.op import IntArray
from sim.base.kernel import kernel

CAUSAL, WINDOW, CHUNKED, PREFIX = range(4)

#: Terms of compressed caches.
ROWS, CLOSED, CLOSES, WAITING, WAITING_MORE, QUERY_ROWS, QUERY_CLOSED, COMPRESSED = OF_ROWS = range(4, 12)

#: An integer, or integers side by side.
Integers = TypeVar("Integers", int, IntArray)


class Mask(NamedTuple):
    """A mask, or a term of a compressed cache. kind: `CAUSAL`, `WINDOW`, `CHUNKED`, `PREFIX`, or one of `OF_ROWS`.

    size: tokens of the window, the query's own included, or of a chunk; of a prefix mask those of the window after the prompt,
    0 if there is none; of a term of rows the tokens that a row stands for.
    """

    kind: int
    size: int = 0


@kernel
def pairs(kind: int, size: int, query: Integers, context: Integers) -> Integers:
    """Pairs that a mask lets through, of `query` new tokens after `context` others; or what a term of rows counts."""
    if kind >= ROWS:
        return of_rows(kind, size, query, context)
    seen = pairs_up_to(kind, size, context + query) - pairs_up_to(kind, size, context)
    if kind == PREFIX:
        hidden: Integers = (query * query - seen) * (context == 0)
        return seen + hidden
    return seen


@kernel
def of_rows(kind: int, size: int, query: Integers, context: Integers) -> Integers:
    """Value of a term of a compressed cache, with a row for each `size` tokens."""
    if kind == COMPRESSED:
        return rows_up_to(size, context + query) - rows_up_to(size, context)
    rows = context // size
    closed = (context + query) // size - rows
    if kind == ROWS:
        return rows
    if kind == CLOSED:
        return closed
    if kind == CLOSES:
        once: Integers = 1 * (closed > 0)
        return once
    if kind in (WAITING, WAITING_MORE):
        waiting: Integers = (context % size) * (closed > kind - WAITING)
        return waiting
    of_queries: Integers = query * (rows if kind == QUERY_ROWS else closed)
    return of_queries


@kernel
def rows_up_to(size: int, tokens: Integers) -> Integers:
    """The sum of the rows that there are after each of the first tokens."""
    rows = tokens // size
    return size * triangle(rows - 1) + rows * (tokens % size + 1)


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
