"""Ops as kernels: their shapes as device profiles measure them, and the names that a timing of them may have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from sim.formats import ELEMENT
from sim.graph import QUANTITIES, IntArray, Op, OpGraph
from sim.profile import ATTENTION, DIMENSIONS, ELEMENTWISE, MULTI_HEAD, PRODUCT, UNITS, Shapes

FLOPS, VECTOR_OPS, WEIGHT, KV_READ, KV_WRITE, ACT_READ, ACT_WRITE = range(len(QUANTITIES))

#: Ops that compute nothing.
ONLY_MOVES = frozenset(("kv_load", "kv_store"))

_MIN = re.compile(r"min\(N,(\d+)\)")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An op, or the whole attention of a layer (`fused_attention`).

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


def kernels(ops: OpGraph, context: IntArray, batch: int = 1, query: int = 1) -> list[Kernel]:
    """One kernel per op, in order, at these contexts. Ops that are alike share one object.

    The bytes of a `kv_load` are also those of the ops that read what it loads, in equal parts: kernels read the cache.
    """
    costs = ops.costs(context, batch, query)  # [quantity, op, lane]
    shapes = _Shapes(ops, costs, context, batch, query)
    made: dict[tuple[object, ...], Kernel] = {}
    result = []
    for i, op in enumerate(ops.ops):
        loads = tuple(ops.ops[j].costs[KV_READ] for j in op.inputs if ops.ops[j].kind == "kv_load")
        attention = tuple(column.tobytes() for column in shapes.attention.get(op.layer, ())) if op.heads else ()
        key = (op.kind, op.dtype, op.heads, op.shape, op.costs, loads, attention)
        if key not in made:
            made[key] = shapes.kernel(i)
        result.append(made[key])
    return result


def fused_attention(ops: OpGraph, context: IntArray, layer: int, batch: int = 1, query: int = 1) -> Kernel:
    """The attention of a layer as one kernel: it reads the KV cache and its queries, and writes its outputs."""
    costs = ops.costs(context, batch, query)
    return _Shapes(ops, costs, context, batch, query).fused(layer)


class _Shapes:
    def __init__(self, ops: OpGraph, costs: IntArray, context: IntArray, batch: int, query: int) -> None:
        self.ops, self.costs, self.context, self.batch, self.query = ops, costs, context, batch, query
        self.rows = batch * query
        readers = np.zeros(len(ops.ops), dtype=np.int64)
        for op in ops.ops:
            for j in op.inputs:
                readers[j] += ops.ops[j].kind == "kv_load"
        self.readers = np.maximum(readers, 1)
        self.attention: dict[int, tuple[IntArray, IntArray, IntArray]] = {}  # layer -> kv_heads, head_dim, context
        for i, op in enumerate(ops.ops):
            if op.heads and op.layer not in self.attention and costs[FLOPS, i].any() and len(op.shape) > 1:
                attended, group = self.extent(op.shape[-1]), self.extent(op.shape[-2])
                dim = costs[FLOPS, i] // np.maximum(2 * self.rows * op.heads * attended, 1)
                self.attention[op.layer] = op.heads * query // np.maximum(group, 1), dim, attended

    def extent(self, text: str) -> IntArray:
        """A dimension such as `8*B` or `min(N,4095)+1`, at each context."""
        limit = _MIN.search(text)
        past = np.minimum(self.context, int(limit[1])) if limit else self.context
        value: Mapping[str, IntArray | int] = {"B": self.batch, "Q": self.query, "N": past}
        terms = [
            prod((value[f] if f in value else int(f) for f in term.split("*")), start=1)
            for term in _MIN.sub("N", text).replace("-", "+-").split("+")
            if term
        ]
        return np.broadcast_to(np.asarray(sum(terms), dtype=np.int64), self.context.shape)

    def kernel(self, i: int) -> Kernel:
        op, costs = self.ops.ops[i], self.costs
        product = bool(costs[FLOPS, i].any() and costs[WEIGHT, i].any())
        kinds = (op.kind,) if op.heads or op.kind in ONLY_MOVES else (op.kind, PRODUCT if product else ELEMENTWISE)
        cached = costs[WEIGHT, i] + costs[KV_READ, i] + self.cache(op)
        read, written = cached + costs[ACT_READ, i], costs[KV_WRITE, i] + costs[ACT_WRITE, i]
        return self.made(op, kinds, costs[FLOPS, i], costs[VECTOR_OPS, i], read, written, cached + costs[KV_WRITE, i])

    def fused(self, layer: int) -> Kernel:
        members = [i for i, op in enumerate(self.ops.ops) if op.heads and op.layer == layer]
        first = self.ops.ops[members[0]]
        kv_heads, dim, _ = self.attention[layer]
        kinds = (MULTI_HEAD, ATTENTION) if (kv_heads == first.heads).all() else (ATTENTION,)
        cache = sum((self.cache(self.ops.ops[i]) + self.costs[KV_READ, i] for i in members), np.zeros_like(self.context))
        rows = self.rows * first.heads * dim * ELEMENT.get(first.dtype, 2)  # queries, and as many outputs
        flops, elements = (self.costs[quantity, members].sum(axis=0) for quantity in (FLOPS, VECTOR_OPS))
        return self.made(first, kinds, flops, elements, cache + rows, rows, cache)

    def cache(self, op: Op) -> IntArray:
        """Bytes of the KV cache that an op reads of what others have loaded."""
        zero = np.zeros_like(self.context)
        loads = (j for j in op.inputs if self.ops.ops[j].kind == "kv_load")
        return sum((self.costs[KV_READ, j] // self.readers[j] for j in loads), zero)

    def made(
        self, op: Op, kinds: tuple[str, ...], flops: IntArray, elements: IntArray, read: IntArray, written: IntArray,
        memory: IntArray,
    ) -> Kernel:  # fmt: skip
        zero = np.zeros_like(self.context)
        kv_heads, dim, attended = self.attention.get(op.layer, (zero, zero, zero)) if op.heads else (zero, zero, zero)
        results = np.prod([self.extent(text) for text in op.shape], axis=0, dtype=np.int64) if op.shape else zero
        n = zero if op.heads else results // self.rows
        k = flops // np.maximum(2 * self.rows * n, 1) if PRODUCT in kinds else zero
        shapes = Shapes(
            rows=np.full_like(self.context, self.rows), n=n, k=k, heads=np.full_like(self.context, op.heads), kv_heads=kv_heads,
            head_dim=dim, context=attended, flops=flops, elements=elements, bytes=read + written,
            shared=zero if op.heads or op.kind in ONLY_MOVES else memory,
        )  # fmt: skip
        return Kernel(kinds, op.dtype, shapes, read, written, memory)
