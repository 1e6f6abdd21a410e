"""Costs of attention without the pairs of a query and a key that a mask hides: kernels that compute the softmax as they go skip
these, block by block, while the separate passes of an eager model compute all and then add the mask.

Which mask a layer has follows from the captured graph: the keys of Q new tokens after N others are N + Q for ever (causal), or
min(N, W - 1) + Q (a window of W tokens, or chunks as long; or W tokens that an indexer chooses). The op that makes a mask makes
no more of it than is used. A step with one new token each stays as captured, and so does an indexer: its kernel has no softmax.
That a prompt sees itself whole (prefix LM) no shape shows: it is a fact of the model.

Of compressed rows a query sees those of windows that have ended (see `models.masks`), of which an indexer may choose some.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace

import numpy as np

from models.graph import MONOMIALS, QUANTITIES, IntArray, OpGraph
from models.masks import CAUSAL, CHUNKED, COMPRESSED, PREFIX, QUERY_CLOSED, QUERY_ROWS, WINDOW, Mask
from models.polynomials import Polynomials, with_masks
from models.rewrites.groups import Replacement, cost, numbers
from sim.base.errors import ConfigError

#: Terms by exponents of (B, Q, N), for one sequence and in proportion to the batch.
_OF_QUERY = [MONOMIALS.index((batch, 1, 0)) for batch in (0, 1)]
_OF_QUERY_SQUARED = [MONOMIALS.index((batch, 2, 0)) for batch in (0, 1)]
_OF_QUERY_AND_CONTEXT = [MONOMIALS.index((batch, 1, 1)) for batch in (0, 1)]


def masks_of(ops: OpGraph, scores: Iterable[int], *, chunked: bool, prefix: bool = False) -> tuple[OpGraph, list[Mask | None]]:
    """The mask of each attention, None in a step with one new token each; and the graph with terms for their pairs.

    scores: ops. chunked: a layer that stops seeing more keys has chunks of that size, not a window. prefix: as in `ModelGraph`.
    Raises ConfigError if the FLOPs of an op are not those of all pairs under a mask that is known.
    """
    found = [_mask(ops, op, CHUNKED if chunked else WINDOW) for op in scores]
    if prefix:
        found = [None if mask is None else Mask(PREFIX, mask.size) for mask in found]
    of_rows = [Mask(COMPRESSED, mask.size) for mask in ops.masks if mask.kind == QUERY_ROWS]
    masks = tuple(dict.fromkeys((*ops.masks, *of_rows, *(mask for mask in found if mask is not None))))
    polynomials = tuple(with_masks(pieces, ops.masks, masks) for pieces in ops.polynomials)
    return replace(ops, polynomials=polynomials, masks=masks), found


def _mask(ops: OpGraph, scores: int, bounded: int) -> Mask | None:
    """The mask of an attention. bounded: kind of a mask that lets only so many keys through."""
    flops = cost(ops, scores, "flops")
    size = flops[:, _OF_QUERY_SQUARED]  # [piece, by batch or not]: FLOPs of a pair
    if not size.any():
        return None
    flops = flops - _of_rows(ops, flops, size)
    causal = flops[-1, _OF_QUERY_AND_CONTEXT].any()
    mask = Mask(CAUSAL) if causal else Mask(bounded, 1 + int(flops[-1, _OF_QUERY].sum() // size[-1].sum()))
    if (flops != _all_pairs(ops, mask, size)).any():
        raise ConfigError("mapping.softmax", f"cannot tell the mask of {ops.ops[scores].path}; expected three_pass")
    return mask


def visible(ops: OpGraph, mask: Mask | None, all_pairs: IntArray) -> IntArray:
    """A cost [piece, term] of the pairs that a mask lets through, from the cost of all pairs; the same if there is no mask.

    ops: a graph whose polynomials have terms for the mask.
    """
    if mask is None:
        return all_pairs
    size = all_pairs[:, _OF_QUERY_SQUARED]
    of_rows = _of_rows(ops, all_pairs, size)
    result = all_pairs - of_rows - _all_pairs(ops, mask, size) + _seen_rows(ops, of_rows)
    assert not result[:, [*_OF_QUERY_SQUARED, *_OF_QUERY_AND_CONTEXT]].any(), "a cost of pairs that are not those of the scores"
    first = len(MONOMIALS) + 2 * ops.masks.index(mask)
    result[:, first : first + 2] += size
    return result


def _of_rows(ops: OpGraph, all_pairs: IntArray, size: IntArray) -> IntArray:
    """The part of a cost [piece, term] of all pairs that is of pairs with compressed rows; 0 if there are none.

    size: [piece, (alone, by batch)], the cost of a pair. Where an indexer chooses as many as it can, their number is constant,
    and makes what a query costs beside the tokens of its window larger than where all rows are read.
    """
    result = np.zeros_like(all_pairs)
    for i, mask in enumerate(ops.masks):
        if mask.kind in (QUERY_ROWS, QUERY_CLOSED):
            at = len(MONOMIALS) + 2 * i
            result[:, at : at + 2] = all_pairs[:, at : at + 2]
    for piece in range(1, len(all_pairs)):
        if result[0].any() and not all_pairs[piece, _OF_QUERY_AND_CONTEXT].any() and _chooses(ops, result, piece):
            before = next(
                p for p in range(piece) if not all_pairs[p, _OF_QUERY_AND_CONTEXT].any() and not _chooses(ops, result, p)
            )
            result[piece, _OF_QUERY] = all_pairs[piece, _OF_QUERY] - all_pairs[before, _OF_QUERY]
    return result


def _chooses(ops: OpGraph, of_rows: IntArray, piece: int) -> bool:
    """Whether the rows that a step reads no longer grow with the context. of_rows: [piece, term]."""
    grows = [len(MONOMIALS) + 2 * i for i, mask in enumerate(ops.masks) if mask.kind == QUERY_ROWS]
    return bool(of_rows[0].any()) and not any(of_rows[piece, at : at + 2].any() for at in grows)


def _seen_rows(ops: OpGraph, of_rows: IntArray) -> IntArray:
    """A cost [piece, term] of the pairs with compressed rows that queries see: rows of ended windows, or those chosen."""
    result = of_rows.copy()
    for i, mask in enumerate(ops.masks):
        at = len(MONOMIALS) + 2 * i
        if mask.kind == QUERY_CLOSED:
            result[:, at : at + 2] = 0
        elif mask.kind == QUERY_ROWS:
            seen = len(MONOMIALS) + 2 * ops.masks.index(Mask(COMPRESSED, mask.size))
            result[:, seen : seen + 2] += of_rows[:, at : at + 2]
            result[:, at : at + 2] = 0
    return result


def without_mask(ops: OpGraph, mask: Mask, read: IntArray, element: int) -> IntArray:
    """Bytes that an attention reads [piece, term], without those of its mask: up to `element` for each pair of all."""
    return read - _all_pairs(ops, mask, np.minimum(read[:, _OF_QUERY_SQUARED], element))


def visible_only(ops: OpGraph, op: int, mask: Mask, polynomials: Polynomials, but: Container[str] = ()) -> Replacement:
    """An op with the costs of the pairs that a mask lets through. but: quantities of which it costs nothing."""
    costs = {quantity: visible(ops, mask, cost(ops, op, quantity)) for quantity in QUANTITIES if quantity not in but}
    return Replacement([op], (replace(ops.ops[op], costs=numbers(polynomials, ops, costs)),))


def made_masks(ops: OpGraph, scores: Iterable[int], masks: Iterable[Mask | None]) -> Iterator[tuple[int, Mask]]:
    """Ops that make the masks of attentions and of nothing else, and the mask that each makes.

    An indexer reads the mask of all tokens, of which attention needs those that it chooses.
    """
    of_attention = dict(zip(scores, masks, strict=True))
    made: dict[int, set[Mask | None]] = {}
    for op, reader in enumerate(ops.ops):
        for i in reader.inputs:
            if ops.ops[i].kind == "mask":
                made.setdefault(i, set()).add(of_attention.get(op))
    for i, found in made.items():
        mask = found.pop()
        if mask is not None and not found:
            yield i, mask


def _all_pairs(ops: OpGraph, mask: Mask, size: IntArray) -> IntArray:
    """A cost [piece, term] in proportion to all pairs: Q (N + Q), or Q (W - 1 + Q) once W tokens are seen.

    size: [piece, (alone, by batch)], the cost of a pair.
    """
    result = np.zeros((len(size), ops.table.shape[-1]), dtype=np.int64)
    start = np.array([0, *ops.breaks])  # [piece]
    full = ((mask.size > 0) & (start >= mask.size - 1))[:, None]
    result[:, _OF_QUERY_SQUARED] = size
    result[:, _OF_QUERY_AND_CONTEXT] = np.where(full, 0, size)
    result[:, _OF_QUERY] = np.where(full, size * (mask.size - 1), 0)
    return result
