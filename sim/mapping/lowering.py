"""Lowering: apply the mapping, so that ops become tasks and every transfer is explicit.

| op                 | becomes                                                                                    |
| ------------------ | ------------------------------------------------------------------------------------------ |
| kv_load, kv_store  | one transfer task; under `blocking` it holds an engine, else a DMA issues it                |
| state_load, state_store | the same, of the state of a layer                                                      |
| kv_swap_out, ..    | the same, over the link to the host or another tier where the machine has one              |
| kv_spill, kv_fetch | the same, of cold blocks and caches: to a tier, and back to the memory                     |
| kv_load, state_load | with `kv: operands` no task: the cache is a private operand of the ops that read it        |
| kv_load            | with `kv_loads: head` one for each head of the cache, shared by the query heads of its group |
| per-head op        | one task per head if heads are split; the same head of two ops depends one to one           |
| op with splits     | one task per split of the keys (and head): it needs its own split of the cache              |
| weight matmul      | `tiles` tasks, each with its columns of the weights; `act` is tiled along with its inputs   |
| resident weights   | no transfer; where only a share is resident, the rest is moved                              |
| offloaded weights  | a `host_load` of their own, over the link to their tier; of experts, once they are chosen      |
| streamed weights   | private operands of their task; under `prefetch` a `weight_load` of their own, by a DMA     |
| collective         | its launch on an engine, then a DMA's transfers on the link, round by round                |
| p2p                | its launch on an engine, then a DMA's transfer on the link                                  |
| expert_dispatch, .. | a launch on an engine; each of its sends, an op of its own, is a DMA's transfer on the link  |
| off-chip results   | an `act_store` after each task, and operand bytes (or under `prefetch` an `act_load`) before |
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.graph import QUANTITIES, OpGraph
from models.rewrites import COLLECTIVES, EXCHANGE_SENDS, P2P, read_in_place, without_resident
from sim.mapping.collectives import ALIKE, Connection, Phase, phases
from sim.mapping.grid import Grid, is_joined, shares_needed
from sim.mapping.settings import ModelMapping, Offload
from sim.mapping.tasks import CACHED_BITS, CLASS_BIT, LINK_BIT, NETWORK_BIT, Links, TaskGraph, to_tier, with_links
from sim.mapping.template import rows

#: Ops that move the KV cache or a state, and their byte class at the device's memory: a swap-out reads it.
KV_CLASS = {
    "kv_load": "kv_read", "kv_store": "kv_write", "kv_swap_out": "kv_read", "kv_swap_in": "kv_write",
    "state_load": "state_read", "state_store": "state_write", "state_swap_out": "state_read", "state_swap_in": "state_write",
    "kv_spill": "kv_read", "kv_fetch": "kv_write", "state_spill": "state_read", "state_fetch": "state_write",
}  # fmt: skip

#: Ops that send the KV cache or a state to another device.
HAND_OVERS = ("kv_send", "state_send")

SWAPS = frozenset(kind for kind in KV_CLASS if kind.partition("_")[2] not in ("load", "store"))


def lower(
    ops: OpGraph, mapping: ModelMapping, *, tiers: Sequence[str] = (), tier: int = 0, connection: Connection = ALIKE
) -> TaskGraph:
    """Make the task graph of one step.

    tiers: names of the memories beside that of the device to which the machine has links; over that to number `tier` caches
    are swapped. connection: of its devices.
    """
    if mapping.kv == "operands":
        ops = read_in_place(ops)
    if isinstance(mapping.residency, Fraction):
        ops = without_resident(ops, mapping.residency)
    lowering = _Lowering(ops, mapping, tiers=tiers, tier=tier, connection=connection)
    for i in range(len(ops.ops)):
        lowering.add_op(i)
    return lowering.graph()


class _Share(NamedTuple):
    """A share of an op, with the labels of all its tasks; fields are columns of `TaskGraph`."""

    op: int
    part: int
    parts: int
    head: int
    tile: int
    layer: int


#: Columns of the collected tasks, and their types in `TaskGraph`.
_COLUMNS = {
    "op": np.int32, "part": np.int32, "parts": np.int32, "head": np.int16, "tile": np.int16, "layer": np.int16,
    "kind": np.int16, "engine": np.bool_, "computes": np.bool_, "moves": np.uint16, "prefetch": np.bool_, "to": np.int16,
}  # fmt: skip


class _Lowering:
    """Collects the tasks of one step, op by op.

    rows: [task], its `_COLUMNS`. inputs: [task], tasks and joins that it needs; join j is -1 - j. joins: [join], tasks that
    it waits for. results: [op][share], the task after which the result can be used. received: op -> further such tasks, which
    send to its device. receiver: op that sends to another stage, or tokens to another device -> the simulated device there.
    """

    def __init__(self, ops: OpGraph, mapping: ModelMapping, *, tiers: Sequence[str], tier: int, connection: Connection) -> None:
        self.ops, self.mapping, self.connection = ops, mapping, connection
        self.swapped_over = to_tier(tier) if tiers else 0
        self.blocking, self.prefetch = mapping.execution == "blocking", mapping.execution == "prefetch"
        self.grids = _grids(ops, mapping)
        self.has = {name: _some(ops, name).tolist() for name in QUANTITIES}
        self.offloaded = offloaded(ops, mapping.offloads, tiers).tolist()
        self.owner_of = cache_owners(ops)
        self.receiver = {j: op.device for op in ops.ops for j in op.inputs if ops.ops[j].kind in (P2P, *EXCHANGE_SENDS)}
        self.kinds: dict[str, int] = {}
        self.rows: list[tuple[int, ...]] = []
        self.inputs: list[list[int]] = []
        self.joins: list[list[int]] = []
        self.results: list[list[int]] = []
        self.received: dict[int, list[int]] = {}
        self.join_of: dict[int, int] = {}  # op -> the join of its results
        self.kv_loads: dict[int, list[int]] = {}
        self.kv_stores: dict[int, list[int]] = {}

    def add_op(self, i: int) -> None:
        """Add the tasks of the next op, share by share; of a collective those of all devices, round by round."""
        if i < len(self.results):
            return  # of another device of a collective
        if self.ops.ops[i].kind not in COLLECTIVES:
            self.results.append([self._added(share, inputs) for share, inputs in self._shares(i)])
            return
        devices = range(i, i + self.mapping.parallel.copies)
        self._add_collective(devices, [self._shares(j)[0] for j in devices])

    def _shares(self, i: int) -> list[tuple[_Share, list[int]]]:
        """The shares of an op, each with the tasks and joins that it needs."""
        op, grid = self.ops.ops[i], self.grids[i]
        joined = {j for j in op.inputs if is_joined(self.ops, i, j, self.grids)}
        for j in op.inputs:
            if j in joined and j not in self.join_of:
                self.joins.append(self.results[j])
                self.join_of[j] = -len(self.joins)
        shares = []
        for part in range(len(grid)):
            inputs = [self.join_of[j] for j in joined]
            for j in op.inputs:
                inputs += self.received.get(j, ())
                if j not in joined:
                    inputs += [self.results[j][needed] for needed in shares_needed(self.ops, i, j, part, self.grids)]
            shares.append((_Share(i, part, len(grid), *grid.labels(part), op.layer), inputs))
        return shares

    def _added(self, share: _Share, inputs: list[int]) -> int:
        """Add the tasks of a share of an op; returns the one after which its result can be used."""
        kind = self.ops.ops[share.op].kind
        if kind in HAND_OVERS:
            return self._send(share, kind, inputs, self._number(self.ops.ops[share.op].device))
        if kind in EXCHANGE_SENDS:
            return self._send(share, kind, inputs, self._number(self.receiver[share.op]))
        if kind in KV_CLASS:
            return self._add_kv_transfer(share, inputs)
        if kind == P2P:
            launched = self._add(share, kind, inputs, engine=True, computes=True)
            return self._send(share, f"{kind}_send", [launched], self._number(self.receiver[share.op]))
        return self._add_compute(share, inputs)

    def _add_collective(self, ops: range, each: list[tuple[_Share, list[int]]]) -> None:
        """Add the launches and the transfers of a collective on its devices, of which one may stand for all.

        Each round needs the device's own transfers of the one before (on one link the last ends last, in the queue of
        its DMA), and what other devices that are simulated sent to it then. A transfer is the largest share of its op, so that
        those of all rounds are equal: see `sim.mapping.collectives`. each: the share of each device, and what it needs.
        """
        kind, parallel = self.ops.ops[ops[0]].kind, self.mapping.parallel
        after = [[self._add(share, kind, inputs, engine=True, computes=True)] for share, inputs in each]  # [device]
        every = phases(kind, parallel.algorithm, parallel.devices_of(kind), self.connection.island)
        for phase, number in [(of, number) for of in every for number in range(of.rounds.number)]:
            after = [self._joined(needed, phase.rounds.sends) for needed in after]
            sent = [self._round(phase, number, kind, *on) for on in zip(each, after, range(len(ops)), strict=True)]
            from_others = [phase.received(number, device) if len(ops) > 1 else [] for device in range(len(ops))]
            after = [
                [own[-1], *(own[:-1] if self.connection.several else ()), *(sent[device][send] for device, send in others)]
                for own, others in zip(sent, from_others, strict=True)
            ]
        for i, (own, *others) in zip(ops, after, strict=True):
            self.results.append([own])
            if others:
                self.received[i] = others

    def _round(
        self, phase: Phase, number: int, kind: str, of: tuple[_Share, list[int]], needed: list[int], device: int
    ) -> list[int]:  # fmt: skip
        """Add the transfers of a device in a round of a collective; returns them."""
        sends, parts = phase.rounds.sends, phase.parts
        share = of[0]._replace(part=parts - 1, parts=parts)
        parallel = self.mapping.parallel
        stage = self.ops.ops[share.op].device // parallel.copies * parallel.tensor  # its first device
        return [
            self._send(
                share._replace(tile=number * sends + send), f"{kind}_send", needed, stage + phase.target(number, send, device)
            )
            for send in range(sends)
        ]

    def _send(self, share: _Share, kind: str, needed: list[int], to: int) -> int:
        """Add a transfer to another device, by its number among all; returns it."""
        across = self.connection.crosses(self._number(self.ops.ops[share.op].device), to)
        return self._add(share, kind, needed, moves=LINK_BIT | NETWORK_BIT * across, to=to)

    def _number(self, device: int) -> int:
        """The number of a simulated device among all."""
        return device * (self.mapping.parallel.tensor // self.mapping.parallel.copies)

    def _joined(self, needed: list[int], consumers: int) -> list[int]:
        """Inputs of so many tasks: all that they need, or a join of it where that has fewer edges."""
        if len(needed) * consumers <= len(needed) + consumers:
            return needed
        self.joins.append(needed)
        return [-len(self.joins)]

    def _add_kv_transfer(self, share: _Share, inputs: list[int]) -> int:
        """Add the transfer of a share of the KV cache; returns it."""
        op = self.ops.ops[share.op]
        moved = CLASS_BIT[KV_CLASS[op.kind]]
        path = self.swapped_over if op.kind in SWAPS else 0
        task = self._add(share, op.kind, inputs, engine=self.blocking, moves=moved | path)
        by_layer = self.kv_loads if moved & CACHED_BITS else self.kv_stores
        by_layer.setdefault(self.owner_of.get(share.op, op.layer), []).append(task)
        return task

    def _add_compute(self, share: _Share, inputs: list[int]) -> int:
        """Add the task that computes a share, with the transfers of its operands and results; returns the last of them."""
        i, op = share.op, self.ops.ops[share.op]
        cached = [CLASS_BIT[name] for name in ("kv_read", "state_read") if self.has[name][i]]
        operands = list(cached)  # that the engine loads itself
        loads = []
        if self.offloaded[i] >= 0:
            # Which experts are needed is known when the tokens have chosen; all other weights are needed at every step.
            known = op.experts is None
            moves = CLASS_BIT["weight"] | to_tier(self.offloaded[i])
            loads.append(self._add(share, "host_load", [] if known else inputs, moves=moves, prefetch=known))
        elif self.mapping.residency != "resident" and self.has["weight"][i]:
            if self.prefetch:
                loads.append(self._add(share, "weight_load", [], moves=CLASS_BIT["weight"], prefetch=True))
            else:
                operands.append(CLASS_BIT["weight"])
        off_chip = self.mapping.activations == "off_chip"
        if off_chip and self.has["act_read"][i]:
            if self.prefetch:
                loads.append(self._add(share, "act_load", inputs, moves=CLASS_BIT["act_read"]))
            else:
                operands.append(CLASS_BIT["act_read"])
        task = self._add(share, op.kind, [*inputs, *loads], engine=True, computes=True, moves=sum(operands))
        if cached:
            self.kv_loads.setdefault(self.owner_of.get(i, op.layer), []).append(task)
        if off_chip and self.has["act_write"][i]:
            return self._add(share, "act_store", [task], engine=self.blocking, moves=CLASS_BIT["act_write"])
        return task

    def _add(
        self, share: _Share, kind: str, inputs: list[int], *, engine: bool = False, computes: bool = False, moves: int = 0,
        prefetch: bool = False, to: int = -1,
    ) -> int:  # fmt: skip
        """Add a task; returns its number."""
        self.rows.append((*share, self.kinds.setdefault(kind, len(self.kinds)), engine, computes, moves, prefetch, to))
        self.inputs.append(sorted(set(inputs)))
        return len(self.rows) - 1

    def graph(self) -> TaskGraph:
        """The task graph of all tasks added."""
        table = np.array(self.rows, dtype=np.int64).reshape(len(self.rows), len(_COLUMNS)).T
        columns: dict[str, Any] = {
            name: column.astype(dtype) for (name, dtype), column in zip(_COLUMNS.items(), table, strict=True)
        }
        for name, by_layer in (("kv_loads", self.kv_loads), ("kv_stores", self.kv_stores)):
            columns[name] = {layer: tuple(tasks) for layer, tasks in by_layer.items()}
        return with_links(self._links(), {"ops": self.ops, "kinds": tuple(self.kinds), **columns})

    def _links(self) -> Links:
        """The edges. Nodes are tasks, then joins."""
        needs = self.inputs + self.joins
        count = np.array([len(row) for row in needs], dtype=np.int64)
        consumers = np.repeat(np.arange(len(needs)), count)
        inputs = np.array([source for row in needs for source in row], dtype=np.int64)
        inputs = np.where(inputs < 0, len(self.rows) - 1 - inputs, inputs)
        return Links(len(self.joins), *rows(consumers, inputs, len(needs)), *rows(inputs, consumers, len(needs)))


def cache_owners(ops: OpGraph) -> dict[int, int]:
    """For ops that read the KV cache of another layer, that layer: its new rows are stored there, and attended to here."""
    stored = {i: op.layer for op in ops.ops if op.kind == "kv_store" for i in op.inputs}
    owning = {op.layer for op in ops.ops if op.kind == "kv_store"}
    owners: dict[int, int] = {}
    for i, op in enumerate(ops.ops):
        if op.layer < 0 or op.layer in owning:
            continue
        layers = {stored[j] for j in op.inputs if j in stored and stored[j] != op.layer}
        if len(layers) == 1:
            owners[i] = layers.pop()
            owners |= {j: owners[i] for j in op.inputs if ops.ops[j].kind == "kv_load"}
    return owners


def weight_matmuls(ops: OpGraph) -> npt.NDArray[np.bool_]:
    """[op]: whether it is a weight matmul, which can be cut into tiles, each with its columns of the weights."""
    return _some(ops, "flops") & _some(ops, "weight")


def offloaded(ops: OpGraph, offloads: Sequence[Offload], tiers: Sequence[str]) -> npt.NDArray[np.int8]:
    """[op]: the number of the tier where its weights are, -1 for the memory of the device. tiers: their names."""
    found = np.full(len(ops), -1, dtype=np.int8)
    for offload in reversed(offloads):
        found[_of(ops, offload)] = 0 if offload.tier is None else tiers.index(offload.tier)
    return found


def _of(ops: OpGraph, offload: Offload) -> npt.NDArray[np.bool_]:
    """[op]: whether its weights are among those to offload."""
    kind = np.array([op.kind for op in ops.ops])
    if offload.weights == "experts":
        chosen = np.array([op.experts is not None for op in ops.ops])
    else:
        chosen = np.char.find(kind, "embedding") < 0 if offload.weights == "all" else np.isin(kind, offload.weights)
    layer = np.array([op.layer for op in ops.ops])
    there = np.ones(len(ops), dtype=np.bool_) if offload.layers is None else (layer >= 0) & (layer < offload.layers)
    return np.asarray(chosen & there & _some(ops, "weight"))


def _some(ops: OpGraph, quantity: str) -> npt.NDArray[np.bool_]:
    """[op]: whether a quantity of the op is above 0 at some size of the step."""
    some = (ops.table != 0).any(axis=(1, 2))  # [polynomial]
    number = QUANTITIES.index(quantity)
    found: npt.NDArray[np.bool_] = some[ops.cost_index[number]] | some[ops.several_index[number]]
    return found


def _grids(ops: OpGraph, mapping: ModelMapping) -> list[Grid]:
    """The cut of each op: per head, along the keys, or (weight matmuls, and activations between them) by columns."""
    grids: list[Grid] = []
    matmuls = weight_matmuls(ops)
    for i, op in enumerate(ops.ops):
        if op.kind == "kv_load":
            grid = Grid(heads=op.heads or 1 if mapping.kv_loads == "head" else 1, splits=op.splits)
        elif op.kind in KV_CLASS:
            grid = Grid()
        elif op.heads or op.splits > 1:
            grid = Grid(heads=op.heads or 1 if mapping.heads == "split" else 1, splits=op.splits)
        elif matmuls[i]:
            grid = Grid(tiles=mapping.tiles_of(op.kind))
        elif op.kind == "act" and len({grids[j].tiles for j in op.inputs}) == 1:
            grid = Grid(tiles=grids[op.inputs[0]].tiles)
        else:
            grid = Grid()
        grids.append(grid)
    return grids
