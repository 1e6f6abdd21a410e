"""The task graph of a step, which is scheduled on engines and channels: a DAG kept as arrays, lowered from an op graph.

A task computes on an engine, moves bytes through the memory channel, or does both (under `blocking` and `stream`
execution an engine loads the private operands of the task that it runs). Each task is a share of one op:
share `part` of `parts`, so that the shares of an op sum to the op exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.graph import QUANTITIES, IntArray, OpGraph
from sim.mapping.template import first_of_each, rows

#: Byte classes of the memory; each is one of `QUANTITIES`.
MEMORY_CLASSES = ("weight", "kv_read", "kv_write", "act_read", "act_write", "state_read", "state_write")

#: All byte classes, and the index in `QUANTITIES` that they are counted by: a link carries what an op writes.
CLASS_QUANTITY = {name: QUANTITIES.index(name) for name in MEMORY_CLASSES} | {"link": QUANTITIES.index("act_write")}
BYTE_CLASSES = tuple(CLASS_QUANTITY)

#: Byte classes as bits of `TaskGraph.moves`: bit i stands for `BYTE_CLASSES[i]`.
CLASS_BIT = {name: 1 << i for i, name in enumerate(BYTE_CLASSES)}
LINK_BIT = CLASS_BIT["link"]
ALL_BYTES = sum(CLASS_BIT.values())

#: Beside byte classes in `TaskGraph.moves`: these bytes move over the link to a tier, such as the memory of the host, not
#: through the memory of the device.
HOST_BIT = 1 << len(BYTE_CLASSES)

#: Beside the bit of a link: these bytes move over the network between islands of devices.
NETWORK_BIT = HOST_BIT << 1

#: Beside `HOST_BIT`: where the number of the tier begins, in two bits; the host is 0.
TIER_SHIFT = len(BYTE_CLASSES) + 2
MOST_TIERS = 4
TIER_BITS = (MOST_TIERS - 1) << TIER_SHIFT
WRITE_BITS = CLASS_BIT["kv_write"] | CLASS_BIT["act_write"] | CLASS_BIT["state_write"]

#: Byte classes of what a step reads of what its sequences keep: rows of a KV cache, and states.
CACHED_BITS = CLASS_BIT["kv_read"] | CLASS_BIT["state_read"]

#: Beginning of the kinds of tasks of a draft model.
DRAFT = "draft "


def path_of(moves: npt.NDArray[np.uint16]) -> npt.NDArray[np.int8]:
    """Over which path bytes move, as an index into `sim.machine.machine.PATHS`: [task], from `TaskGraph.moves`."""
    tier = (moves >> TIER_SHIFT).astype(np.int64)
    of_tier = np.where(tier > 0, 3 + tier, 2)
    return np.select([moves & bit != 0 for bit in (NETWORK_BIT, HOST_BIT, LINK_BIT)], [3, of_tier, 1]).astype(np.int8)


def to_tier(number: int) -> int:
    """Bits of `TaskGraph.moves` for bytes over the link to a tier."""
    return HOST_BIT | number << TIER_SHIFT


class ByLayer(Mapping[int, tuple[int, ...]]):
    """Tasks by layer, sorted on first use. tasks: [task], ascending. layer: int16 [task]."""

    def __init__(self, tasks: npt.NDArray[np.intp], layer: npt.NDArray[np.int16]) -> None:
        self._tasks, self._layer = tasks, layer
        self._made: dict[int, tuple[int, ...]] | None = None

    def _sorted(self) -> dict[int, tuple[int, ...]]:
        if self._made is None:
            made: dict[int, list[int]] = {}
            for task, layer in zip(self._tasks.tolist(), self._layer.tolist(), strict=True):
                made.setdefault(layer, []).append(task)
            self._made = {layer: tuple(tasks) for layer, tasks in made.items()}
        return self._made

    def __getitem__(self, layer: int) -> tuple[int, ...]:
        return self._sorted()[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._sorted())

    def __len__(self) -> int:
        return len(self._sorted())


class Links(NamedTuple):
    """Edges of a task graph. A *join* replaces the edges between many tasks and many others that need all of them.

    Nodes are the tasks, and after them `joins` joins: node `len(graph) + j` is join j. A join is not a task. It completes
    when the last task that it needs ends, and a task that needs the join needs all of these. Joins need only tasks.
    inputs, input_start: CSR of the nodes that each node needs. outputs, output_start: CSR of the nodes that need it.
    """

    joins: int
    inputs: npt.NDArray[np.int32]
    input_start: npt.NDArray[np.int32]
    outputs: npt.NDArray[np.int32]
    output_start: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGraph:
    """The DAG of tasks of one step. All columns have one entry per task, in program order.

    ops: the op graph it was lowered from.
    kinds: names; `kind[t]` indexes it. A task has its op's kind, or `weight_load`, `act_load`, `act_store`; in a step of a
    draft model `DRAFT` comes before it.
    op, part, parts: the share of the op that the task stands for.
    head, tile: which head, and which tile (or split of the keys) of its op, -1 if the op was not cut that way. Heads of a
    KV load are those of the cache.
    layer: decoder layer, -1 outside of layers.
    engine: True if an engine is held while it runs, False if a DMA issues it.
    computes: True if it does its op's arithmetic.
    moves: bits of `CLASS_BIT`: the bytes that it moves through the channel; 0 if none. `to_tier`: over the link to a tier;
    `NETWORK_BIT`: over that to the network between islands.
    to: number of the device that a transfer over links goes to, among all, simulated or not; -1 for all else.
    prefetch: True for a load that waits for nothing but space in SRAM.
    inputs, input_start: CSR of the tasks it needs (indices smaller than its own).
    outputs, output_start: CSR of the tasks that need it.
    links: the same edges, through joins where there are very many; executors follow these.
    kv_loads, kv_stores: layer -> tasks that read or append to the KV cache of that layer, or load or store its state.
    first_device: that of the replica that the step runs on. receivers: for each member, that of the one that its cache goes to.
    """

    ops: OpGraph
    kinds: tuple[str, ...]
    kind: npt.NDArray[np.int16]
    op: npt.NDArray[np.int32]
    part: npt.NDArray[np.int32]
    parts: npt.NDArray[np.int32]
    head: npt.NDArray[np.int16]
    tile: npt.NDArray[np.int16]
    layer: npt.NDArray[np.int16]
    engine: npt.NDArray[np.bool_]
    computes: npt.NDArray[np.bool_]
    moves: npt.NDArray[np.uint16]
    prefetch: npt.NDArray[np.bool_]
    to: npt.NDArray[np.int16]
    inputs: npt.NDArray[np.int32]
    input_start: npt.NDArray[np.int32]
    outputs: npt.NDArray[np.int32] = field(repr=False)
    output_start: npt.NDArray[np.int32] = field(repr=False)
    kv_loads: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    kv_stores: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    first_device: int = 0
    receivers: tuple[int, ...] = ()
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # columns made so far

    def __len__(self) -> int:
        return len(self.op)

    def __repr__(self) -> str:
        return f"TaskGraph({len(self)} tasks, {len(self.links.inputs)} edges)"

    @property
    def links(self) -> Links:
        """The edges as they are stored."""
        return Links(0, self.inputs, self.input_start, self.outputs, self.output_start)

    @property
    def device(self) -> IntArray:
        """[task]: the simulated device on whose engines, memory and link it runs."""
        return self.first_device + self.ops.device[self.op]

    @property
    def draft(self) -> bool:
        """Whether it is a step of a draft model."""
        return bool(self.kinds) and self.kinds[0].startswith(DRAFT)

    @property
    def plain_kinds(self) -> tuple[str, ...]:
        """`kinds` by which arbiters and cost models know tasks, also those of a draft model."""
        return tuple(kind.removeprefix(DRAFT) for kind in self.kinds)

    def kind_of(self, task: int) -> str:
        return self.kinds[int(self.kind[task])]

    def name(self, task: int) -> str:
        """Name of a task: its kind, with its part, head, split or tile: `scores h3`, `rope q`, `attention h3 s0`."""
        op = self.ops.ops[int(self.op[task])]
        kind = self.kind_of(task)
        words = [kind]
        kind = kind.removeprefix(DRAFT)
        if self.ops.members not in (None, 1) and (member := int(self.ops.member[self.op[task]])) >= 0:
            words.append(f"m{member}")
        if kind != op.kind:
            words.append(op.kind)
        if op.part:
            words.append(op.part)
        if self.head[task] >= 0:
            words.append(f"h{self.head[task]}")
        if self.tile[task] >= 0:
            words.append(f"{'s' if op.splits > 1 else 't'}{self.tile[task]}")
        return " ".join(words)

    def share(self, quantity: IntArray, tasks: npt.NDArray[np.intp] | None = None) -> IntArray:
        """Split a per-op quantity [op(, lane)] over tasks [task(, lane)], into integers that sum to the op's value.

        tasks: only the shares of these.
        """
        tasks = np.arange(len(self)) if tasks is None else tasks
        each = quantity[self.op[tasks]]
        split = np.flatnonzero(self.parts[tasks] > 1)
        if not len(split):
            return each
        part, parts = self.part[tasks[split]].astype(np.int64), self.parts[tasks[split]].astype(np.int64)
        if quantity.ndim == 2:
            part, parts = part[:, None], parts[:, None]
        # x * (i + 1) // k - x * i // k, without the product that could overflow
        whole = each[split]
        portion = whole // parts
        rest = whole - portion * parts
        if rest.any():
            portion += rest * (part + 1) // parts - rest * part // parts
        each[split] = portion
        return each

    def bytes_moved(
        self, costs: IntArray, tasks: npt.NDArray[np.intp] | None = None, classes: int = ALL_BYTES
    ) -> IntArray:  # fmt: skip
        """Bytes that each task (or each of `tasks`) moves through the channel, from `OpGraph.costs` [quantity, op(, lane)].

        classes: bits of the byte classes that count.
        """
        tasks = np.arange(len(self)) if tasks is None else tasks
        moves = self.moves[tasks] & classes
        total = np.zeros((len(tasks), *costs.shape[2:]), dtype=np.int64)
        for name, bit in CLASS_BIT.items():
            chosen = np.flatnonzero(moves & bit)
            if len(chosen):
                total[chosen] += self.share(costs[CLASS_QUANTITY[name]], tasks[chosen])
        return total

    def alike(
        self, costs: IntArray, ops: npt.NDArray[np.intp] | None = None
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:  # fmt: skip
        """Representatives of tasks with equal costs: (int [representative], tasks; int [task], index of its representative).

        Equal shares of one op cost the same, and most ops divide evenly: a value computed per representative and spread by
        the index is computed some ten times less often. costs: [quantity, op(, lane)], all that is shared out. ops: for each
        op, the first of those that cost the same.
        """
        first, kind = self._forms(ops)
        op, parts = self.op[first], self.parts[first].astype(np.int64)
        split = np.flatnonzero(parts > 1)
        of = costs.reshape(len(costs), len(self.ops), -1)
        divides = np.ones(len(first), dtype=np.bool_)
        divides[split] = (of[:, op[split]] % parts[split, None] == 0).all(axis=(0, 2))
        if divides.all():
            return first, kind
        most = int(self.parts.max(initial=0)) + 1
        same = np.where(divides[kind], 0, self.part.astype(np.int64))
        return first_of_each(kind * most + same, len(first) * most)

    def _forms(self, ops: npt.NDArray[np.intp] | None) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """As `alike`, by the cost of the op, its number of shares, and the bytes that the task moves; shares count as equal."""
        name = "forms of ops" if ops is None else "forms"
        if name not in self._made or (ops is not None and self._made["ops"] is not ops):
            which = np.arange(len(self.ops)) if ops is None else ops
            most = int(self.parts.max(initial=0)) + 1
            form = self.moves.astype(np.int64) * 2 + self.computes
            _, compact = first_of_each(form, 2 << (TIER_SHIFT + 2))
            forms = int(compact.max(initial=0)) + 1
            share = (which[self.op] * most + self.parts) * forms + compact
            self._made[name] = first_of_each(share, len(which) * most * forms)
            self._made["ops"] = ops if ops is not None else self._made.get("ops")
        made: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] = self._made[name]
        return made


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JoinedGraph(TaskGraph):
    """A task graph with joins. Edges from task to task are made on first use."""

    links: Links = field(repr=False)
    inputs: npt.NDArray[np.int32] = field(init=False, repr=False, compare=False)
    input_start: npt.NDArray[np.int32] = field(init=False, repr=False, compare=False)
    outputs: npt.NDArray[np.int32] = field(init=False, repr=False, compare=False)
    output_start: npt.NDArray[np.int32] = field(init=False, repr=False, compare=False)

    if not TYPE_CHECKING:  # so that a type checker still finds unknown names

        def __getattr__(self, name: str) -> Any:
            """Make edges on first use; called for attributes that do not exist yet."""
            if name not in ("inputs", "input_start", "outputs", "output_start"):
                raise AttributeError(name)
            consumers, sources = self._edges()
            for value, start, row, of in (
                ("inputs", "input_start", consumers, sources), ("outputs", "output_start", sources, consumers),
            ):  # fmt: skip
                made = rows(row, of, len(self))
                object.__setattr__(self, value, made[0])
                object.__setattr__(self, start, made[1])
            return object.__getattribute__(self, name)

    def _edges(self) -> tuple[IntArray, IntArray]:
        """Edges from task to task, in no order: consumers and sources."""
        tasks, links = len(self), self.links
        start = links.input_start.astype(np.int64)
        consumer = np.repeat(np.arange(tasks), np.diff(start[: tasks + 1]))
        node = links.inputs[: len(consumer)].astype(np.int64)
        direct = node < tasks
        join, needs = node[~direct], consumer[~direct]
        size = start[join + 1] - start[join]
        at = np.repeat(start[join] - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))
        return np.concatenate([consumer[direct], np.repeat(needs, size)]), np.concatenate([node[direct], links.inputs[at]])


def with_links(links: Links, columns: dict[str, Any]) -> TaskGraph:
    """A task graph of these edges and its other columns."""
    if links.joins:
        return JoinedGraph(links=links, **columns)
    _, inputs, input_start, outputs, output_start = links
    return TaskGraph(inputs=inputs, input_start=input_start, outputs=outputs, output_start=output_start, **columns)
