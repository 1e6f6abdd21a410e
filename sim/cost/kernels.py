"""Ops as kernels: their shapes as device profiles measure them, and the names that a timing of them may have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.batch import BatchGraph
from sim.formats import ELEMENT
from sim.graph import QUANTITIES, IntArray, Members, Op, OpGraph, StepLanes
from sim.profile import ATTENTION, DIMENSIONS, ELEMENTWISE, MULTI_HEAD, PRODUCT, UNITS, Shapes

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
        """What a measurement of it is called: products by weights are one kernel, whatever the model calls them."""
        return PRODUCT if PRODUCT in self.kinds else self.kinds[0]

    def sample(self, lane: int = 0) -> dict[str, Any]:
        """Its columns of `sim.profile.samples` at one of its contexts, to which a measurement adds a duration."""
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
    if not isinstance(ops, BatchGraph) or not ops.template.together:
        return _kernels(ops, steps, range(len(ops)))
    summed = ops.column < 0
    shared = dict(zip(np.flatnonzero(~summed).tolist(), _kernels(ops, steps, np.flatnonzero(~summed).tolist()), strict=True))
    ofall = dict(zip(np.flatnonzero(summed).tolist(), _of_all(ops, steps, np.flatnonzero(summed).tolist()), strict=True))
    return [shared[i] if i in shared else ofall[i] for i in range(len(ops))]


def _kernels(ops: OpGraph, steps: StepLanes, chosen: Sequence[int]) -> list[Kernel]:
    """Those of some ops."""
    shapes = _Shapes(ops, steps, chosen)
    made: dict[tuple[object, ...], Kernel] = {}
    result = []
    member = ops.member.tolist()
    for i in chosen:
        op = ops.ops[i]
        loads = tuple(ops.ops[j].costs[KV_READ] for j in op.inputs if ops.ops[j].kind == "kv_load")
        attention = tuple(column.tobytes() for column in shapes.attention.get(shapes.owner(i), ())) if op.heads else ()
        routed = op.layer if op.experts is not None else -1  # in each layer the tokens choose anew
        key = (op.kind, op.dtype, op.heads, op.shape, op.costs, member[i], loads, attention, routed)
        if key not in made:
            made[key] = shapes.kernel(i)
        result.append(made[key])
    return result


def _of_all(ops: BatchGraph, steps: StepLanes, chosen: Sequence[int]) -> list[Kernel]:
    """Kernels that do the rows of all members: what each of these would be asked for alone, together."""
    members = steps.members
    assert members is not None
    parts: list[list[Kernel]] = [[] for _ in chosen]
    some = (ops.table != 0).any(axis=(1, 2))  # [polynomial]
    costs = [some[index].any(axis=0) for index in (ops.cost_index, ops.several_index)]
    for several in (False, True):
        # What costs nothing for some members is not run for them: no mask for one token.
        runs = (costs[several] | ~costs[not several])[chosen]
        alone = members.query > 1 if several else members.query <= 1 if ops.shape.swap else members.query == 1
        member, lane = np.nonzero(alone)
        if not len(lane):
            continue
        each = {name: getattr(members, name)[member, lane] for name in ("sequence", "context", "query", "loads")}
        lanes = StepLanes(
            sequence=each["sequence"], token=np.zeros_like(lane), context=each["context"],
            members=Members(**{name: column[None] for name, column in each.items()}, logits=np.zeros_like(lane)),
        )  # fmt: skip
        kernels = _kernels(ops.alone(several=several), lanes, chosen)
        summed = {id(kernel): _summed(kernel, lane, len(steps.context)) for kernel in kernels}
        for part, kernel, is_run in zip(parts, kernels, runs.tolist(), strict=True):
            if is_run:
                part.append(summed[id(kernel)])
    made: dict[tuple[int, ...], Kernel] = {}
    for part in parts:
        made.setdefault(tuple(map(id, part)), _joined(part))
    return [made[tuple(map(id, part))] for part in parts]


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


class _Shapes:
    def __init__(self, ops: OpGraph, steps: StepLanes, chosen: Iterable[int]) -> None:
        self.ops, self.costs = ops, ops.costs_of(steps)  # [quantity, op, lane]
        self.batch, self.query, self.past = ops.sizes_of(steps)  # [op, lane]
        self.readers = np.zeros(len(ops), dtype=np.int64)
        for op in ops.ops:
            self.readers[list(op.inputs)] += 1
        self.attention: dict[tuple[int, int], tuple[IntArray, IntArray, IntArray]] = {}  # kv_heads, head_dim, context
        for i in chosen:
            op = ops.ops[i]
            if op.heads and self.owner(i) not in self.attention and self.costs[FLOPS, i].any() and len(op.shape) > 1:
                self.attention[self.owner(i)] = self.heads(i, op)

    def owner(self, i: int) -> tuple[int, int]:
        """Layer and member of the batch."""
        return self.ops.ops[i].layer, int(self.ops.member[i])

    def rows(self, i: int) -> IntArray:
        return np.asarray(self.batch[i] * self.query[i])

    def heads(self, i: int, op: Op) -> tuple[IntArray, IntArray, IntArray]:
        """KV heads, size of a head, and tokens attended: of scores [..., group of queries, keys], or of fused attention."""
        per_head = self.costs[FLOPS, i] // np.maximum(2 * self.rows(i) * op.heads, 1)
        last, group = self.extent(op.shape[-1], i), np.maximum(self.extent(op.shape[-2], i), 1)
        kv_heads = op.heads * self.query[i] // group
        if op.kind == ATTENTION:  # results [..., group, head_dim] of two products
            return kv_heads, last, per_head // np.maximum(2 * last, 1)
        return kv_heads, per_head // np.maximum(last, 1), last

    def extent(self, text: str, i: int) -> IntArray:
        """A dimension of an op such as `8*B` or `min(N,4095)+1`."""
        limit = _MIN.search(text)
        past = np.minimum(self.past[i], int(limit[1])) if limit else self.past[i]
        value: Mapping[str, IntArray] = {"B": self.batch[i], "Q": self.query[i], "N": past}
        terms = [
            prod((value[f] if f in value else int(f) for f in term.split("*")), start=1)
            for term in _MIN.sub("N", text).replace("-", "+-").split("+")
            if term
        ]
        return np.broadcast_to(np.asarray(sum(terms), dtype=np.int64), past.shape)

    def kernel(self, i: int) -> Kernel:
        op, costs, rows = self.ops.ops[i], self.costs, self.rows(i)
        zero = np.zeros_like(rows)
        cached = costs[WEIGHT, i] + costs[KV_READ, i] + self.cache(op)
        read, written = cached + costs[ACT_READ, i], costs[KV_WRITE, i] + costs[ACT_WRITE, i]
        product = bool(costs[FLOPS, i].any() and costs[WEIGHT, i].any())
        per_head = bool(op.heads) and op.kind not in ONLY_MOVES
        kv_heads, dim, attended = self.attention.get(self.owner(i), (zero, zero, zero)) if per_head else (zero, zero, zero)
        kinds: tuple[str, ...] = (op.kind, PRODUCT if product else ELEMENTWISE)
        if op.kind == ATTENTION and (kv_heads == op.heads).all():
            kinds = (MULTI_HEAD, ATTENTION)
        elif per_head or op.kind in ONLY_MOVES:
            kinds = (op.kind,)
        n = zero if per_head else self.width(i, op)
        shapes = Shapes(
            rows=rows, n=n,
            k=costs[FLOPS, i] // np.maximum(2 * rows * n, 1) if product else zero,
            heads=np.full_like(rows, op.heads if per_head else 0), kv_heads=kv_heads, head_dim=dim, context=attended,
            flops=costs[FLOPS, i], elements=costs[VECTOR_OPS, i], bytes=read + written,
            shared=zero if per_head else costs[WEIGHT, i],
        )  # fmt: skip
        return Kernel(kinds, op.dtype, shapes, read, written, cached + costs[KV_WRITE, i])

    def width(self, i: int, op: Op) -> IntArray:
        """Numbers of the result of one row; of fused products, which have no one shape, by the bytes they write."""
        if not op.shape:
            return np.asarray(self.costs[ACT_WRITE, i] // np.maximum(ELEMENT.get(op.dtype, 2) * self.rows(i), 1))
        results = np.prod([self.extent(text, i) for text in op.shape], axis=0, dtype=np.int64)
        return np.asarray(results // np.maximum(self.rows(i), 1))

    def cache(self, op: Op) -> IntArray:
        """Bytes of the KV cache that an op reads of what others have loaded."""
        total: IntArray = np.zeros_like(self.past[0])
        for j in op.inputs:
            if self.ops.ops[j].kind == "kv_load":
                total += self.costs[KV_READ, j] // self.readers[j]
        return total
