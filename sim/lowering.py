"""Lowering: apply the mapping, so that ops become tasks and every transfer is explicit.

| op                 | becomes                                                                                    |
| ------------------ | ------------------------------------------------------------------------------------------ |
| kv_load, kv_store  | one transfer task; under `blocking` it holds an engine, else a DMA issues it                |
| kv_load, kv        | with `kv: operands` no task: the cache is a private operand of the ops that read it          |
| per-head op        | one task per head if heads are split; the same head of two ops depends one to one           |
| product by weights | `tiles` tasks, each with its columns of the weights; `act` is tiled along with its inputs   |
| streamed weights   | private operands of their task; under `prefetch` a `weight_load` of their own, by a DMA     |
| off-chip results   | an `act_store` after each task, and operand bytes (or under `prefetch` an `act_load`) before |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from sim.graph import QUANTITIES, Op, OpGraph, Polynomial
from sim.tasks import CLASS_BIT, TaskGraph

Execution = Literal["blocking", "stream", "prefetch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """How ops are put on the machine. The fields are those of `mapping` in a scenario."""

    heads: Literal["split", "fused"] = "split"
    weights: Literal["resident", "streamed"] = "resident"
    activations: Literal["on_chip", "off_chip"] = "on_chip"
    execution: Execution = "prefetch"
    kv: Literal["transfers", "operands"] = "transfers"
    tiles: int = 1

    def __post_init__(self) -> None:
        if self.kv == "operands" and self.execution == "prefetch":
            raise ValueError("expected kv: operands only where an engine loads operands itself: blocking or stream execution")


@dataclass(slots=True)
class _Builder:
    """Collects tasks as rows."""

    kinds: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    inputs: list[list[int]] = field(default_factory=list)

    def add(
        self, op: int, kind: str, layer: int, inputs: list[int], *, share: tuple[int, int] = (0, 1), head: int = -1,
        tile: int = -1, engine: bool = True, computes: bool = True, moves: int = 0, prefetch: bool = False,
    ) -> int:  # fmt: skip
        number = self.kinds.setdefault(kind, len(self.kinds))
        self.rows.append((number, op, *share, head, tile, layer, engine, computes, moves, prefetch))
        self.inputs.append(sorted(set(inputs)))
        return len(self.rows) - 1


def lower(ops: OpGraph, mapping: Mapping) -> TaskGraph:
    """Make the task graph of one step."""
    if mapping.kv == "operands":
        ops = _read_in_place(ops)
    has = {
        name: [any(any(piece) for piece in ops.polynomials[op.costs[QUANTITIES.index(name)]]) for op in ops.ops]
        for name in QUANTITIES
    }
    build = _Builder()
    blocking, prefetch = mapping.execution == "blocking", mapping.execution == "prefetch"
    off_chip = mapping.activations == "off_chip"
    tiles = _tiles(ops, has, mapping)
    made: list[list[int]] = []  # per op, the tasks after which its result can be used; share by share
    kv_loads: dict[int, list[int]] = {}
    kv_stores: dict[int, list[int]] = {}

    for i, op in enumerate(ops.ops):
        if op.kind in ("kv_load", "kv_store"):
            sources = [task for j in op.inputs for task in made[j]]
            bit = CLASS_BIT["kv_read" if op.kind == "kv_load" else "kv_write"]
            task = build.add(i, op.kind, op.layer, sources, engine=blocking, computes=False, moves=bit)
            (kv_loads if op.kind == "kv_load" else kv_stores).setdefault(op.layer, []).append(task)
            made.append([task])
            continue
        split = op.heads if op.heads and mapping.heads == "split" else tiles[i]
        results = []
        for part in range(split):
            inputs = [task for j in op.inputs for task in _shares_needed(ops, i, j, split, part, made[j], tiles)]
            share = (part, split)
            head = part if op.heads and split > 1 else -1
            tile = part if head < 0 and split > 1 else -1
            private = CLASS_BIT["kv_read"] if has["kv_read"][i] else 0
            if mapping.weights == "streamed" and has["weight"][i]:
                if prefetch:
                    load = build.add(
                        i, "weight_load", op.layer, [], share=share, head=head, tile=tile, engine=False, computes=False,
                        moves=CLASS_BIT["weight"], prefetch=True,
                    )  # fmt: skip
                    inputs.append(load)
                else:
                    private |= CLASS_BIT["weight"]
            if off_chip and has["act_read"][i]:
                if prefetch:
                    load = build.add(
                        i, "act_load", op.layer, [t for t in inputs if not _is_prefetch(build, t)], share=share, head=head,
                        tile=tile, engine=False, computes=False, moves=CLASS_BIT["act_read"],
                    )  # fmt: skip
                    inputs.append(load)
                else:
                    private |= CLASS_BIT["act_read"]
            task = build.add(i, op.kind, op.layer, inputs, share=share, head=head, tile=tile, moves=private)
            if off_chip and has["act_write"][i]:
                task = build.add(
                    i, "act_store", op.layer, [task], share=share, head=head, tile=tile, engine=blocking, computes=False,
                    moves=CLASS_BIT["act_write"],
                )  # fmt: skip
            results.append(task)
            if has["kv_read"][i]:
                kv_loads.setdefault(op.layer, []).append(task)
        made.append(results)
    return _columns(ops, build, kv_loads, kv_stores)


def _read_in_place(ops: OpGraph) -> OpGraph:
    """The graph without `kv_load`: what read its result reads the cache itself, in equal parts (keys here, values there)."""
    loads = {i: op for i, op in enumerate(ops.ops) if op.kind == "kv_load"}
    readers = {i: [j for j, op in enumerate(ops.ops) if i in op.inputs] for i in loads}
    polynomials, kv_read = list(ops.polynomials), QUANTITIES.index("kv_read")
    index = {polynomial: i for i, polynomial in enumerate(polynomials)}
    new_index: dict[int, int] = {}
    kept: list[Op] = []
    for i, op in enumerate(ops.ops):
        if i in loads:
            continue
        parts = [polynomials[op.costs[kv_read]]]
        parts += [_part(polynomials[loads[j].costs[kv_read]], readers[j], i) for j in op.inputs if j in loads]
        total = tuple(tuple(map(sum, zip(*pieces, strict=True))) for pieces in zip(*parts, strict=True))
        if total not in index:
            index[total] = len(polynomials)
            polynomials.append(total)
        costs = (*op.costs[:kv_read], index[total], *op.costs[kv_read + 1 :])
        inputs = {k for j in op.inputs for k in (loads[j].inputs if j in loads else (j,))}
        new_index[i] = len(kept)
        kept.append(replace(op, costs=costs, inputs=tuple(sorted(new_index[j] for j in inputs))))
    return OpGraph(ops=tuple(kept), polynomials=tuple(polynomials), breaks=ops.breaks)


def _part(whole: tuple[Polynomial, ...], readers: list[int], reader: int) -> tuple[Polynomial, ...]:
    """The share of one reader; what does not divide goes to the first ones."""
    count, rank = len(readers), readers.index(reader)
    return tuple(tuple((term + count - 1 - rank) // count for term in piece) for piece in whole)


def _is_prefetch(build: _Builder, task: int) -> bool:
    return bool(build.rows[task][-1])


def _tiles(ops: OpGraph, has: dict[str, list[bool]], mapping: Mapping) -> list[int]:
    """Into how many column tiles each op is cut: products by weights, and the activation between two of them."""
    tiles: list[int] = []
    for i, op in enumerate(ops.ops):
        product = has["flops"][i] and has["weight"][i]
        follows = op.kind == "act" and bool(op.inputs) and all(tiles[j] > 1 for j in op.inputs)
        tiles.append(mapping.tiles if product or follows else 1)
    return tiles


def _shares_needed(
    ops: OpGraph, consumer: int, producer: int, split: int, part: int, made: list[int], tiles: list[int]
) -> list[int]:
    """One share of the producer where heads or tiles line up, else all of them."""
    to, source = ops.ops[consumer], ops.ops[producer]
    same_heads = bool(to.heads) and to.heads == source.heads
    same_tiles = to.kind == "act" and tiles[consumer] == tiles[producer]
    return [made[part]] if (same_heads or same_tiles) and len(made) == split else made


def _columns(ops: OpGraph, build: _Builder, kv_loads: dict[int, list[int]], kv_stores: dict[int, list[int]]) -> TaskGraph:
    table = np.array(build.rows, dtype=np.int64).reshape(len(build.rows), 11).T
    counts = np.array([len(row) for row in build.inputs], dtype=np.int64)
    inputs = np.array([source for row in build.inputs for source in row], dtype=np.int32)
    consumers = np.repeat(np.arange(len(build.rows), dtype=np.int32), counts)
    by_source = np.argsort(inputs, kind="stable")
    return TaskGraph(
        ops=ops,
        kinds=tuple(build.kinds),
        kind=table[0].astype(np.int16),
        op=table[1].astype(np.int32),
        part=table[2].astype(np.int32),
        parts=table[3].astype(np.int32),
        head=table[4].astype(np.int16),
        tile=table[5].astype(np.int16),
        layer=table[6].astype(np.int16),
        engine=table[7].astype(np.bool_),
        computes=table[8].astype(np.bool_),
        moves=table[9].astype(np.uint8),
        prefetch=table[10].astype(np.bool_),
        inputs=inputs,
        input_start=_offsets(counts),
        outputs=consumers[by_source],
        output_start=_offsets(np.bincount(inputs, minlength=len(build.rows))),
        kv_loads={layer: tuple(tasks) for layer, tasks in kv_loads.items()},
        kv_stores={layer: tuple(tasks) for layer, tasks in kv_stores.items()},
    )


def _offsets(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
