"""Attention with an online softmax as one op, and as several parts of the keys with a `combine`: flash-decoding.

Online softmax (Milakov and Gimelshein, 2018; FlashAttention: Dao et al., 2022, FlashAttention-2: Dao, 2023) goes over the keys
in blocks. Each block rescales, for each row of queries, the `head_dim` sums of values, the maximum and the sum so far: per key
(head_dim + 2) / KEY_BLOCK vector ops on top of those captured, rounded up term by term.

Flash-decoding (Dao, Haziza, Massa, Sizov, 2023) splits the keys into n parts that know nothing of each other. Each part reads
the queries and writes, for each row of queries, head_dim + 2 numbers in float32: its sums, maximum and sum. `combine` reads
these n * (head_dim + 2) numbers, touches each once, and writes the result.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np

from models.graph import MONOMIALS, IntArray, OpGraph
from models.masks import Mask
from models.polynomials import Polynomials
from models.rewrites.groups import Replacement, cost, numbers, replaced
from models.rewrites.softmax import attention_chains
from models.rewrites.visible import made_masks, masks_of, visible, visible_only, without_mask
from sim.base.errors import ConfigError

#: Keys that an online softmax takes at a time; FlashAttention-2 takes 64 to 256, by head size and machine.
KEY_BLOCK = 128

#: Bytes of a number of a partial result: float32, as in the reference implementation.
PARTIAL = 4


def fuse_attention(ops: OpGraph, element: int, splits: int, *, chunked: bool, prefix: bool = False) -> OpGraph:
    """Make each attention one op, of `splits` parts, without scores that its mask hides.

    Such a kernel knows from positions which keys a query sees: no mask is written or read (FlashAttention takes a flag
    or the size of a window). What an indexer chooses, and biases of pairs, are read.

    element: bytes of a captured number. chunked, prefix: as in `masks_of`.

    Raises ConfigError where the captured costs do not show what an attention reads and writes.
    """
    chains = list(attention_chains(ops))
    first = [chain[0] for chain in chains]
    ops, masks = masks_of(ops, first, chunked=chunked, prefix=prefix)
    polynomials = Polynomials(ops.polynomials)
    implied = dict(made_masks(ops, first, masks))
    made = [
        _replacement(ops, chain, mask, element, splits, polynomials, implied) for chain, mask in zip(chains, masks, strict=True)
    ]
    made += [visible_only(ops, i, mask, polynomials, but=("act_read", "act_write")) for i, mask in implied.items()]
    fused = replaced(ops, made, polynomials)
    if splits == 1:
        return fused
    split = {j for op in fused.ops if op.kind == "attention" and op.splits == splits for j in op.inputs}
    return replace(
        fused,
        ops=tuple(replace(op, splits=splits) if op.kind == "kv_load" and i in split else op for i, op in enumerate(fused.ops)),
    )


def _replacement(
    ops: OpGraph, chain: Sequence[int], mask: Mask | None, element: int, splits: int, polynomials: Polynomials,
    implied: Container[int],
) -> Replacement:  # fmt: skip
    """The attention that stands for a chain of ops, and the `combine` of its parts if there are several.

    implied: masks that are not read.
    """
    first, last = ops.ops[chain[0]], ops.ops[chain[-1]]
    scores = cost(ops, chain[2], "vector_ops")  # the exponential touches each score once
    key_dim, head_dim = (_per_score(ops, i, scores) for i in (chain[0], chain[-1]))
    costs = {quantity: cost(ops, chain, quantity) for quantity in ("flops", "vector_ops", "weight")}
    # Queries, keys and values are read: all but the probabilities, and what elementwise ops read of each other.
    outer = [chain[0], chain[-1]]
    read = cost(ops, outer, "act_read") - element * (cost(ops, outer, "vector_ops") + scores)
    if mask is not None and any(i in implied for op in chain for i in ops.ops[op].inputs):
        read = without_mask(ops, mask, read, element)
    written = cost(ops, chain[-1], "act_write") - element * cost(ops, chain[-1], "vector_ops")
    if (read < 0).any() or (written < 0).any():
        raise ConfigError("mapping.softmax", f"cannot tell what {first.path} reads and writes; expected three_pass")
    costs |= {"act_read": read, "act_write": written}
    costs = {quantity: visible(ops, mask, each) for quantity, each in costs.items()}
    costs["vector_ops"] += -(-visible(ops, mask, scores) * (head_dim + 2) // KEY_BLOCK)
    attention = replace(first, kind="attention", shape=last.shape, splits=splits)
    if splits == 1:
        return Replacement(chain, (replace(attention, costs=numbers(polynomials, ops, costs)),))
    rows = _query_rows(scores)
    partial = rows * splits * (head_dim + 2)
    costs["act_read"] += element * key_dim * rows * (splits - 1)
    costs["act_write"] = PARTIAL * partial
    combine = {"vector_ops": partial, "act_read": PARTIAL * partial, "act_write": written}
    return Replacement(
        chain,
        (
            replace(attention, costs=numbers(polynomials, ops, costs)),
            replace(last, kind="combine", part="splits", dtype="float32", costs=numbers(polynomials, ops, combine)),
        ),
    )


def _per_score(ops: OpGraph, op: int, scores: IntArray) -> int:
    """Size of the dimension that a product sums over or writes: its FLOPs are 2 * size * scores, exactly."""
    flops, twice = cost(ops, op, "flops"), 2 * scores
    where = np.flatnonzero(twice.ravel())
    size = int(flops.ravel()[where[0]] // twice.ravel()[where[0]]) if len(where) else 0
    if not size or not np.array_equal(flops, size * twice):
        raise ConfigError("mapping.softmax", f"the FLOPs of {ops.ops[op].path} are no multiple of its scores")
    return size


def _query_rows(scores: IntArray) -> IntArray:
    """Rows of queries of all heads [piece, term]: the scores that one more key adds, before any window is full."""
    rows = np.zeros_like(scores)
    for i, (batch, query, context) in enumerate(MONOMIALS):
        if context:
            rows[:, MONOMIALS.index((batch, query, 0))] = scores[0, i]
    return rows
