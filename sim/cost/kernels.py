"""The kernels of a step: one per op, in a batch for each sequence or for all of them."""

from __future__ import annotations

import numpy as np

from models.graph import IntArray, OpGraph, StepLanes
from sim.cost.calls import Sizes, calls_of
from sim.cost.kernel import ONLY_MOVES, Kernel, Sized, Structure, costs_something, joined, keys_of
from sim.mapping.steps import BatchGraph

__all__ = ["ONLY_MOVES", "Kernel", "joined", "kernels", "kernels_of"]


def kernels(ops: OpGraph, context: IntArray) -> list[Kernel]:
    """One kernel per op, in order, at these contexts. Ops that are alike share one object.

    The bytes of a `kv_load` are also those of the ops that read what it loads, in equal parts: kernels read the cache.
    """
    nothing = np.zeros_like(context)
    return [parts[0] for parts in kernels_of(ops, StepLanes(sequence=nothing, token=nothing, context=context))]


def kernels_of(ops: OpGraph, steps: StepLanes) -> list[tuple[Kernel, ...]]:
    """The kernels of each op of some steps: one, or where an op serves all members one for prompts and one for decodes.

    In a batch what depends on the context is an op of each sequence, or one that does all.
    """
    if isinstance(ops, BatchGraph) and ops.template.together:
        sizes = Sizes(ops, steps)
        found: dict[int, tuple[Kernel, ...]] = {}
        for call in calls_of(ops.template):
            launches, _, _ = sizes.launches(call)
            found.update(dict.fromkeys(call.rows(ops)[:, 0].tolist(), tuple(launches)))
        return [found[i] for i in range(len(ops))]
    some, keys = costs_something(ops, ops.cost_index), keys_of(ops, ops.cost_index)
    structure, member = Structure(ops.ops, ops.member, some, keys), ops.member.tolist()
    costs, (batch, query, past) = ops.costs_of(steps), ops.sizes_of(steps)

    def sized(i: int) -> Sized:
        return Sized(ops.ops[i], costs[:, i], batch[i], query[i], past[i])

    made: dict[object, Kernel] = {}
    for i in range(len(ops)):
        key = (structure.key(i), member[i])
        if key not in made:
            made[key] = structure.kernel(i, sized)
    return [(made[structure.key(i), member[i]],) for i in range(len(ops))]
