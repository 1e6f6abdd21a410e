"""Projections of the same input as one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.graph import QUANTITIES, OpGraph
from models.polynomials import Polynomials
from models.rewrites.groups import Replacement, cost, numbers, replaced

#: Kinds that are fused, by the kind of the result.
PROJECTIONS = {"qkv_proj": ("q_proj", "k_proj", "v_proj", "kv_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def fuse_projections(ops: OpGraph, kind: str) -> OpGraph:
    """Make the projections of the same results one op. kind: of the result, a key of `PROJECTIONS`."""
    polynomials = Polynomials(ops.polynomials)
    replacements = []
    for group in _groups(ops, PROJECTIONS[kind]):
        costs = {quantity: cost(ops, group, quantity) for quantity in QUANTITIES}
        reads = [cost(ops, i, "act_read") for i in group]
        if all(np.array_equal(reads[0], other) for other in reads):  # they read their input, and nothing else
            costs["act_read"] = reads[0]
        first = ops.ops[group[0]]
        module = first.path.rpartition(".")[0]
        fused = replace(first, kind=kind, path=module, shape=_side_by_side(ops, group), costs=numbers(polynomials, ops, costs))
        replacements.append(Replacement(group, (fused,)))
    return replaced(ops, replacements, polynomials)


def _side_by_side(ops: OpGraph, group: Sequence[int]) -> tuple[str, ...]:
    """The shape of the results of some products as one: their columns side by side; empty if that is not known."""
    shapes = [ops.ops[i].shape for i in group]
    rows = {shape[:-1] for shape in shapes}
    columns = [shape[-1] for shape in shapes if shape]
    if len(rows) > 1 or len(columns) < len(shapes) or not all(map(str.isdecimal, columns)):
        return ()
    return (*rows.pop(), str(sum(map(int, columns))))


def _groups(ops: OpGraph, kinds: Sequence[str]) -> list[list[int]]:
    """Groups of two or more ops of these kinds that read the same results in the same layer."""
    groups: dict[object, list[int]] = {}
    for i, op in enumerate(ops.ops):
        if op.kind in kinds:
            groups.setdefault((op.layer, op.part, op.inputs, op.path.rpartition(".")[0]), []).append(i)
    return [group for group in groups.values() if len(group) > 1]
