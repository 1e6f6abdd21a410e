"""Number formats: only bytes by class change, so that times, traffic and memory use follow without a special case.

Arithmetic is that of the captured model: formats say how numbers are stored, and converting them is not counted. A cost that
grows with batch, query or context is rounded up term by term, so that it is never below the exact value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from models.formats import Formats, is_matrix, stored_bytes
from models.graph import QUANTITIES, Op, OpGraph
from models.polynomials import Pieces, Polynomials, each_term


def with_formats(ops: OpGraph, formats: Formats, *, element: int) -> OpGraph:
    """The op graph with its bytes in these formats. element: bytes of a captured number.

    Raises ValueError where a cost has a negative term that would have to be rounded.
    """
    of_matrices = {
        "weight": formats.weights,
        "kv_read": formats.kv, "kv_write": formats.kv,
        "act_read": formats.activations, "act_write": formats.activations,
    }  # fmt: skip
    if all(name is None for name in of_matrices.values()):
        return ops
    of_others = {**of_matrices, "weight": None}
    polynomials = Polynomials(ops.polynomials)
    converted = tuple(
        _converted(op, of_matrices if is_matrix(ops, op) else of_others, formats.group, element, polynomials) for op in ops.ops
    )
    return replace(ops, ops=converted, polynomials=tuple(polynomials))


def _converted(op: Op, names: Mapping[str, str | None], group: int, element: int, polynomials: Polynomials) -> Op:
    """The op with its bytes in formats. names: of `BITS`, by quantity."""
    costs, experts = list(op.costs), op.experts
    for quantity, name in names.items():
        i = QUANTITIES.index(quantity)
        unit = experts.bytes if quantity == "weight" and experts is not None else 0
        costs[i] = polynomials.number(_in_format(polynomials[costs[i]], name, group, element, unit))
    if experts is not None:
        experts = replace(experts, bytes=stored_bytes(experts.bytes, element, names["weight"], group))
    weights = names["weight"] or op.weights
    return replace(op, costs=tuple(costs), experts=experts, weights=weights)


@lru_cache(maxsize=4096)  # layers repeat
def _in_format(pieces: Pieces, name: str | None, group: int, element: int, unit: int) -> Pieces:
    """A cost in a format. unit: bytes that are rounded for themselves (of an expert), 0 if each term is a whole."""
    if unit:
        stored = stored_bytes(unit, element, name, group)
        return each_term(lambda term: term // unit * stored, pieces)
    return each_term(lambda term: stored_bytes(term, element, name, group), pieces)
