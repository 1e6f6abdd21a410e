"""Number formats: bytes by class, and the format that products are computed in.

Converting numbers is no FLOP here; costs of kernels may have a time for it. A cost that grows with batch, query or context is
rounded up term by term, so that it is never below the exact value. Of the weights of a product, as many numbers are the matrix
as it has multiplications for one token; the rest (biases) stays as captured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from models.formats import WEIGHT, Formats, Storage, is_matrix, matrix_numbers, multiplies, stored_bytes, weight_kind
from models.graph import QUANTITIES, Op, OpGraph
from models.polynomials import Pieces, Polynomials, each_term
from models.states import STATE_ELEMENT
from sim.base.errors import ConfigError, nearest
from sim.base.quantities import show


def with_formats(ops: OpGraph, formats: Formats, *, element: int) -> OpGraph:
    """The op graph with its bytes and its arithmetic in these formats. element: bytes of a captured number.

    Raises ValueError where a cost has a negative term that would have to be rounded.
    """
    if formats == Formats():
        return ops
    kv = None if formats.kv is None else formats.storage(formats.kv)
    activations = None if formats.activations is None else formats.storage(formats.activations)
    others = {"kv_read": kv, "kv_write": kv, "act_read": activations, "act_write": activations}
    if formats.state is not None:
        others |= dict.fromkeys(("state_read", "state_write"), formats.storage(formats.state))
    polynomials = Polynomials(ops.polynomials)
    converted = tuple(_converted(ops, op, formats, others, element, polynomials) for op in ops.ops)
    return replace(ops, ops=converted, polynomials=tuple(polynomials))


def check_arithmetic(ops: OpGraph, formats: Formats) -> None:
    """Raise ConfigError for arithmetic of a kind that no op has."""
    if not isinstance(formats.arithmetic, Mapping):
        return
    matrices = {weight_kind(op) for op in ops.ops if is_matrix(ops, op)}
    known = {op.kind for op in ops.ops if multiplies(ops, op)} | matrices | {"default"}
    for kind in formats.arithmetic:
        if kind not in known:
            message = f"expected a kind of op with matrix products, found {show(kind)}{nearest(kind, known)}"
            raise ConfigError("mapping.formats.arithmetic", f"{message}; known: {', '.join(sorted(known))}")


def _converted(
    ops: OpGraph, op: Op, formats: Formats, others: Mapping[str, Storage | None], element: int, polynomials: Polynomials
) -> Op:
    """The op with its bytes and arithmetic in formats. others: formats of other bytes than weights, by quantity."""
    costs, experts = list(op.costs), op.experts
    for quantity, storage in others.items():
        i = QUANTITIES.index(quantity)
        captured = STATE_ELEMENT if quantity.startswith("state") else element
        costs[i] = polynomials.number(_in_format(polynomials[costs[i]], storage, captured))
    matrix = is_matrix(ops, op)
    name = formats.name_of_weights(weight_kind(op)) if matrix else None
    if name is not None:
        storage = formats.storage(name)
        size = element * matrix_numbers(ops, op)
        if experts is None:
            stored = _weights_in_format(polynomials[costs[WEIGHT]], storage, element, size)
        else:
            unit = experts.bytes
            kept = _split(unit, storage, element, size)
            experts = replace(experts, bytes=kept)
            stored = each_term(lambda term: term * kept // unit, polynomials[costs[WEIGHT]])
        costs[WEIGHT] = polynomials.number(stored)
    dtype = formats.arithmetic_of(op, matmul=matrix) if multiplies(ops, op) else op.dtype
    return replace(op, costs=tuple(costs), experts=experts, dtype=dtype, weights=name or op.weights)


def _split(captured: int, storage: Storage, element: int, matrix: int) -> int:
    """Bytes of a matrix of `matrix` captured bytes in a format, and of the rest as captured."""
    inside = min(captured, matrix) if matrix else captured
    return stored_bytes(inside, element, storage) + captured - inside


@lru_cache(maxsize=4096)  # layers repeat
def _weights_in_format(pieces: Pieces, storage: Storage, element: int, matrix: int) -> Pieces:
    """Weight bytes in a format. matrix: captured bytes of the matrix; 0 if rows of a table are looked up."""
    return tuple(
        tuple(
            _split(term, storage, element, 0 if i else matrix) if term >= 0 else stored_bytes(term, element, storage)
            for i, term in enumerate(piece)
        )
        for piece in pieces
    )


@lru_cache(maxsize=4096)  # layers repeat
def _in_format(pieces: Pieces, storage: Storage | None, element: int) -> Pieces:
    """A cost in a format."""
    return each_term(lambda term: stored_bytes(term, element, storage), pieces)
