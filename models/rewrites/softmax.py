"""The three passes of a softmax as one op; and where the chains of ops of attention are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from models.graph import OpGraph
from models.polynomials import Polynomials
from models.rewrites.groups import Replacement, cost, numbers, replaced
from models.rewrites.visible import made_masks, masks_of, visible, visible_only

PASSES = ("softmax_max", "softmax_exp", "softmax_norm")
ATTENTION = ("scores", *PASSES, "weighted_values")


def attention_chains(ops: OpGraph) -> Iterator[list[int]]:
    """The five ops of each attention, `ATTENTION`: each reads the one before, and only the last is read by other ops."""
    readers: dict[int, list[int]] = {}
    for i, op in enumerate(ops.ops):
        for j in op.inputs:
            readers.setdefault(j, []).append(i)
    for i, op in enumerate(ops.ops):
        if op.kind != ATTENTION[0]:
            continue
        chain = [i]
        for kind in ATTENTION[1:]:
            chain += [j for j in readers.get(chain[-1], []) if ops.ops[j].kind == kind][:1]
        inside = {j for i in chain[:-1] for j in readers.get(i, [])}
        if tuple(ops.ops[j].kind for j in chain) == ATTENTION and inside.issubset(chain):
            yield chain


def fuse_softmax(ops: OpGraph, element: int, *, chunked: bool, prefix: bool = False) -> OpGraph:
    """Make the passes of each softmax one op, which reads and writes each score once. element: bytes of a captured number.

    Scores that the mask hides are computed no longer, neither here nor in the products before and after. chunked,
    prefix: as in `masks_of`.
    """
    chains = list(attention_chains(ops))
    first = [chain[0] for chain in chains]
    ops, masks = masks_of(ops, first, chunked=chunked, prefix=prefix)
    polynomials = Polynomials(ops.polynomials)
    replacements = [visible_only(ops, i, mask, polynomials) for i, mask in made_masks(ops, first, masks)]
    for chain, mask in zip(chains, masks, strict=True):
        passes = chain[1:4]
        scores = cost(ops, passes[1], "vector_ops")  # the exponential touches each score once
        costs = {quantity: cost(ops, passes, quantity) for quantity in ("vector_ops", "weight")}  # weights: of sinks
        costs["act_read"] = costs["act_write"] = scores * element
        last, dtype = ops.ops[passes[-1]], ops.ops[passes[0]].dtype
        costs = {quantity: visible(ops, mask, each) for quantity, each in costs.items()}
        fused = replace(last, kind="softmax", dtype=dtype, costs=numbers(polynomials, ops, costs))
        replacements.append(Replacement(passes, (fused,)))
        if mask is not None:
            replacements += [visible_only(ops, i, mask, polynomials) for i in (chain[0], chain[-1])]
    return replaced(ops, replacements, polynomials)
