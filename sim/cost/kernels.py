"""Ops as kernels: their shapes as device profiles measure them, and the names that a timing of them may have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.formats import ELEMENT
from models.graph import QUANTITIES, IntArray, Op, OpGraph, StepLanes
from sim.cost.profile import ATTENTION, DIMENSIONS, ELEMENTWISE, MULTI_HEAD, PRODUCT, UNITS, Shapes
from sim.mapping.steps import LOGITS, MEMBERS, TOKENS, BatchGraph, Template

FLOPS, VECTOR_OPS, WEIGHT, KV_READ, KV_WRITE, ACT_READ, ACT_WRITE = range(len(QUANTITIES))

#: Ops that compute nothing.
ONLY_MOVES = frozenset(("kv_load", "kv_store", "kv_swap_out", "kv_swap_in"))

_MIN = re.compile(r"min\(N,(\d+)\)")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An op as a device runs it.

    kinds: names that a timing of it may have, the most particular first. shapes: columns with one entry per context.
    read, written: its bytes, which sum to `shapes.bytes`; memory: of these, weights and KV cache.
    """

    kinds: tuple[str, ...]
    dtype: str
    shapes: Shapes
    read: IntArray
    written: IntArray
    memory: IntArray

    @property
    def kind(self) -> str:
        """Kind of its measurement: weight matmuls are one kernel, whatever the model calls them."""
        return PRODUCT if PRODUCT in self.kinds else self.kinds[0]

    def sample(self, lane: int = 0) -> dict[str, Any]:
        """Its columns of `sim.cost.profile.samples` at one of its contexts, to which a measurement adds a duration."""
        shapes = {name: int(getattr(self.shapes, name)[lane]) for name in (*DIMENSIONS[:-1], *UNITS[:2], "rows")}
        return {
            **shapes, "kind": self.kind, "dtype": self.dtype, "bytes_read": int(self.read[lane]),
            "bytes_written": int(self.written[lane]), "bytes_shared": int(self.shapes.shared[lane]),
        }  # fmt: skip


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
    structure, member = _Structure(ops.ops, ops.member, _some(ops, ops.cost_index)), ops.member.tolist()
    costs, (batch, query, past) = ops.costs_of(steps), ops.sizes_of(steps)

    def sized(i: int) -> _Sized:
        return _Sized(ops.ops[i], costs[:, i], batch[i], query[i], past[i])

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
    sums = {name: sum((getattr(p.shapes, name) for p in parts), np.zeros_like(first.rows)) for name in _SUMMED}
    attended = sum((p.shapes.context * p.shapes.rows for p in parts), np.zeros_like(first.rows))
    shapes = replace(first, **sums, context=attended // np.maximum(sums["rows"], 1))
    read, written, memory = (np.asarray(sum(getattr(p, name) for p in parts)) for name in ("read", "written", "memory"))
    return Kernel(parts[0].kinds, parts[0].dtype, shapes, read, written, memory)


_SUMMED = ("rows", "flops", "elements", "bytes", "shared")


@dataclass(frozen=True, slots=True)
class Call:
    """One launch of a device in a step that repeats a template: an op of the template for all members.

    shared: ops of the template that serve all and cost the same, such as one in each layer. own: instead, by whether members
    feed in several tokens, such ops of theirs. Where kernels serve all members, both are the same ops.
    structures: facts that kernels depend on beside sizes, by the same.
    """

    shared: tuple[int, ...]
    own: dict[bool, tuple[int, ...]]
    structures: dict[bool, _Structure]

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
    some = {False: _some(ops, ops.cost_index), True: _some(ops, ops.several_index)}
    structures = {False: _Structure(ops.ops, owner, some[False])}
    structures[True] = structures[False]
    if template.mixed:
        structures[True] = _Structure([op.several or op for op in ops.ops], owner, some[True])
    shared: dict[object, list[int]] = {}
    roles: dict[object, dict[bool, int]] = {}
    seen: Counter[object] = Counter()
    sort_of = {member: several for several, member in template.sorts.items()}
    for i, (op, whose) in enumerate(zip(ops.ops, owner.tolist(), strict=True)):
        if whose in (TOKENS, LOGITS):
            shared.setdefault((structures[False].key(i), whose), []).append(i)
            continue
        sorts = template.shape.several if whose == MEMBERS else [sort_of[whose]] if whose in sort_of else []
        role = (op.kind, op.part, op.path)
        for several in set(sorts):
            # What costs nothing for some members is not run for them: no mask for one token.
            if not template.mixed or some[several][:, i].any() or not some[not several][:, i].any():
                roles.setdefault((role, seen[role, whose]), {})[several] = i
        seen[role, whose] += 1
    groups: dict[object, list[dict[bool, int]]] = {}
    for sorted_ops in roles.values():
        key = tuple((several, structures[several].key(i)) for several, i in sorted(sorted_ops.items()))
        groups.setdefault(key, []).append(sorted_ops)
    calls = [Call(tuple(same), {}, structures) for same in shared.values()]
    for same in groups.values():
        own = {several: tuple(each[several] for each in same) for several in sorted(same[0])}
        calls.append(Call((), own, structures))
    return sorted(calls, key=lambda call: call.first)


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

    def kernel(self, call: Call) -> tuple[Kernel, IntArray, IntArray]:
        """The kernel of a call, and the bytes of memory and of all that each of its ops moves [op, lane]."""
        if call.shared:
            kernel = call.structures[False].kernel(call.shared[0], self._shared)
            return kernel, kernel.memory[None], kernel.shapes.bytes[None]
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
        kernel = _joined(parts)
        if together:
            return kernel, kernel.memory[None], kernel.shapes.bytes[None]
        members = _members(call, _several(self.ops))
        return kernel, moved[0, members], moved[1, members]

    def _shared(self, i: int) -> _Sized:
        """An op of the template that serves all."""
        template = self.ops.template
        op, column = template.ops.ops[i], int(template.column[i])
        if self.costs is not None:
            costs = self.costs[:, int(self.ops.repeated.place(np.array([i]))[0])]
        else:
            costs = self.values[list(op.costs), column]
        return _Sized(op, costs, *(each[column] for each in self.parameters))

    def _own(self, structure: _Structure, member: IntArray, lane: IntArray, i: int) -> _Sized:
        """An op of some members in some lanes."""
        op = structure.ops[i]
        column = member + 2 + (len(self.query) if op.kind == "kv_load" else 0)
        costs = self.values[np.array(op.costs)[:, None], column, lane]
        return _Sized(op, costs, *(each[column, lane] for each in self.parameters))


def _joined(parts: Sequence[Kernel]) -> Kernel:
    """Kernels of `_summed` as one: `together`, where contexts are still sums over rows."""
    shapes = parts[0].shapes
    sums = {name: np.asarray(sum(getattr(p.shapes, name) for p in parts)) for name in (*_SUMMED, "context")}
    sums["context"] //= np.maximum(sums["rows"], 1)
    read, written, memory = (np.asarray(sum(getattr(p, name) for p in parts)) for name in ("read", "written", "memory"))
    return Kernel(parts[0].kinds, parts[0].dtype, replace(shapes, **sums), read, written, memory)


def _summed(kernel: Kernel, lane: npt.NDArray[np.intp], lanes: int) -> Kernel:
    """A kernel whose entries are members of some steps, as the one that does all their rows, of whose contexts it has the sum.

    lane: [entry], of which step.
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
    sums = {name: total(getattr(shapes, name)) for name in _SUMMED}
    context = total(shapes.context * shapes.rows)
    read, written, memory = (total(getattr(kernel, name)) for name in ("read", "written", "memory"))
    return Kernel(kernel.kinds, kernel.dtype, replace(shapes, **sums, **alike, context=context), read, written, memory)


class _Sized(NamedTuple):
    """An op at some sizes. costs: int64 [quantity, entry]. batch, query, past: B, Q and N [entry]."""

    op: Op
    costs: IntArray
    batch: IntArray
    query: IntArray
    past: IntArray

    @property
    def rows(self) -> IntArray:
        return self.batch * self.query

    def heads(self) -> Attention:
        """Heads and context of scores [..., group of queries, keys], or of fused attention."""
        op = self.op
        per_head = self.costs[FLOPS] // np.maximum(2 * self.rows * op.heads, 1)
        last, group = self.extent(op.shape[-1]), np.maximum(self.extent(op.shape[-2]), 1)
        kv_heads = op.heads * self.query // group
        if op.kind == ATTENTION:  # results [..., group, head_dim] of two products
            return Attention(kv_heads, last, per_head // np.maximum(2 * last, 1))
        return Attention(kv_heads, per_head // np.maximum(last, 1), last)

    def extent(self, text: str) -> IntArray:
        """A dimension of an op such as `8*B` or `min(N,4095)+1`."""
        limit = _MIN.search(text)
        past = np.minimum(self.past, int(limit[1])) if limit else self.past
        value: Mapping[str, IntArray] = {"B": self.batch, "Q": self.query, "N": past}
        terms = [
            prod((value[f] if f in value else int(f) for f in term.split("*")), start=1)
            for term in _MIN.sub("N", text).replace("-", "+-").split("+")
            if term
        ]
        return np.broadcast_to(np.asarray(sum(terms), dtype=np.int64), past.shape)

    def width(self) -> IntArray:
        """Numbers of the result of one row; of fused products, which have no one shape, by the bytes they write."""
        op = self.op
        if not op.shape:
            return np.asarray(self.costs[ACT_WRITE] // np.maximum(ELEMENT.get(op.dtype, 2) * self.rows, 1))
        results = np.prod([self.extent(text) for text in op.shape], axis=0, dtype=np.int64)
        return np.asarray(results // np.maximum(self.rows, 1))


class Attention(NamedTuple):
    """KV heads, size of a head, and tokens attended to [entry]."""

    kv_heads: IntArray
    head_dim: IntArray
    context: IntArray


class _Structure:
    """Facts that the kernels of a graph depend on beside sizes.

    readers: of each op, how many need it. loads: KV loads that each needs. attention: the op that tells the heads of all of its
    layer and member, -1 if none does.
    """

    def __init__(self, ops: Sequence[Op], owner: IntArray, some: npt.NDArray[np.bool_]) -> None:
        self.ops = ops
        self.readers = [0] * len(ops)
        self.loads: list[list[int]] = []
        first: dict[tuple[int, int], int] = {}
        for i, (op, whose, computes) in enumerate(zip(ops, owner.tolist(), some[FLOPS].tolist(), strict=True)):
            self.loads.append([j for j in op.inputs if ops[j].kind == "kv_load"])
            for j in op.inputs:
                self.readers[j] += 1
            if op.heads and computes and len(op.shape) > 1:
                first.setdefault((op.layer, whose), i)
        self.attention = [first.get((op.layer, whose), -1) for op, whose in zip(ops, owner.tolist(), strict=True)]

    def key(self, i: int) -> object:
        """Ops of one member that are alike in this have the same kernel."""
        op, of = self.ops[i], self.attention[i]
        loads = tuple((self.ops[j].costs[KV_READ], self.readers[j]) for j in self.loads[i])
        attention = (
            (self.ops[of].kind, self.ops[of].heads, self.ops[of].shape, self.ops[of].costs) if op.heads and of >= 0 else ()
        )
        routed = op.layer if op.experts is not None else -1  # in each layer the tokens choose anew
        return (op.kind, op.dtype, op.heads, op.shape, op.costs, loads, attention, routed)

    def kernel(self, i: int, sized: Callable[[int], _Sized]) -> Kernel:
        """The kernel of an op. sized: ops by number, at the sizes that are meant."""
        at = sized(i)
        op, costs, rows = at.op, at.costs, at.rows
        zero = np.zeros_like(rows)
        cached = costs[WEIGHT] + costs[KV_READ]
        for j in self.loads[i]:  # its part of what others have loaded
            cached = cached + sized(j).costs[KV_READ] // self.readers[j]
        read, written = cached + costs[ACT_READ], costs[KV_WRITE] + costs[ACT_WRITE]
        product = bool(costs[FLOPS].any() and costs[WEIGHT].any())
        per_head = bool(op.heads) and op.kind not in ONLY_MOVES
        known = per_head and self.attention[i] >= 0
        attention = sized(self.attention[i]).heads() if known else Attention(zero, zero, zero)
        kinds: tuple[str, ...] = (op.kind, PRODUCT if product else ELEMENTWISE)
        if op.kind == ATTENTION and (attention.kv_heads == op.heads).all():
            kinds = (MULTI_HEAD, ATTENTION)
        elif per_head or op.kind in ONLY_MOVES:
            kinds = (op.kind,)
        n = zero if per_head else at.width()
        shapes = Shapes(
            rows=rows, n=n,
            k=costs[FLOPS] // np.maximum(2 * rows * n, 1) if product else zero,
            heads=np.full_like(rows, op.heads if per_head else 0), **attention._asdict(),
            flops=costs[FLOPS], elements=costs[VECTOR_OPS], bytes=read + written,
            shared=zero if per_head else costs[WEIGHT],
        )  # fmt: skip
        return Kernel(kinds, op.dtype, shapes, read, written, cached + costs[KV_WRITE])


def _some(ops: OpGraph, index: IntArray) -> npt.NDArray[np.bool_]:
    """[quantity, op]: whether there is any of it, at some size of the step."""
    found: npt.NDArray[np.bool_] = (ops.table != 0).any(axis=(1, 2))[index]
    return found
