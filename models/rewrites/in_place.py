"""KV caches and states that the ops which need them read themselves, as kernels of CPUs and GPUs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from models.graph import QUANTITIES, Op, OpGraph
from models.op import SCAN
from models.polynomials import Pieces, Polynomials, added, each_term

#: Ops that load a cache or a state, and the bytes that their readers have instead.
LOADS = {"kv_load": QUANTITIES.index("kv_read"), "state_load": QUANTITIES.index("state_read")}


def readers(ops: Sequence[Op]) -> dict[int, list[int]]:
    """By load of a cache or a state, the ops that read its result; of a state the scan alone, if there is one.

    The window of past inputs is a small part of a state with a scan.
    """
    found: dict[int, list[int]] = {i: [] for i, op in enumerate(ops) if op.kind in LOADS}
    for i, op in enumerate(ops):
        for load in found.keys() & op.inputs:
            found[load].append(i)
    scans = {load: [i for i in users if ops[i].kind == SCAN] for load, users in found.items()}
    return {load: scans[load] or users for load, users in found.items()}


def read_in_place(ops: OpGraph) -> OpGraph:
    """The op graph without loads: ops that read their result read the cache instead, in equal parts (keys, then values)."""
    reading = readers(ops.ops)
    if not reading:
        return ops
    polynomials = Polynomials(ops.polynomials)
    new_index: dict[int, int] = {}
    result: list[Op] = []
    for i, op in enumerate(ops.ops):
        if i not in reading:
            inputs = {k for j in op.inputs for k in (ops.ops[j].inputs if j in reading else (j,))}
            new_index[i] = len(result)
            reader = _reading(ops, i, reading, polynomials)
            result.append(replace(reader, inputs=tuple(sorted(new_index[j] for j in inputs))))
    return replace(ops, ops=tuple(result), polynomials=tuple(polynomials))


def _reading(ops: OpGraph, reader: int, readers: Mapping[int, Sequence[int]], polynomials: Polynomials) -> Op:
    """An op that reads its part of each cache itself whose load it needed. readers: ops by the load that they need."""
    op = ops.ops[reader]
    for kind, quantity in LOADS.items():
        loads = [j for j in op.inputs if reader in readers.get(j, ()) and ops.ops[j].kind == kind]
        parts = [_part(polynomials[ops.ops[j].costs[quantity]], readers[j], reader) for j in loads]
        if parts:
            op = op.with_cost(quantity, polynomials.number(added([polynomials[op.costs[quantity]], *parts])))
    return op


def _part(whole: Pieces, readers: Sequence[int], reader: int) -> Pieces:
    """The part of one reader; bytes that do not divide go to the first ones."""
    count, rank = len(readers), readers.index(reader)
    return each_term(lambda term: (term + count - 1 - rank) // count, whole)
