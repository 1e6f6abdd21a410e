"""The kernel of an op: its shapes as device profiles measure them, and the names that a timing of it may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.formats import ELEMENT
from models.graph import MONOMIALS, QUANTITIES, IntArray, Op, OpGraph, terms
from models.masks import PREFIX
from models.rewrites.in_place import LOADS, readers
from sim.cost.profile import ATTENTION, DIMENSIONS, ELEMENTWISE, MATMUL, MULTI_HEAD, PREFILL, UNITS, Shapes
from sim.mapping.lowering import KV_CLASS

FLOPS, VECTOR_OPS, WEIGHT, KV_READ, KV_WRITE, ACT_READ, ACT_WRITE, STATE_READ, STATE_WRITE = range(len(QUANTITIES))

#: Ops that compute nothing.
ONLY_MOVES = frozenset(KV_CLASS)

#: Torch's names of formats of weights; kernels that read weights in such a format are measured by this name.
STORED = {"fp8": "float8_e4m3fn", "int8": "int8", "int4": "int4"}

#: Parts of dimensions as `models.costs.text` writes them: rows of compressed caches, and a part that stops growing.
_ROWS = re.compile(r"floor\((N|\(N\+Q\))/(\d+)\)|closed\((\d+)\)")
_MIN = re.compile(r"min\((\w+),(\d+)\)")

#: Columns of shapes that add up where several ops are one kernel.
SUMMED = ("rows", "flops", "elements", "bytes", "shared")

#: The same of kernels, beside their shapes.
BESIDE = ("sequences", "read", "written", "memory")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An op as a device runs it.

    kinds: names that a timing of it may have, the most particular first. stored: torch's name of the format of its weights if
    that is not the format it computes in, else empty. shapes: columns with one entry per context. read, written: its bytes,
    which sum to `shapes.bytes`; memory: of these, weights and KV cache. sequences: B, whose tokens are its rows.
    """

    kinds: tuple[str, ...]
    dtype: str
    stored: str
    shapes: Shapes
    sequences: IntArray
    read: IntArray
    written: IntArray
    memory: IntArray

    @property
    def kind(self) -> str:
        """Kind of its measurement: weight matmuls are one kernel, whatever the model calls them."""
        return MATMUL if MATMUL in self.kinds else self.kinds[0]

    def sample(self, lane: int = 0) -> dict[str, Any]:
        """Its columns of `sim.cost.profile.samples` at one of its contexts, to which a measurement adds a duration."""
        shapes = {name: int(getattr(self.shapes, name)[lane]) for name in (*DIMENSIONS[:-1], *UNITS[:2], "rows")}
        return {
            **shapes, "kind": self.kind, "dtype": self.dtype, "bytes_read": int(self.read[lane]),
            "bytes_written": int(self.written[lane]), "bytes_shared": int(self.shapes.shared[lane]),
        }  # fmt: skip


