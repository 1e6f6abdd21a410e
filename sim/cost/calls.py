"""Calls: the launches of a device in a step that repeats a template, each for all members at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import IntArray, StepLanes
from sim.cost.kernel import BESIDE, SUMMED, Kernel, Sized, Structure, costs_something, keys_of
from sim.mapping.steps import LOGITS, MEMBERS, TOKENS, BatchGraph, Template


@dataclass(frozen=True, slots=True)
class Call:
    """One launch of a device in a step that repeats a template: an op of the template for all members.

    shared: ops of the template that serve all members and cost the same, such as one in each layer. own: in their place, ops of
    the members, by whether a member feeds in several tokens; with kernels for all members, these are the same ops.
    structures: facts that kernels depend on beside sizes, by whether a member feeds in several tokens.
    """

    shared: tuple[int, ...]
    own: dict[bool, tuple[int, ...]]
    structures: dict[bool, Structure]

    @property
    def first(self) -> int:
        """The first op in program order."""
        return self.shared[0] if self.shared else min(ops[0] for ops in self.own.values())

    def rows(self, ops: BatchGraph) -> npt.NDArray[np.intp]:
        """The ops of a step [op like another, member]."""
        if self.shared or ops.template.together:
            of = self.shared or next(iter(self.own.values()))
            return ops.repeated.place(np.array(of))[:, None]
        several = _several(ops)
        member = _members(self, several)
        template = np.array([self.own[several[each]] for each in member.tolist()])  # [member, op like another]
        return ops.repeated.place(template.T, member)


def _several(ops: BatchGraph) -> Sequence[bool]:
    """For each member, whether it feeds in several tokens: none does while caches are swapped."""
    return (False,) * len(ops.shape.several) if ops.shape.swap else ops.shape.several


def _members(call: Call, several: Sequence[bool]) -> npt.NDArray[np.intp]:
    """Members that have such an op."""
    return np.flatnonzero([each in call.own for each in several])


def calls_of(template: Template) -> list[Call]:
    """All calls of a step that repeats a template, in program order. Its members share no prompts."""
    ops, owner = template.ops, template.owner
    some = {False: costs_something(ops, ops.cost_index), True: costs_something(ops, ops.several_index)}
    structures = {False: Structure(ops.ops, owner, some[False], keys_of(ops, ops.cost_index))}
    structures[True] = structures[False]
    if template.mixed:
        several = [replace(op.several, inputs=op.inputs) if op.several else op for op in ops.ops]
        structures[True] = Structure(several, owner, some[True], keys_of(ops, ops.several_index))
    shared: dict[object, list[int]] = {}
    for i, whose in enumerate(owner.tolist()):
        if whose in (TOKENS, LOGITS):
            shared.setdefault((structures[False].key(i), whose), []).append(i)
    alike: dict[object, list[dict[bool, int]]] = {}
    for same_role in _own_by_role(template, some):
        key = tuple((several, structures[several].key(i)) for several, i in sorted(same_role.items()))
        alike.setdefault(key, []).append(same_role)
    calls = [Call(tuple(same), {}, structures) for same in shared.values()]
    for same in alike.values():
        own = {several: tuple(each[several] for each in same) for several in sorted(same[0])}
        calls.append(Call((), own, structures))
    return sorted(calls, key=lambda call: call.first)


def _own_by_role(template: Template, some: Mapping[bool, npt.NDArray[np.bool_]]) -> list[dict[bool, int]]:
    """Ops of members that correspond to each other, by whether the member feeds in several tokens.

    some: [quantity, op], whether the op costs any, by the same.
    """
    roles: dict[object, dict[bool, int]] = {}
    seen: Counter[object] = Counter()
    member_sort = {member: several for several, member in template.sorts.items()}
    for i, (op, whose) in enumerate(zip(template.ops.ops, template.owner.tolist(), strict=True)):
        if whose in (TOKENS, LOGITS):
            continue
        sorts = template.shape.several if whose == MEMBERS else [member_sort[whose]] if whose in member_sort else []
        role = (op.kind, op.part, op.path)
        for several in set(sorts):
            # An op that costs nothing for some members is not run for them: no mask for one token.
            if not template.mixed or some[several][:, i].any() or not some[not several][:, i].any():
                roles.setdefault((role, seen[role, whose]), {})[several] = i
        seen[role, whose] += 1
    return list(roles.values())


class Sizes:
    """Values of all polynomials of a graph in some steps, from which its calls are evaluated."""

    def __init__(self, ops: BatchGraph, steps: StepLanes) -> None:
        assert steps.members is not None
        self.ops, self.query = ops, steps.members.query  # [member, lane]
        self.parameters = ops.parameters(steps)
        lanes = self.parameters[0].shape
        self.values = ops.evaluate(*(column.ravel() for column in self.parameters)).reshape(-1, *lanes)
        self.costs = ops.costs_of(steps) if ops.routed else None

    def of_all(self) -> tuple[int, ...]:
        """New tokens and rows of logits of each lane, for all members together."""
        return tuple(self.parameters[0][:2].ravel().tolist())

    def depends_on_all_alone(self, call: Call) -> bool:
        """Whether the kernel of a call depends on `of_all` alone, not on single members or the experts that they choose."""
        if not call.shared:
            return False
        of = call.structures[False]
        return self.ops.template.ops.ops[call.shared[0]].experts is None and not of.loads[call.shared[0]]

    def launches(self, call: Call) -> tuple[list[Kernel], IntArray, IntArray]:
        """The kernels of a call, prompts apart from decodes, and bytes of memory and in all that its ops move [op, lane]."""
        if call.shared:
            kernel = call.structures[False].kernel(call.shared[0], self._shared)
            return [kernel], kernel.memory[None], kernel.shapes.bytes[None]
        swap, together = bool(self.ops.shape.swap), self.ops.template.together
        parts, moved = [], np.zeros((2, *self.query.shape), dtype=np.int64)
        for several in call.own if together else dict.fromkeys(_several(self.ops)):
            if several not in call.own:
                continue
            chosen = self.query > 1 if several else self.query <= 1 if swap else self.query == 1
            member, lane = np.nonzero(chosen)
            if not len(member):
                continue
            structure = call.structures[several]
            each = structure.kernel(call.own[several][0], partial(self._own, structure, member, lane))
            moved[0, member, lane], moved[1, member, lane] = each.memory, each.shapes.bytes
            parts.append(_summed(each, lane, self.query.shape[1]))
        sorts: dict[tuple[str, ...], list[Kernel]] = {}
        for part in parts:
            sorts.setdefault(part.kinds, []).append(part)
        kernels = [_joined(of_sort) for of_sort in sorts.values()]
        if together:
            return kernels, np.asarray(moved[0].sum(axis=0))[None], np.asarray(moved[1].sum(axis=0))[None]
        members = _members(call, _several(self.ops))
        return kernels, moved[0, members], moved[1, members]

    def _shared(self, i: int) -> Sized:
        """An op of the template that serves all."""
        template = self.ops.template
        op, column = template.ops.ops[i], int(template.column[i])
        if self.costs is not None:
            costs = self.costs[:, int(self.ops.repeated.place(np.array([i]))[0])]
        else:
            costs = self.values[list(op.costs), column]
        return Sized(op, costs, *(each[column] for each in self.parameters))

    def _own(self, structure: Structure, member: IntArray, lane: IntArray, i: int) -> Sized:
        """An op of some members in some lanes."""
        op = structure.ops[i]
        column = member + 2 + (len(self.query) if op.kind == "kv_load" else 0)
        costs = self.values[np.array(op.costs)[:, None], column, lane]
        return Sized(op, costs, *(each[column, lane] for each in self.parameters))


def _joined(parts: Sequence[Kernel]) -> Kernel:
    """Kernels of `_summed` as one, whose contexts are still sums over rows."""
    shapes = parts[0].shapes
    sums = {name: np.asarray(sum(getattr(p.shapes, name) for p in parts)) for name in (*SUMMED, "context")}
    sums["context"] //= np.maximum(sums["rows"], 1)
    beside: dict[str, Any] = {name: np.asarray(sum(getattr(p, name) for p in parts)) for name in BESIDE}
    return replace(parts[0], shapes=replace(shapes, **sums), **beside)


def _summed(kernel: Kernel, lane: npt.NDArray[np.intp], lanes: int) -> Kernel:
    """One kernel for each step, for all rows of its members; its context is the sum over rows.

    kernel: its entries are members of steps. lane: [entry], the step that the entry belongs to.
    """

    def total(column: IntArray) -> IntArray:
        result = np.zeros(lanes, dtype=np.int64)
        np.add.at(result, lane, column)
        return result

    shapes = kernel.shapes
    first = np.full(lanes, len(lane))
    np.minimum.at(first, lane, np.arange(len(lane)))
    alike = {
        name: np.append(getattr(shapes, name), 0)[first]  # those of the first member; 0 if a step has none
        for name in ("n", "k", "heads", "kv_heads", "head_dim")
    }
    sums = {name: total(getattr(shapes, name)) for name in SUMMED}
    context = total(shapes.context * shapes.rows)
    beside: dict[str, Any] = {name: total(getattr(kernel, name)) for name in BESIDE}
    return replace(kernel, shapes=replace(shapes, **sums, **alike, context=context), **beside)
