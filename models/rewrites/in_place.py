"""A KV cache that the ops of attention read themselves, as kernels of CPUs and GPUs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from models.graph import QUANTITIES, Op, OpGraph
from models.polynomials import Pieces, Polynomials, added, each_term

KV_READ = QUANTITIES.index("kv_read")


def read_in_place(ops: OpGraph) -> OpGraph:
    """The op graph without `kv_load`: ops that read its result read the cache instead, in equal parts (keys, then values)."""
    readers: dict[int, list[int]] = {i: [] for i, op in enumerate(ops.ops) if op.kind == "kv_load"}
    if not readers:
        return ops
    for i, op in enumerate(ops.ops):
        for load in readers.keys() & op.inputs:
            readers[load].append(i)
    polynomials = Polynomials(ops.polynomials)
    new_index: dict[int, int] = {}
    result: list[Op] = []
    for i, op in enumerate(ops.ops):
        if i not in readers:
            inputs = {k for j in op.inputs for k in (ops.ops[j].inputs if j in readers else (j,))}
            new_index[i] = len(result)
            reading = _reading(ops, i, readers, polynomials)
            result.append(replace(reading, inputs=tuple(sorted(new_index[j] for j in inputs))))
    return replace(ops, ops=tuple(result), polynomials=tuple(polynomials))


def _reading(ops: OpGraph, reader: int, readers: Mapping[int, Sequence[int]], polynomials: Polynomials) -> Op:
    """An op that reads its part of each cache itself whose load it needed. readers: ops by the load that they need."""
    op = ops.ops[reader]
    loads = [j for j in op.inputs if j in readers]
    if not loads:
        return op
    parts = [_part(polynomials[ops.ops[j].costs[KV_READ]], readers[j], reader) for j in loads]
    return op.with_cost(KV_READ, polynomials.number(added([polynomials[op.costs[KV_READ]], *parts])))


def _part(whole: Pieces, readers: Sequence[int], reader: int) -> Pieces:
    """The part of one reader; bytes that do not divide go to the first ones."""
    count, rank = len(readers), readers.index(reader)
    return each_term(lambda term: (term + count - 1 - rank) // count, whole)
