"""Ops in place of groups of others: the common part of all fusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.graph import QUANTITIES, IntArray, Op, OpGraph
from models.polynomials import Polynomials, zero
from sim.base.topological import topological_order


@dataclass(frozen=True, slots=True)
class Replacement:
    """A chain of ops for a group of others. The first op of the chain gets all inputs of the group, each other one the one
    before it; what needed an op of the group needs the last of the chain.

    group: indices of the ops replaced; the chain stands where the first of them stood.
    chain: ops whose `inputs` do not matter.
    """

    group: Sequence[int]
    chain: Sequence[Op]


def cost(ops: OpGraph, group: int | Sequence[int], quantity: str) -> IntArray:
    """Cost of an op, or of several together: coefficients [piece, term]."""
    index = ops.cost_index[QUANTITIES.index(quantity), np.atleast_1d(group)]
    total: IntArray = ops.table[index].sum(axis=0)
    return total


def numbers(polynomials: Polynomials, ops: OpGraph, costs: Mapping[str, IntArray]) -> tuple[int, ...]:
    """`Op.costs` of an op with these costs [piece, term]; a quantity that is not named is 0."""
    none = zero(ops.breaks, ops.masks)
    return tuple(
        polynomials.number(tuple(map(tuple, costs[quantity].tolist())) if quantity in costs else none)
        for quantity in QUANTITIES
    )


def replaced(ops: OpGraph, replacements: Sequence[Replacement], polynomials: Polynomials) -> OpGraph:
    """The graph with groups replaced, in program order as far as dependencies allow; the same graph if there are none."""
    if not replacements:
        return ops
    chains = {each.group[0]: each.chain for each in replacements}
    first = list(range(len(ops.ops)))  # [op]: the first op of its group, or itself
    for each in replacements:
        for i in each.group:
            first[i] = each.group[0]
    inputs: dict[int, set[int]] = {}
    for i, op in enumerate(ops.ops):
        inputs.setdefault(first[i], set()).update(first[j] for j in op.inputs if first[j] != first[i])
    new_index: dict[int, int] = {}  # first of a group -> the op that has its result
    result: list[Op] = []
    order = topological_order(inputs)
    assert len(order) == len(inputs), "a group reads a result that is made from its own"
    for i in order:
        needed = tuple(sorted({new_index[j] for j in inputs[i]}))
        for op in chains.get(i, (ops.ops[i],)):
            result.append(replace(op, inputs=needed))
            needed = (len(result) - 1,)
        new_index[i] = len(result) - 1
    return replace(ops, ops=tuple(result), polynomials=tuple(polynomials))
