"""Number formats: the same model with its weights, KV cache or activations stored in fewer bits.

A pure change of an op graph: only bytes by class change, so that times, traffic and memory use follow without a special
case. Arithmetic is that of the captured model: formats say how numbers are stored, and converting them is not counted.

| class                | which bytes                                     | stored as                                         |
| -------------------- | ----------------------------------------------- | ------------------------------------------------- |
| weights              | of matrix products and embeddings               | bits of the format; int4: and a scale per `group` |
| KV cache             | all that is read and appended                   | bits of the format                                |
| activations          | all that is read and written                    | in proportion to the captured element             |

Norms keep their captured weights, as in quantised models: they are a ten-thousandth of all.
Bytes that do not come out whole are rounded up, op by op (of a cost that grows with batch, query or context: term by term,
so that it is never below the exact value).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from math import ceil

from models.graph import QUANTITIES, Op, OpGraph

BITS = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4}
ELEMENT = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes, by torch's name

#: Bytes of the scale that each group of int4 weights has: one number of 16 bits (as in GPTQ and AWQ, without zero points).
SCALE = 2

WEIGHT, FLOPS = QUANTITIES.index("weight"), QUANTITIES.index("flops")


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Names of `BITS`, None for as captured. group: int4 weights that share a scale."""

    weights: str | None = None
    kv: str | None = None
    activations: str | None = None
    group: int = 128

    def weight_bytes(self, captured: int, element: int) -> int:
        """Bytes that take `captured` bytes of weights of `element` bytes each: ceil(n * bits / 8) + scales."""
        return _stored(captured, element, self.weights, self.group)


def apply(ops: OpGraph, formats: Formats, *, element: int) -> OpGraph:
    """The op graph with its bytes in these formats. `element`: bytes of a captured number.

    Raises ValueError where a cost has a negative term that would have to be rounded.
    """
    wanted: dict[str, tuple[str | None, int]] = {
        "weight": (formats.weights, formats.group),
        "kv_read": (formats.kv, 0), "kv_write": (formats.kv, 0),
        "act_read": (formats.activations, 0), "act_write": (formats.activations, 0),
    }  # fmt: skip
    if all(name is None for name, _ in wanted.values()):
        return ops
    polynomials = list(ops.polynomials)
    index = {polynomial: i for i, polynomial in enumerate(polynomials)}
    changed: dict[tuple[int, str | None, int, int], int] = {}

    def stored(cost: int, name: str | None, group: int, unit: int) -> int:
        """The cost in a format. unit: bytes that are rounded for themselves, 0: each term as a whole."""
        key = (cost, name, group, unit)
        if key not in changed:
            scaled = partial(_stored, element=element, name=name, group=group)
            pieces = tuple(
                tuple(term // unit * scaled(unit) if unit else scaled(term) for term in piece)
                for piece in ops.polynomials[cost]
            )
            if pieces not in index:
                index[pieces] = len(polynomials)
                polynomials.append(pieces)
            changed[key] = index[pieces]
        return changed[key]

    made = []
    for op in ops.ops:
        costs = list(op.costs)
        for quantity, (name, group) in wanted.items():
            i = QUANTITIES.index(quantity)
            if quantity != "weight" or is_matrix(ops, op):
                unit = op.experts.bytes if quantity == "weight" and op.experts is not None else 0  # experts are whole
                costs[i] = stored(costs[i], name, group, unit)
        experts = op.experts and replace(op.experts, bytes=formats.weight_bytes(op.experts.bytes, element))
        made.append(replace(op, costs=tuple(costs), experts=experts))
    return replace(ops, ops=tuple(made), polynomials=tuple(polynomials))


def is_matrix(ops: OpGraph, op: Op) -> bool:
    """Whether the weights of an op are a matrix: it multiplies by them, or looks rows up in them."""
    return op.experts is not None or any(any(piece) for piece in ops.polynomials[op.costs[FLOPS]]) or "embedding" in op.kind


def _stored(captured: int, element: int, name: str | None, group: int) -> int:
    """Bytes in a format, rounded up; as captured if it is None."""
    if name is None:
        return captured
    numbers = Fraction(captured, element)
    exact = numbers * BITS[name] / 8
    scales = SCALE * numbers / group if name == "int4" else Fraction(0)
    if captured < 0 and (exact.denominator != 1 or scales.denominator != 1):
        raise ValueError(f"{captured} bytes a step in {name} are no whole number of bytes")
    return ceil(exact) + SCALE * ceil(scales / SCALE)
