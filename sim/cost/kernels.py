"""The kernels of a step: one per op, in a batch for each sequence or for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.graph import IntArray, OpGraph, StepLanes
from sim.cost.calls import Sizes, calls_of
from sim.cost.kernel import ONLY_MOVES, SUMMED, Kernel, Sized, Structure, costs_something
from sim.mapping.steps import BatchGraph

__all__ = ["ONLY_MOVES", "Kernel", "kernels", "kernels_of", "together"]


def kernels(ops: OpGraph, context: IntArray) -> list[Kernel]:
    """One kernel per op, in order, at these contexts. Ops that are alike share one object.

    The bytes of a `kv_load` are also those of the ops that read what it loads, in equal parts: kernels read the cache.
    """
    nothing = np.zeros_like(context)
    return kernels_of(ops, StepLanes(sequence=nothing, token=nothing, context=context))


def kernels_of(ops: OpGraph, steps: StepLanes) -> list[Kernel]:
    """The kernels of some steps. In a batch what depends on the context is an op of each sequence, or one that does all."""
    if isinstance(ops, BatchGraph) and ops.template.together:
        sizes, result = Sizes(ops, steps), np.empty(len(ops), dtype=np.object_)
        for call in calls_of(ops.template):
            result[call.rows(ops)[:, 0]] = sizes.kernel(call)[0]
        return list(result)
    structure, member = Structure(ops.ops, ops.member, costs_something(ops, ops.cost_index)), ops.member.tolist()
    costs, (batch, query, past) = ops.costs_of(steps), ops.sizes_of(steps)

    def sized(i: int) -> Sized:
        return Sized(ops.ops[i], costs[:, i], batch[i], query[i], past[i])

    made: dict[object, Kernel] = {}
    for i in range(len(ops)):
        key = (structure.key(i), member[i])
        if key not in made:
            made[key] = structure.kernel(i, sized)
    return [made[structure.key(i), member[i]] for i in range(len(ops))]


def together(parts: Sequence[Kernel]) -> Kernel:
    """Kernels of several sequences as the one that does all their rows; its context is the mean over rows."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].shapes
    sums = {name: sum((getattr(p.shapes, name) for p in parts), np.zeros_like(first.rows)) for name in SUMMED}
    attended = sum((p.shapes.context * p.shapes.rows for p in parts), np.zeros_like(first.rows))
    shapes = replace(first, **sums, context=attended // np.maximum(sums["rows"], 1))
    read, written, memory = (np.asarray(sum(getattr(p, name) for p in parts)) for name in ("read", "written", "memory"))
    return Kernel(parts[0].kinds, parts[0].dtype, shapes, read, written, memory)
