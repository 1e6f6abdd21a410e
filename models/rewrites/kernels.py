"""Traffic between kernels: what an op moves inside stays on chip.

A captured op counts the traffic of all its steps: a norm that converts to float32, squares, averages, multiplies. As one kernel
it reads the results of other ops once, and writes its own result once. So an op that writes more than its result writes that
result, and reads what its inputs have written, or what is left of its captured reads if these cannot all be external: each
intermediate is read at least once. Where less than nothing would be left, some are read by none, and this says nothing. The ops
of a layer's state are captured as the kernels that they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.formats import is_matrix, matrix_numbers
from models.graph import MONOMIALS, QUANTITIES, Op, OpGraph, Polynomial, terms
from models.masks import OF_ROWS
from models.op import HYPER, OF_STATE
from models.polynomials import Pieces, Polynomials, added, each_term, zero

ACT_READ, ACT_WRITE, VECTOR = (QUANTITIES.index(name) for name in ("act_read", "act_write", "vector_ops"))

#: Bytes of a number of a result, by torch's name.
SIZES = {"bool": 1, "bfloat16": 2, "float16": 2, "float32": 4, "int32": 4, "int64": 8, "complex64": 8}

#: Bytes of an index of an expert or token, as torch stores it.
INDEX = SIZES["int64"]

#: B, Q and N at which polynomials are compared.
_SAMPLE = (2, 3, 64)


def without_weight_casts(ops: OpGraph) -> OpGraph:
    """The op graph without conversions of weights to float32 in each step, as of the router of DeepSeek-V3 and of
    hyper-connections, which checkpoints have in float32.

    A kernel reads weights once, in the format that they are stored in, and converts them on the way to its registers.
    """
    polynomials = Polynomials(ops.polynomials)
    converted = tuple(_without_cast(ops, op, polynomials) for op in ops.ops)
    same = all(new is old for new, old in zip(converted, ops.ops, strict=True))
    return ops if same else replace(ops, ops=converted, polynomials=tuple(polynomials))


def _without_cast(ops: OpGraph, op: Op, polynomials: Polynomials) -> Op:
    """An op that does not copy its weights as float32; the same op if it does not now."""
    multiplies = op.dtype == "float32" and op.experts is None and is_matrix(ops, op)
    if not multiplies and op.kind != HYPER:
        return op
    numbers = matrix_numbers(ops, op)
    copied = {VECTOR: numbers, ACT_READ: SIZES["float32"] * numbers, ACT_WRITE: SIZES["float32"] * numbers}
    costs = {i: polynomials[op.costs[i]] for i in copied}
    if not numbers or any(costs[i][0][0] < amount for i, amount in copied.items()):
        return op
    result = op
    for i, amount in copied.items():
        rest = tuple((piece[0] - amount, *piece[1:]) for piece in costs[i])
        result = result.with_cost(i, polynomials.number(rest))
    return result


def between_kernels(ops: OpGraph) -> OpGraph:
    """The op graph in which activations are those that ops read of each other, and write for each other."""
    polynomials, compare = Polynomials(ops.polynomials), Comparison(ops)
    results = [result_bytes(ops, op, compare) for op in ops.ops]
    fused = tuple(_fused(ops, i, results, polynomials, compare) for i in range(len(ops)))
    return replace(ops, ops=fused, polynomials=tuple(polynomials))


class Comparison:
    """Compares polynomials of a graph by their values at a sample: results are products of B, Q and N, or pairs of a mask."""

    def __init__(self, ops: OpGraph) -> None:
        self._terms: list[int] = ops.terms_at(*np.array(_SAMPLE, dtype=np.int64)[:, None])[:, 0].tolist()

    def at(self, pieces: Pieces) -> int:
        """The value of a polynomial at the sample."""
        return sum(factor * term for factor, term in zip(pieces[0], self._terms, strict=True))

    def smaller(self, one: Pieces, other: Pieces) -> Pieces:
        return one if self.at(one) <= self.at(other) else other


def _fused(
    ops: OpGraph, i: int, results: Sequence[Pieces], polynomials: Polynomials, compare: Comparison
) -> Op:  # fmt: skip
    """An op with the traffic of one kernel. results: bytes of the result of each op."""
    op, result = ops.ops[i], results[i]
    read, write = ops.polynomials[op.costs[ACT_READ]], ops.polynomials[op.costs[ACT_WRITE]]
    inside = added([write, each_term(lambda term: -term, result)])
    if compare.at(inside) <= 0 or op.splits > 1 or op.kind in OF_STATE:
        return op
    sources = [results[j] for j in op.inputs]
    if op.kind in ("norm", "rope"):  # of fused projections they read their own part
        sources = [compare.smaller(source, result) for source in sources]
    left = added([read, each_term(lambda term: -term, inside)])
    outside = added([zero(ops.breaks, ops.masks), *sources])
    if all(term >= 0 for piece in left for term in piece):
        outside = compare.smaller(outside, left)
    changed = op.with_cost(ACT_READ, polynomials.number(compare.smaller(outside, read)))
    return changed.with_cost(ACT_WRITE, polynomials.number(result))


def result_bytes(ops: OpGraph, op: Op, compare: Comparison) -> Pieces:
    """Bytes of the result of an op; those that it writes, if its shape does not say."""
    write = ops.polynomials[op.costs[ACT_WRITE]]
    size = SIZES.get(op.dtype, 0)
    if op.kind == "router":  # weights of the experts, and their indices
        size += INDEX
    elif op.kind == "indexer":  # the tokens that it chooses
        size = INDEX
    elif (op.kind, op.part) == ("rope", "table") and op.dtype != "complex64":  # cosine and sine
        size *= 2
    if not size or not op.shape or not any(map(any, write)):
        return write
    masked = [number for number in range(len(ops.masks)) if any(any(piece[_of_mask(number)]) for piece in write)]
    if any(ops.masks[number].kind in OF_ROWS for number in masked) or any("floor(" in each for each in op.shape):
        return write
    where = _of_mask(masked[0]) if masked else slice(len(MONOMIALS))
    whole = []
    for start in (0, *ops.breaks):
        elements = _pairs(op.shape) if masked else _elements(op.shape, start)
        if elements is None or len(masked) > 1:
            return write
        piece = [0] * terms(ops.masks)
        piece[where] = [size * term for term in elements]
        whole.append(tuple(piece))
    return compare.smaller(tuple(whole), write)


def _of_mask(number: int) -> slice:
    """The terms of a mask: its pairs, and B times these."""
    first = len(MONOMIALS) + 2 * number
    return slice(first, first + 2)


def _pairs(shape: Sequence[str]) -> Polynomial | None:
    """Numbers of a tensor for each pair of a query and a key, alone and by batch: queries times keys stand for the pairs."""
    product = _product([dimension for dimension in shape if "N" not in dimension], 0)
    if {powers[1:] for powers in product} not in ({(0, 0)}, {(1, 0)}):  # a step of one new token has no dimension of queries
        return None
    by_batch = {powers[0]: count for powers, count in product.items()}
    return None if by_batch.keys() - {0, 1} else (by_batch.get(0, 0), by_batch.get(1, 0))


def _elements(shape: Sequence[str], start: int) -> Polynomial | None:
    """The product of dimensions, such as `B*Q` and `min(N,512)+1`, for contexts from `start`; None if it has other terms."""
    product = _product(shape, start)
    return None if product.keys() - set(MONOMIALS) else tuple(product.get(powers, 0) for powers in MONOMIALS)


def _product(shape: Sequence[str], start: int) -> dict[tuple[int, ...], int]:
    """Factors of the product of dimensions, by powers of B, Q and N."""
    product: dict[tuple[int, ...], int] = {(0, 0, 0): 1}
    for dimension in shape:
        summands = [_term(text, start) for text in re.split(r"\+(?![^(]*\))", dimension)]
        larger: dict[tuple[int, ...], int] = {}
        for powers, count in product.items():
            for more, times in summands:
                key = tuple(map(sum, zip(powers, more, strict=True)))
                larger[key] = larger.get(key, 0) + count * times
        product = larger
    return product


def _term(text: str, start: int) -> tuple[tuple[int, int, int], int]:
    """Powers of B, Q and N of a term, and its factor."""
    powers, factor = [0, 0, 0], 1
    for word in text.split("*"):
        bounded = re.fullmatch(r"min\(N,(\d+)\)", word)
        if word in ("B", "Q", "N"):
            powers["BQN".index(word)] += 1
        elif bounded is None:
            factor *= int(word)
        elif start >= int(bounded[1]):
            factor *= int(bounded[1])
        else:
            powers[2] += 1
    return (powers[0], powers[1], powers[2]), factor
