"""A recording: the ops of one step of a model, put in order.

Ops whose results are not used are left out, the order is made independent of how Python iterates over sets, and the loads
and stores of the cache are made explicit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from models.cache import KV_STORE

#: Name of the op that loads the past rows of a layer's cache onto the chip.
KV_LOAD = "kv_load"


@dataclass(slots=True, kw_only=True)
class Storage:
    """Facts of one piece of memory.

    kind: `weight` (part of a checkpoint), `gathered` (weights between a gather and the product that uses them), `cache`,
    or `activation` (everything else: results, inputs, constants).
    """

    kind: str = "activation"
    name: str = ""  # of the parameter
    layer: int = -1  # of the cache
    past: int = 0  # rows of the cache from before the step
    rows: int = 0
    shape: tuple[int, ...] = ()  # of the cache: [B, KV, rows, D]
    loaded: int = 0  # bytes of past rows that the step needs
    writers: tuple[int, ...] = ()
    readers: set[int] = field(default_factory=set)  # since it was last written
    keep: Any = None  # the storage itself, so that its address is not reused


@dataclass(slots=True, kw_only=True)
class Node:
    """One aten op of the step, or the explicit load or store of a layer's cache.

    costs: in the order of `models.graph.QUANTITIES`. weights: names of the parameters it reads.
    experts: for a gather of expert weights, the number of experts and the bytes of one.
    calls: function, arguments and results, with `TensorRef` for tensors, if the recorder keeps them.
    issued: its indices in `Recorder.issued`; two for an append, none for a load.
    """

    name: str
    path: str
    layer: int
    role: str = ""
    heads: int = 0
    hint: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    costs: tuple[int, ...] = (0,) * 7
    weights: tuple[str, ...] = ()
    experts: tuple[int, int] = (0, 0)
    cache: int = -1  # of an append: the layer of the cache it goes to
    sources: tuple[tuple[int, ...], ...] = ()  # of a store: nodes that make the keys, nodes that make the values
    calls: tuple[tuple[Any, Any, Any, Any], ...] = ()
    issued: tuple[int, ...] = ()

    @property
    def signature(self) -> tuple[Any, ...]:
        """Facts that must be the same in every capture of one variant."""
        return self.name, self.path, self.role, self.inputs, len(self.shape)


@dataclass(kw_only=True)
class Recording:
    """The ops of one step in program order, with module classes by path, and the path of the list of layers."""

    nodes: list[Node]
    classes: dict[str, str]
    layers_path: str
    storages: dict[int, Storage]
    kv_shape: tuple[int, int] = (0, 0)  # KV heads, head dim of the keys of the first layer


def alive(nodes: list[Node], results: tuple[int, ...]) -> list[Node]:
    """The ops that `results` and the appends to the cache depend on, renumbered."""
    alive = {i for i, node in enumerate(nodes) if node.role == KV_STORE} | set(results)
    for i in reversed(range(len(nodes))):  # inputs come before the ops that need them
        if i in alive:
            alive.update(nodes[i].inputs)
    new_index = {i: n for n, i in enumerate(sorted(alive))}
    # An op that another must not overtake may have no reader of its own.
    return [replace(nodes[i], inputs=tuple(new_index[j] for j in nodes[i].inputs)) for i in new_index]


def by_first_use(nodes: list[Node]) -> list[Node]:
    """Nodes with similar calls of one module in the order in which their results are first used.

    Some families iterate over a set of names, such as the kinds of their layers, and call one module for each, in an order
    that differs between runs of Python.
    """
    order = list(range(len(nodes)))
    begin = 0
    while begin < len(nodes):
        end = begin
        while end < len(nodes) and nodes[end].layer < 0 and nodes[end].path == nodes[begin].path:
            end += 1
        if blocks := _like_blocks(nodes, begin, end):
            used = {
                block: min(i for i in range(end, len(nodes)) if set(block).intersection(nodes[i].inputs)) for block in blocks
            }
            order[begin:end] = [i for block in sorted(blocks, key=used.__getitem__) for i in block]
        begin = max(end, begin + 1)
    place = {old: new for new, old in enumerate(order)}
    return [
        replace(
            nodes[i],
            inputs=tuple(sorted(place[j] for j in nodes[i].inputs)),
            sources=tuple(tuple(sorted(place[j] for j in source)) for source in nodes[i].sources),
        )
        for i in order
    ]


def _like_blocks(nodes: Sequence[Node], begin: int, end: int) -> list[range]:
    """Shortest equal blocks that make up nodes begin to end; empty unless the blocks are independent and all are used."""
    signs = [(node.name, node.role, node.dtype, len(node.shape)) for node in nodes[begin:end]]
    for size in range(1, len(signs) // 2 + 1):
        if len(signs) % size or signs[size:] != signs[:-size]:
            continue
        blocks = [range(first, first + size) for first in range(begin, end, size)]
        alone = all(j < begin or j in block for block in blocks for i in block for j in nodes[i].inputs)
        needed = {j for node in nodes[end:] for j in node.inputs}
        return blocks if alone and all(needed.intersection(block) for block in blocks) else []
    return []


def with_transfers(nodes: Sequence[Node], storages: Mapping[int, Storage]) -> list[Node]:
    """Nodes with one load and one store of each layer's cache, in place of the ops that append to it.

    The load comes first in its layer and has no inputs. It moves each past row once, however many ops read it: afterwards
    it is on chip. An op that reads the cache needs the load and the ops that made the new rows; nothing waits for the store.
    """
    appends: dict[int, list[int]] = {}  # layer -> its appends: the copy of the keys, then of the values
    for i, node in enumerate(nodes):
        if node.role == KV_STORE:
            appends.setdefault(node.layer, []).append(i)
    first_of = {next(i for i, node in enumerate(nodes) if node.layer == layer): layer for layer in appends}
    caches: dict[int, list[Storage]] = {}
    for storage in storages.values():
        if storage.kind == "cache":
            caches.setdefault(storage.layer, []).append(storage)

    result: list[Node] = []
    sources: dict[int, tuple[int, ...]] = {}  # node -> nodes of the result that an op which reads it needs
    load_of: dict[int, int] = {}  # layer -> its load in the result
    for i, node in enumerate(nodes):
        if i in first_of:
            layer = first_of[i]
            append = nodes[appends[layer][0]]
            load_of[layer] = len(result)
            result.append(_load(append, layer, caches[append.cache]))
        inputs = {k for j in node.inputs for k in sources[j]}
        if node.role != KV_STORE:
            sources[i] = (len(result),)
            result.append(replace(node, inputs=tuple(sorted(inputs))))
            continue
        load, copies = load_of[node.layer], appends[node.layer]
        # An append needs neither the rows in front of its own, nor the other copy; a reader needs those rows, too.
        sources[i] = tuple(sorted({load, *inputs}))
        if i == copies[-1]:
            made = [{k for j in nodes[copy].inputs for k in sources[j]} - {load} for copy in copies]
            result.append(_store([nodes[copy] for copy in copies], made))
    return result


def _load(append: Node, layer: int, caches: Sequence[Storage]) -> Node:
    """The load of a layer's cache. append: an op that appends to it. caches: its storages, keys first."""
    keys = caches[0]
    return Node(
        name=KV_LOAD,
        path=append.path,
        layer=layer,
        role=KV_LOAD,
        dtype=append.dtype,
        shape=(*keys.shape[:-2], keys.past, keys.shape[-1]),
        costs=(0, 0, 0, sum(storage.loaded for storage in caches), 0, 0, 0),
    )


def _store(copies: Sequence[Node], made: Sequence[set[int]]) -> Node:
    """Both copies of an append as one node. made: for each copy, the nodes that make its rows."""
    return replace(
        copies[-1],
        name=KV_STORE,
        shape=copies[0].shape,
        inputs=tuple(sorted(set().union(*made))),
        sources=tuple(tuple(sorted(rows)) for rows in made),
        costs=tuple(map(sum, zip(*(copy.costs for copy in copies), strict=True))),
        calls=tuple(call for copy in copies for call in copy.calls),
        issued=tuple(number for copy in copies for number in copy.issued),
    )