class Sized(NamedTuple):
    """An op at some sizes. costs: int64 [quantity, entry]. batch, query, past: B, Q and N [entry]."""

    op: Op
    costs: IntArray
    batch: IntArray
    query: IntArray
    past: IntArray

    @property
    def rows(self) -> IntArray:
        return self.batch * self.query

    def heads(self, keys: Keys) -> Attention:
        """Heads, and the context of the last row: (Q - 1) / 2 tokens more than of the mean row, unless all see the same."""
        op = self.op
        size = keys.flops // (2 * op.heads)
        if op.kind == ATTENTION:  # two products: the mean of the sizes of a key and of a value
            size //= 2
        of = np.ones_like(self.past)
        twice = 2 * self.costs[FLOPS] // np.maximum(keys.flops * self.rows, 1)
        causal = keys.visible * ((self.past > 0) | (not keys.prefix))
        context = (twice + (self.query - 1) * causal) // 2
        return Attention((op.kv_heads or op.heads) * of, size * of, context)

    def extent(self, text: str) -> IntArray:
        """A dimension of an op such as `8*B`, `min(N,4095)+1` or `floor((N+Q)/4)`."""
        value: dict[str, IntArray] = {"B": self.batch, "Q": self.query, "N": self.past}

        def named(array: IntArray) -> str:
            value[name := f"part{len(value)}"] = array
            return name

        def rows(found: re.Match[str]) -> str:
            tokens, rate, closed = found.groups()
            size = int(rate or closed)
            before, after = self.past // size, (self.past + self.query) // size
            return named(after - before if closed else before if tokens == "N" else after)

        text = _ROWS.sub(rows, text)
        text = _MIN.sub(lambda found: named(np.minimum(value[found[1]], int(found[2]))), text)
        terms = [
            prod((value[f] if f in value else int(f) for f in term.split("*")), start=1)
            for term in text.replace("-", "+-").split("+")
            if term
        ]
        return np.broadcast_to(np.asarray(sum(terms), dtype=np.int64), self.past.shape)

    def width(self) -> IntArray:
        """Numbers of the result of one row; of fused products, which have no one shape, by the bytes they write."""
        op = self.op
        if not op.shape:
            return np.asarray(self.costs[ACT_WRITE] // np.maximum(ELEMENT.get(op.dtype, 2) * self.rows, 1))
        results = np.prod([self.extent(text) for text in op.shape], axis=0, dtype=np.int64)
        return np.asarray(results // np.maximum(self.rows, 1))


class Keys(NamedTuple):
    """FLOPs of one row, all heads, for each token that it attends to; visible: 1 if hidden ones cost nothing, else 0.

    prefix: a prompt sees itself whole.
    """

    flops: int
    visible: int
    prefix: bool = False


class Attention(NamedTuple):
    """KV heads, size of a head, and tokens attended to [entry]."""

    kv_heads: IntArray
    head_dim: IntArray
    context: IntArray


class Structure:
    """Facts that the kernels of a graph depend on beside sizes.

    readers: of each op, how many read it. loads: loads of KV cache and states that each reads. keys: as by `keys_of`.
    attention: the op that tells the heads of all of its layer and member, -1 if none does.
    """

    def __init__(self, ops: Sequence[Op], owner: IntArray, some: npt.NDArray[np.bool_], keys: Sequence[Keys]) -> None:
        self.ops = ops
        self.loads: list[list[int]] = []
        self.keys = keys
        first: dict[tuple[int, int], int] = {}
        reading = readers(ops)
        self.readers = [len(reading.get(j, ())) for j in range(len(ops))]
        for i, (op, whose, computes) in enumerate(zip(ops, owner.tolist(), some[FLOPS].tolist(), strict=True)):
            self.loads.append([j for j in op.inputs if ops[j].kind in LOADS and i in reading[j]])
            if op.heads and computes and keys[i].flops:
                first.setdefault((op.layer, whose), i)
        self.attention = [first.get((op.layer, whose), -1) for op, whose in zip(ops, owner.tolist(), strict=True)]

    def key(self, i: int) -> object:
        """Ops of one member that are alike in this have the same kernel."""
        op, of = self.ops[i], self.attention[i]
        loads = tuple((self.ops[j].costs[KV_READ], self.ops[j].costs[STATE_READ], self.readers[j]) for j in self.loads[i])
        attention = (
            (self.ops[of].kind, self.ops[of].heads, self.ops[of].kv_heads, self.ops[of].costs) if op.heads and of >= 0 else ()
        )
        routed = (op.layer, op.experts.first) if op.experts is not None else ()  # in each layer the tokens choose anew
        return (op.kind, op.dtype, op.weights, op.heads, op.shape, op.costs, loads, attention, routed)

    def kernel(self, i: int, sized: Callable[[int], Sized]) -> Kernel:
        """The kernel of an op. sized: returns an op, by its index, at the sizes of the step."""
        at = sized(i)
        op, costs, rows = at.op, at.costs, at.rows
        zero = np.zeros_like(rows)
        cached = costs[WEIGHT] + costs[KV_READ] + costs[STATE_READ]
        for j in self.loads[i]:  # its part of what others have loaded
            loaded = sized(j).costs
            cached = cached + (loaded[KV_READ] + loaded[STATE_READ]) // self.readers[j]
        kept = costs[KV_WRITE] + costs[STATE_WRITE]
        read, written = cached + costs[ACT_READ], kept + costs[ACT_WRITE]
        product = bool(costs[FLOPS].any() and costs[WEIGHT].any())
        per_head = bool(op.heads) and op.kind not in ONLY_MOVES
        known = per_head and self.attention[i] >= 0
        attention = sized(self.attention[i]).heads(self.keys[self.attention[i]]) if known else Attention(zero, zero, zero)
        kinds: tuple[str, ...] = (op.kind, MATMUL if product else ELEMENTWISE)
        if op.kind == ATTENTION:
            kinds = (MULTI_HEAD, ATTENTION) if (attention.kv_heads == op.heads).all() else (ATTENTION,)
            kinds = (PREFILL, *kinds) if (at.query > 1).any() else kinds
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
        memory, stored = cached + kept, STORED.get(op.weights, "")
        return Kernel(kinds, op.dtype, stored, shapes, at.batch, read, written, memory)


def joined(parts: Sequence[Kernel]) -> list[Kernel]:
    """Kernels of several sequences as those that a device launches: one for all rows of a sort, prompts apart from decodes.

    The context of a launch is the mean over its rows.
    """
    if len(parts) == 1:
        return list(parts)
    sorts: dict[tuple[str, ...], list[Kernel]] = {}
    for part in parts:
        sorts.setdefault(part.kinds, []).append(part)
    return [together(of_sort) for of_sort in sorts.values()]


def together(parts: Sequence[Kernel]) -> Kernel:
    """One launch for the rows of several; its context is the mean over them."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].shapes
    sums = {name: sum((getattr(p.shapes, name) for p in parts), np.zeros_like(first.rows)) for name in SUMMED}
    attended = sum((p.shapes.context * p.shapes.rows for p in parts), np.zeros_like(first.rows))
    shapes = replace(first, **sums, context=attended // np.maximum(sums["rows"], 1))
    summed: dict[str, Any] = {name: np.asarray(sum(getattr(p, name) for p in parts)) for name in BESIDE}
    return replace(parts[0], shapes=shapes, **summed)


def keys_of(ops: OpGraph, index: IntArray) -> list[Keys]:
    """By op: FLOPs that one more token in the cache adds for one row, before any window is full. index: [quantity, op]."""
    with_context = [i for i, (*_, context) in enumerate(MONOMIALS) if context]
    with_pairs = range(len(MONOMIALS), terms(ops.masks))  # of masks: one more for each row
    flops = ops.table[index[FLOPS], 0]  # [op, term]
    visible = flops[:, with_pairs].sum(axis=1)
    prefix = any(mask.kind == PREFIX for mask in ops.masks)
    return [
        Keys(*each, prefix)
        for each in zip(
            (flops[:, with_context].sum(axis=1) + visible).tolist(), (visible > 0).astype(int).tolist(), strict=True
        )
    ]


def costs_something(ops: OpGraph, index: IntArray) -> npt.NDArray[np.bool_]:
    """[quantity, op]: whether the op costs any of it, at some size of the step."""
    found: npt.NDArray[np.bool_] = (ops.table != 0).any(axis=(1, 2))[index]
    return found
