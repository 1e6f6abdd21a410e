"""Number formats: weights, KV cache and activations of a model stored in fewer bits.

| class                | which bytes                                     | stored as                                         |
| -------------------- | ----------------------------------------------- | ------------------------------------------------- |
| weights              | of matrix products and embeddings               | bits of the format; int4: and a scale per `group` |
| KV cache             | all bytes read and appended                     | bits of the format                                |
| activations          | all bytes read and written                      | in proportion to the captured element             |

Norms keep their captured weights, as in quantized models; they are a ten-thousandth of all weights. Fractions of bytes are
rounded up. `models.rewrites.formats` applies formats to an op graph.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Literal

from pydantic import Field

from models.graph import QUANTITIES, Op, OpGraph
from sim.base.section import Section, Whole

BITS = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4}
ELEMENT = {"bfloat16": 2, "float16": 2, "float32": 4}  # bytes, by torch's name

#: Bytes of the scale that each group of int4 weights has: one number of 16 bits (as in GPTQ and AWQ, without zero points).
SCALE = 2

WEIGHT, FLOPS = QUANTITIES.index("weight"), QUANTITIES.index("flops")


class Formats(Section):
    """Number formats in memory. Arithmetic stays that of the model; null: as captured."""

    weights: Literal["bf16", "fp8", "int8", "int4"] | None = Field(
        default=None, description="Weights of matrix products and embeddings; norms stay as captured."
    )
    kv: Literal["bf16", "fp8", "int8"] | None = Field(default=None, description="The KV cache.")
    activations: Literal["bf16"] | None = Field(default=None, description="Results between ops, where they are off chip.")
    group: Whole = Field(default=128, ge=1, le=2**20, description="Number of int4 weights that share a scale of 2 bytes.")

    def weight_bytes(self, captured: int, element: int) -> int:
        """Bytes in this format of weights that take `captured` bytes at `element` bytes each: ceil(n * bits / 8) + scales."""
        return stored_bytes(captured, element, self.weights, self.group)


def is_matrix(ops: OpGraph, op: Op) -> bool:
    """Whether the weights of an op are a matrix: it multiplies by them, or looks rows up in them."""
    return op.experts is not None or any(any(piece) for piece in ops.polynomials[op.costs[FLOPS]]) or "embedding" in op.kind


def stored_bytes(captured: int, element: int, name: str | None, group: int) -> int:
    """Bytes in a format, rounded up; as captured if `name` is None. element: bytes of a captured number.

    group: numbers that share a scale, in int4. Raises ValueError for a negative number of bytes that would have to be rounded.
    """
    if name is None:
        return captured
    numbers = Fraction(captured, element)
    exact = numbers * BITS[name] / 8
    scales = SCALE * numbers / group if name == "int4" else Fraction(0)
    if captured < 0 and (exact.denominator != 1 or scales.denominator != 1):
        raise ValueError(f"{captured} bytes a step in {name} are not a whole number of bytes")
    return ceil(exact) + SCALE * ceil(scales / SCALE)
