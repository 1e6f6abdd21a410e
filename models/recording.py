"""A recording: the ops of one step of a model, put in order.

Ops whose results are not used are left out, the order is made independent of how Python iterates over sets, and the loads
and stores of the cache are made explicit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from models.boxes import Box, covered
from models.cache import KV_STORE
from models.op import QUANTITIES
from models.states import STATE_LOAD, STATE_STORE

#: Name of the op that loads the past rows of a layer's cache onto the chip.
KV_LOAD = "kv_load"

#: Hint and part of a load of rows that a step has chosen: the others are kept, too.
CHOSEN = "chosen"

#: Roles of the copies to a cache or a state; those of a layer become one op.
STORES = (KV_STORE, STATE_STORE)

#: Role of the copies to a cache or a state, a layer that uses it, and its number among those of the model.
Key = tuple[str, int, int]

#: Ops that only move a cache or a state.
TRANSFERS = (KV_LOAD, STATE_LOAD, *STORES)


@dataclass(slots=True, kw_only=True)
class Storage:
    """Facts of one piece of memory.

    kind: `weight` (part of a checkpoint), `gathered` (weights between a gather and the product that uses them), `cache`,
    `state` (a part of a layer's state), or `activation` (everything else: results, inputs, constants).
    """

    kind: str = "activation"
    name: str = ""  # of the parameter
    layer: int = -1  # of the cache or state
    past: int = 0  # rows of the cache from before the step
    shape: tuple[int, ...] = ()  # of the cache: [B, KV, rows, D], or [B, rows, D] of keys of an indexer
    element: int = 0  # its bytes
    read: set[Box] = field(default_factory=set)  # parts of past rows that the step needs
    chosen: bool = False  # whether it needs only some of the rows, which it chooses anew in every step
    writers: tuple[int, ...] = ()
    readers: set[int] = field(default_factory=set)  # since it was last written
    keep: Any = None  # the storage itself, so that its address is not reused


@dataclass(slots=True, kw_only=True)
class Node:
    """One aten op of the step, the explicit load or store of a layer's cache or state, or several ops of its scan.

    costs: in the order of `models.graph.QUANTITIES`. weights: names of the parameters it reads.
    reads: what it reads on chip or of weights, as (place, its storage, bytes, whether of weights). makes: storages it writes.
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
    costs: tuple[int, ...] = (0,) * len(QUANTITIES)
    weights: tuple[str, ...] = ()
    experts: tuple[int, int] = (0, 0)
    cache: int = -1  # of an append: the layer of the cache it goes to
    reads: tuple[tuple[Any, int, int, bool], ...] = ()
    makes: tuple[int, ...] = ()
    sources: tuple[tuple[int, ...], ...] = ()  # of a store: nodes that make the keys, nodes that make the values
    calls: tuple[tuple[Any, Any, Any, Any], ...] = ()
    issued: tuple[int, ...] = ()

    @property
    def signature(self) -> tuple[Any, ...]:
        """Facts that must be the same in every capture of one variant."""
        return self.name, self.path, self.role, self.inputs, len(self.shape)


@dataclass(kw_only=True)
class Recording:
    """The ops of one step in program order, with module classes by path, and the path of the list of layers.

    hands_on: how all layers return what they make of their input: 0 as a tensor of its shape, n as the first of a tuple of n;
    None if it is not that simple.
    """

    nodes: list[Node]
    classes: dict[str, str]
    layers_path: str
    storages: dict[int, Storage]
    kv_shape: tuple[int, int] = (0, 0)  # KV heads, head dim of the keys of the first layer
    hands_on: int | None = None


def alive(nodes: list[Node], results: tuple[int, ...]) -> list[Node]:
    """The ops that `results` and the stores of caches and states depend on, renumbered; they are no copies."""
    alive = {i for i, node in enumerate(nodes) if node.role in STORES} | set(results)
    for i in reversed(range(len(nodes))):  # inputs come before the ops that need them
        if i in alive:
            alive.update(nodes[i].inputs)
    kept = [nodes[i] for i in sorted(alive)]
    new_index = {i: n for n, i in enumerate(sorted(alive))}
    for node in kept:  # changed in place, as copies of some thousand nodes take a while
        node.inputs = tuple(new_index[j] for j in node.inputs)
    return kept


def by_first_use(nodes: list[Node]) -> list[Node]:
    """Nodes, no copies, with similar calls of one module in the order in which their results are first used.

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
    if order == sorted(order):
        return nodes
    place = {old: new for new, old in enumerate(order)}
    for node in nodes:
        node.inputs = tuple(sorted(place[j] for j in node.inputs))
        node.sources = tuple(tuple(sorted(place[j] for j in source)) for source in node.sources)
    return [nodes[i] for i in order]


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
    """Nodes, no copies, with one load and one store of each cache and state of a layer, in place of the ops that write them.

    The loads come first in their layer and have no inputs; that of a further cache of the layer comes first in its attention.
    A load moves what is there from before the step once, however many ops of the layer read it: afterwards it is on chip. A
    layer that reads the cache of another loads it again. An op that reads the cache needs the load and the ops that made the
    new rows; nothing waits for a store.
    """
    copies: dict[Key, list[int]] = {}  # its copies, such as of the keys, then of the values
    state_loads: dict[Key, Node] = {}
    for i, node in enumerate(nodes):
        if node.role in STORES:
            copies.setdefault((node.role, node.layer, node.cache), []).append(i)
        elif node.role == STATE_LOAD:
            state_loads[STATE_STORE, node.layer, node.cache] = node
    loads = _loads(nodes, copies, storages) | state_loads
    first_of: dict[int, list[Key]] = {}
    for key, i in _places(nodes, loads).items():
        first_of.setdefault(i, []).append(key)

    result: list[Node] = []
    sources: dict[int, tuple[int, ...]] = {}  # node -> nodes of the result that an op which reads it needs
    load_of: dict[Key, int] = {}
    for i, node in enumerate(nodes):
        for key in first_of.get(i, ()):
            load_of[key] = len(result)
            result.append(loads[key])
        if node.role == STATE_LOAD:
            sources[i] = (load_of[STATE_STORE, node.layer, node.cache],)
            continue
        inputs = set()
        for j in node.inputs:
            needed = set(sources[j])
            if nodes[j].role == KV_STORE and nodes[j].layer != node.layer:  # it loads the cache of another layer itself
                cache = nodes[j].cache
                needed = needed - {load_of[KV_STORE, nodes[j].layer, cache]} | {load_of[KV_STORE, node.layer, cache]}
            inputs |= needed
        if node.role not in STORES:
            sources[i] = (len(result),)
            node.inputs = tuple(sorted(inputs))
            result.append(node)
            continue
        key = node.role, node.layer, node.cache
        load, of_layer = load_of.get(key), copies[key]
        # An append needs neither the rows in front of its own, nor the other copy; a reader needs those rows, too.
        before = {load} if node.role == KV_STORE and load is not None else set()
        sources[i] = tuple(sorted(before | inputs))
        if i == of_layer[-1]:
            made = [{k for j in nodes[copy].inputs for k in sources[j]} - before for copy in of_layer]
            result.append(_store(node.role, [nodes[copy] for copy in of_layer], made))
    return result


def _places(nodes: Sequence[Node], loads: Mapping[Key, Node]) -> dict[Key, int]:
    """The node before which each load comes."""
    begin: dict[int, int] = {}  # of each layer
    first: dict[tuple[str, int], int] = {}  # cache of each layer
    for i, node in enumerate(nodes):
        begin.setdefault(node.layer, i)
    result = {}
    for (role, layer, cache), load in loads.items():
        inside = (i for i, node in enumerate(nodes) if f"{node.path}.".startswith(f"{load.path}."))
        result[role, layer, cache] = begin[layer] if first.setdefault((role, layer), cache) == cache else next(inside)
    return result


def _loads(nodes: Sequence[Node], copies: Mapping[Key, list[int]], storages: Mapping[int, Storage]) -> dict[Key, Node]:
    """The load of each layer that reads a KV cache, its own or that of another."""
    caches: dict[int, list[Storage]] = {}
    for storage in storages.values():
        if storage.kind == "cache":
            caches.setdefault(storage.layer, []).append(storage)
    loads = {
        (role, layer, cache): _load(nodes[of_layer[0]], layer, caches[cache])
        for (role, layer, cache), of_layer in copies.items()
        if role == KV_STORE
    }
    for node in nodes:
        for j in node.inputs:
            key = KV_STORE, node.layer, nodes[j].cache
            if nodes[j].role == KV_STORE and nodes[j].layer != node.layer and key not in loads:
                loads[key] = replace(_load(nodes[j], node.layer, caches[nodes[j].cache]), path=node.path)
    return loads


def _load(append: Node, layer: int, caches: Sequence[Storage]) -> Node:
    """The load of a layer's cache. append: an op that appends to it. caches: its storages, keys first."""
    keys = caches[0]
    return Node(
        name=KV_LOAD,
        path=append.path,
        layer=layer,
        role=KV_LOAD,
        hint=CHOSEN if any(storage.chosen for storage in caches) else "",
        dtype=append.dtype,
        shape=(*keys.shape[:-2], keys.past, keys.shape[-1]),
        costs=amounts(kv_read=sum(storage.element * covered(storage.read) for storage in caches)),
    )


def amounts(**named: int) -> tuple[int, ...]:
    """Costs in the order of `QUANTITIES`, 0 where not named."""
    return tuple(named.get(name, 0) for name in QUANTITIES)


def _store(role: str, copies: Sequence[Node], made: Sequence[set[int]]) -> Node:
    """The copies of a store as one node. made: for each copy, the nodes that make its rows."""
    return replace(
        copies[-1],
        name=role,
        shape=copies[0].shape,
        inputs=tuple(sorted(set().union(*made))),
        sources=tuple(tuple(sorted(rows)) for rows in made),
        costs=tuple(map(sum, zip(*(copy.costs for copy in copies), strict=True))),
        calls=tuple(call for copy in copies for call in copy.calls),
        issued=tuple(number for copy in copies for number in copy.issued),
    )
