"""Residency: a share of the weights stays on chip."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from models.graph import QUANTITIES, Op, OpGraph
from models.polynomials import Polynomials, each_term

WEIGHT = QUANTITIES.index("weight")


def without_resident(ops: OpGraph, resident: Fraction) -> OpGraph:
    """The op graph that reads only the weights that are streamed: the rest of each op's weights, rounded up to whole bytes."""
    polynomials = Polynomials(ops.polynomials)
    return replace(ops, ops=tuple(_streamed(op, resident, polynomials) for op in ops.ops), polynomials=tuple(polynomials))


def bytes_kept(size: int, resident: Fraction) -> int:
    """Bytes that stay on chip of the weights of an op, rounded down. size: bytes of all its weights."""
    return size * resident.numerator // resident.denominator


def _streamed(op: Op, resident: Fraction, polynomials: Polynomials) -> Op:
    """The op with what is streamed of its weights. Of experts, a share of each is resident."""
    weight, experts = polynomials[op.costs[WEIGHT]], op.experts
    if experts is None or experts.shares:
        rest = each_term(lambda term: term - bytes_kept(term, resident), weight)
    else:
        whole, left = experts.bytes, experts.bytes - bytes_kept(experts.bytes, resident)
        rest = each_term(lambda term: term // whole * left, weight)
        experts = replace(experts, bytes=left)
    streamed = op.with_cost(WEIGHT, polynomials.number(rest))
    return replace(streamed, experts=experts, several=op.several and _streamed(op.several, resident, polynomials))
