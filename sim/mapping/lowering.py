"""Lowering: apply the mapping, so that ops become tasks and every transfer is explicit.

| op                 | becomes                                                                                    |
| ------------------ | ------------------------------------------------------------------------------------------ |
| kv_load, kv_store  | one transfer task; under `blocking` it holds an engine, else a DMA issues it                |
| kv_load            | with `kv: operands` no task: the cache is a private operand of the ops that read it         |
| kv_load            | with `kv_loads: head` one for each head of the cache: query heads that share it share it    |
| per-head op        | one task per head if heads are split; the same head of two ops depends one to one           |
| op with splits     | one task per split of the keys (and head): it needs its own split of the cache              |
| product by weights | `tiles` tasks, each with its columns of the weights; `act` is tiled along with its inputs   |
| resident weights   | nothing; of a share that is resident, only the rest is moved                                |
| streamed weights   | private operands of their task; under `prefetch` a `weight_load` of their own, by a DMA     |
| off-chip results   | an `act_store` after each task, and operand bytes (or under `prefetch` an `act_load`) before |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.graph import QUANTITIES, Op, OpGraph, Polynomial
from sim.mapping.tasks import CLASS_BIT, Links, TaskGraph, with_links
from sim.mapping.template import rows

#: Tasks that a product by weights can be cut into.
MOST_TILES = 1024

#: Edges between two ops from which a join stands between them (see `sim.mapping.tasks.Links`).
MANY_EDGES = 65_536

#: Ops that move the KV cache, and what that is to the device's memory: swapped out, it is read from there.
KV_CLASS = {"kv_load": "kv_read", "kv_store": "kv_write", "kv_swap_out": "kv_read", "kv_swap_in": "kv_write"}

Execution = Literal["blocking", "stream", "prefetch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """How ops are put on the machine. The fields are those of `mapping` in a scenario.

    attention: of a step of several sequences; `sim.mapping.steps` applies it, lowering does not.
    weights: or the share of each op's weights that is resident, above 0 and below 1; the rest is streamed.
    tiles: of all products by weights, or by kind: those of `default` (1 if it is not there) for what is not named.
    """

    heads: Literal["split", "fused"] = "split"
    kv_loads: Literal["layer", "head"] = "layer"
    weights: Literal["resident", "streamed"] | Fraction = "resident"
    activations: Literal["on_chip", "off_chip"] = "on_chip"
    execution: Execution = "prefetch"
    kv: Literal["transfers", "operands"] = "transfers"
    attention: Literal["sequence", "batch"] = "sequence"
    tiles: int | dict[str, int] = 1

    def tiles_of(self, kind: str) -> int:
        """Into how many tasks a product by weights of this kind is cut."""
        return self.tiles if isinstance(self.tiles, int) else self.tiles.get(kind, self.tiles.get("default", 1))

    def __post_init__(self) -> None:
        if self.kv == "operands" and self.execution == "prefetch":
            raise ValueError("expected kv: operands only where an engine loads operands itself: blocking or stream execution")


@dataclass(slots=True)
class _Builder:
    """Collects tasks as rows."""

    kinds: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    inputs: list[list[int]] = field(default_factory=list)
    joins: list[list[int]] = field(default_factory=list)  # what each needs; as an input, join j is -1 - j

    def add(
        self, op: int, kind: str, layer: int, inputs: list[int], *, share: tuple[int, int] = (0, 1), head: int = -1,
        tile: int = -1, engine: bool = True, computes: bool = True, moves: int = 0, prefetch: bool = False,
    ) -> int:  # fmt: skip
        number = self.kinds.setdefault(kind, len(self.kinds))
        self.rows.append((number, op, *share, head, tile, layer, engine, computes, moves, prefetch))
        self.inputs.append(sorted(set(inputs)))
        return len(self.rows) - 1

    def join(self, tasks: list[int]) -> int:
        """What stands for all of some tasks as an input."""
        self.joins.append(tasks)
        return -len(self.joins)


@dataclass(frozen=True, slots=True)
class _Grid:
    """How an op is cut: heads, each into splits of the keys, each into tiles. Shares are numbered in this order."""

    heads: int = 1
    splits: int = 1
    tiles: int = 1

    def __len__(self) -> int:
        return self.heads * self.splits * self.tiles

    def coordinates(self, share: int) -> tuple[int, int, int]:
        rest, tile = divmod(share, self.tiles)
        return *divmod(rest, self.splits), tile

    def labels(self, share: int) -> tuple[int, int]:
        """The head, and the tile or split, of a share: -1 if the op is not cut that way."""
        head, split, tile = self.coordinates(share)
        return head if self.heads > 1 else -1, split if self.splits > 1 else tile if self.tiles > 1 else -1

    def shares(self, head: int | None, split: int | None, tile: int | None) -> list[int]:
        """The shares at these coordinates; None stands for all."""
        heads, splits, tiles = (
            range(count) if at is None else (at,)
            for at, count in ((head, self.heads), (split, self.splits), (tile, self.tiles))
        )
        return [(h * self.splits + s) * self.tiles + t for h in heads for s in splits for t in tiles]


def lower(ops: OpGraph, mapping: Mapping) -> TaskGraph:
    """Make the task graph of one step."""
    if mapping.kv == "operands":
        ops = read_in_place(ops)
    if isinstance(mapping.weights, Fraction):
        ops = _without_resident(ops, mapping.weights)
    has = {name: _some(ops, name).tolist() for name in QUANTITIES}
    build = _Builder()
    blocking, prefetch = mapping.execution == "blocking", mapping.execution == "prefetch"
    off_chip = mapping.activations == "off_chip"
    grids = _grids(ops, mapping)
    made: list[list[int]] = []  # per op, the tasks after which its result can be used; share by share
    kv_loads: dict[int, list[int]] = {}
    kv_stores: dict[int, list[int]] = {}

    joins: dict[int, int] = {}  # per op whose tasks are joined
    for i, op in enumerate(ops.ops):
        results = []
        joined = [j for j in op.inputs if _is_joined(ops, i, j, grids)]
        for j in joined:
            if j not in joins:
                joins[j] = build.join(made[j])
        for part in range(len(grids[i])):
            inputs = [joins[j] for j in joined]
            inputs += [made[j][share] for j in op.inputs if j not in joined for share in _shares_needed(ops, i, j, part, grids)]
            share = (part, len(grids[i]))
            head, tile = grids[i].labels(part)
            if op.kind in KV_CLASS:
                bit = CLASS_BIT[KV_CLASS[op.kind]]
                task = build.add(
                    i, op.kind, op.layer, inputs, share=share, head=head, tile=tile, engine=blocking, computes=False,
                    moves=bit,
                )  # fmt: skip
                (kv_loads if bit == CLASS_BIT["kv_read"] else kv_stores).setdefault(op.layer, []).append(task)
                results.append(task)
                continue
            private = CLASS_BIT["kv_read"] if has["kv_read"][i] else 0
            if mapping.weights != "resident" and has["weight"][i]:
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


def read_in_place(ops: OpGraph) -> OpGraph:
    """The graph without `kv_load`: what read its result reads the cache itself, in equal parts (keys here, values there)."""
    loads = {i: op for i, op in enumerate(ops.ops) if op.kind == "kv_load"}
    if not loads:
        return ops
    readers: dict[int, list[int]] = {i: [] for i in loads}
    for j, op in enumerate(ops.ops):
        for i in readers.keys() & op.inputs:
            readers[i].append(j)
    polynomials, kv_read = list(ops.polynomials), QUANTITIES.index("kv_read")
    index = {polynomial: i for i, polynomial in enumerate(polynomials)}
    new_index: dict[int, int] = {}
    kept: list[Op] = []
    for i, op in enumerate(ops.ops):
        if i in loads:
            continue
        new_index[i] = len(kept)
        if not loads.keys() & op.inputs:
            kept.append(replace(op, inputs=tuple(new_index[j] for j in op.inputs)))
            continue
        parts = [polynomials[op.costs[kv_read]]]
        parts += [_part(polynomials[loads[j].costs[kv_read]], readers[j], i) for j in op.inputs if j in loads]
        total = tuple(tuple(map(sum, zip(*pieces, strict=True))) for pieces in zip(*parts, strict=True))
        if total not in index:
            index[total] = len(polynomials)
            polynomials.append(total)
        costs = (*op.costs[:kv_read], index[total], *op.costs[kv_read + 1 :])
        inputs = {k for j in op.inputs for k in (loads[j].inputs if j in loads else (j,))}
        kept.append(replace(op, costs=costs, inputs=tuple(sorted(new_index[j] for j in inputs))))
    return replace(ops, ops=tuple(kept), polynomials=tuple(polynomials))


def _without_resident(ops: OpGraph, resident: Fraction) -> OpGraph:
    """The graph whose weights are those that are streamed: of each op, what is left of them, rounded up to whole bytes."""
    weight = QUANTITIES.index("weight")
    polynomials = list(ops.polynomials)
    index = {polynomial: i for i, polynomial in enumerate(polynomials)}

    def streamed(op: Op) -> Op:
        experts, pieces = op.experts, polynomials[op.costs[weight]]
        if experts is not None:  # each of them in part
            left = experts.bytes - kept(experts.bytes, resident)
            rest = tuple(tuple(term // experts.bytes * left for term in piece) for piece in pieces)
            experts = replace(experts, bytes=left)
        else:
            rest = tuple(tuple(term - kept(term, resident) for term in piece) for piece in pieces)
        if rest not in index:
            index[rest] = len(polynomials)
            polynomials.append(rest)
        several = op.several and streamed(op.several)
        costs = (*op.costs[:weight], index[rest], *op.costs[weight + 1 :])
        return replace(op, costs=costs, experts=experts, several=several)

    return replace(ops, ops=tuple(map(streamed, ops.ops)), polynomials=tuple(polynomials))


def kept(size: int, resident: Fraction) -> int:
    """Of so many bytes of weights of an op, those that stay on chip: whole bytes, rounded down."""
    return size * resident.numerator // resident.denominator


def weight_products(ops: OpGraph) -> npt.NDArray[np.bool_]:
    """[op]: whether it is a product by weights, which can be cut into tiles, each with its columns of the weights."""
    return _some(ops, "flops") & _some(ops, "weight")


def _some(ops: OpGraph, quantity: str) -> npt.NDArray[np.bool_]:
    """[op]: whether there is any of a quantity, at some size of the step."""
    some = (ops.table != 0).any(axis=(1, 2))  # [polynomial]
    number = QUANTITIES.index(quantity)
    found: npt.NDArray[np.bool_] = some[ops.cost_index[number]] | some[ops.several_index[number]]
    return found


def _part(whole: tuple[Polynomial, ...], readers: list[int], reader: int) -> tuple[Polynomial, ...]:
    """The share of one reader; what does not divide goes to the first ones."""
    count, rank = len(readers), readers.index(reader)
    return tuple(tuple((term + count - 1 - rank) // count for term in piece) for piece in whole)


def _is_prefetch(build: _Builder, task: int) -> bool:
    return task >= 0 and bool(build.rows[task][-1])


def _grids(ops: OpGraph, mapping: Mapping) -> list[_Grid]:
    """How each op is cut: per head, along the keys, or (products by weights, and activations between them) by columns."""
    grids: list[_Grid] = []
    products = weight_products(ops)
    for i, op in enumerate(ops.ops):
        if op.kind == "kv_load":
            grid = _Grid(heads=op.heads or 1 if mapping.kv_loads == "head" else 1, splits=op.splits)
        elif op.kind == "kv_store":
            grid = _Grid()
        elif op.heads or op.splits > 1:
            grid = _Grid(heads=op.heads or 1 if mapping.heads == "split" else 1, splits=op.splits)
        elif products[i]:
            grid = _Grid(tiles=mapping.tiles_of(op.kind))
        elif op.kind == "act" and len({grids[j].tiles for j in op.inputs}) == 1:
            grid = _Grid(tiles=grids[op.inputs[0]].tiles)
        else:
            grid = _Grid()
        grids.append(grid)
    return grids


def _shares_needed(ops: OpGraph, consumer: int, producer: int, part: int, grids: list[_Grid]) -> list[int]:
    """The shares of the producer that one share of the consumer needs: the same head, split and tile where they line up.

    Query heads share a head of the cache in groups of equal size. What does not line up needs all.
    """
    to, source = grids[consumer], grids[producer]
    if len(source) == 1:
        return [0]
    head, split, tile = to.coordinates(part)
    groups = to.heads == source.heads or (ops.ops[producer].kind == "kv_load" and to.heads % source.heads == 0)
    return source.shares(
        head * source.heads // to.heads if groups else None,
        split if to.splits == source.splits else None,
        tile if to.tiles == source.tiles and ops.ops[consumer].kind == "act" else None,
    )


def _is_joined(ops: OpGraph, consumer: int, producer: int, grids: list[_Grid]) -> bool:
    """Whether every share of one op needs every share of another, and both have so many that edges would be too many."""
    shares = len(grids[consumer]), len(grids[producer])
    many = min(shares) > 1 and shares[0] * shares[1] > MANY_EDGES
    return many and len(_shares_needed(ops, consumer, producer, 0, grids)) == len(grids[producer])


def _columns(ops: OpGraph, build: _Builder, kv_loads: dict[int, list[int]], kv_stores: dict[int, list[int]]) -> TaskGraph:
    table = np.array(build.rows, dtype=np.int64).reshape(len(build.rows), 11).T
    links = _links(build)
    columns: dict[str, Any] = {
        "ops": ops,
        "kinds": tuple(build.kinds),
        "kind": table[0].astype(np.int16),
        "op": table[1].astype(np.int32),
        "part": table[2].astype(np.int32),
        "parts": table[3].astype(np.int32),
        "head": table[4].astype(np.int16),
        "tile": table[5].astype(np.int16),
        "layer": table[6].astype(np.int16),
        "engine": table[7].astype(np.bool_),
        "computes": table[8].astype(np.bool_),
        "moves": table[9].astype(np.uint8),
        "prefetch": table[10].astype(np.bool_),
        "kv_loads": {layer: tuple(tasks) for layer, tasks in kv_loads.items()},
        "kv_stores": {layer: tuple(tasks) for layer, tasks in kv_stores.items()},
    }
    return with_links(links, columns)


def _links(build: _Builder) -> Links:
    """The edges, joins after tasks."""
    needs = build.inputs + build.joins
    counts = np.array([len(row) for row in needs], dtype=np.int64)
    inputs = np.array([source for row in needs for source in row], dtype=np.int64)
    inputs = np.where(inputs < 0, len(build.rows) - 1 - inputs, inputs)
    consumers = np.repeat(np.arange(len(needs)), counts)
    return Links(len(build.joins), *rows(consumers, inputs, len(needs)), *rows(inputs, consumers, len(needs)))
