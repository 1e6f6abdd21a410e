"""Ops of a layer's state as few ops: the window of its convolution, the scan, and the gates between them.

A scan is one kernel in inference engines. transformers writes it as a loop over chunks of tokens (or tokens), whose ops
depend on how many tokens a step feeds in. So the ops that a mixer issues itself become one op wherever no product with
weights, convolution or norm lies between them. It reads from memory what others made, and writes what others read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.op import GATES, QUANTITIES, SCAN, WINDOW
from models.recording import STORES, TRANSFERS, Node
from models.states import STATE_LOAD, STATE_STORE
from sim.base.topological import topological_order

CONVOLUTION = "aten.convolution"

_WEIGHT, _ACT_READ, _ACT_WRITE = (QUANTITIES.index(name) for name in ("weight", "act_read", "act_write"))


def with_scans(nodes: Sequence[Node], classes: Mapping[str, str]) -> list[Node]:
    """Nodes in which those of the same mixer and level are one. classes: module classes by path."""
    mixers = {node.layer: node.path for node in nodes if node.role == STATE_LOAD}
    if not mixers:
        return list(nodes)
    users: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        for j in node.inputs:
            users[j].append(i)
    loose = [
        (mixer := mixers.get(node.layer)) is not None and f"{node.path}.".startswith(f"{mixer}.") and _is_loose(node, classes)
        for node in nodes
    ]
    level = _levels(nodes, users, loose)
    home: list[Any] = [(node.layer, level[i]) if loose[i] else i for i, node in enumerate(nodes)]
    members: dict[Any, list[int]] = {}
    for i, at in enumerate(home):
        members.setdefault(at, []).append(i)
    groups = list(members.values())
    place = {i: g for g, group in enumerate(groups) for i in group}
    inputs = {g: {place[j] for i in group for j in nodes[i].inputs} - {g} for g, group in enumerate(groups)}
    order = topological_order(inputs, rank=lambda g: groups[g][-1])
    assert len(order) == len(groups)
    number = {g: n for n, g in enumerate(order)}
    result = []
    for g in order:
        first = groups[g][0]
        merged = nodes[first] if home[first] == first else _merged(nodes, groups[g], users, mixers[nodes[first].layer])
        sources = tuple(tuple(sorted({number[place[j]] for j in source})) for source in merged.sources)
        result.append(replace(merged, inputs=tuple(sorted(number[j] for j in inputs[g])), sources=sources))
    return result


def _levels(nodes: Sequence[Node], users: Sequence[Sequence[int]], loose: Sequence[bool]) -> list[int]:
    """The most ops that are not loose on a way from each node to the end of its layer.

    Loose ops of one level have only ops of the same level between them. What leads to stores alone is as near as can be to
    the ops that it comes from: nothing else waits for it.
    """
    level: list[int | None] = [None] * len(nodes)
    for i in reversed(range(len(nodes))):
        if nodes[i].role in STORES:
            continue
        ahead = [at + (not loose[j]) for j in users[i] if nodes[j].layer == nodes[i].layer and (at := level[j]) is not None]
        if ahead or not users[i] or any(nodes[j].layer != nodes[i].layer for j in users[i]):
            level[i] = max(ahead, default=0)
    result: list[int] = []
    for i, at in enumerate(level):
        behind = (result[j] - (not loose[j]) for j in nodes[i].inputs if nodes[j].layer == nodes[i].layer)
        result.append(min(behind, default=0) if at is None else at)
    return result


def _is_loose(node: Node, classes: Mapping[str, str]) -> bool:
    """Whether an op is none with a name of its own: a transfer, attention, a product with weights, a convolution, a norm."""
    parts = node.path.split(".")
    norm = any("norm" in classes.get(".".join(parts[:n]), "").lower() for n in range(1, len(parts) + 1))
    return not (node.role or norm or (node.costs[0] and node.weights) or node.name == CONVOLUTION)


def _merged(nodes: Sequence[Node], members: Sequence[int], users: Sequence[Sequence[int]], mixer: str) -> Node:
    """One node of several of a mixer. users: by node, those that need its result."""
    inside, ours = [nodes[i] for i in members], set(members)
    used = {i for i in members if not users[i] or not ours.issuperset(users[i])}
    made = {cell for node in inside for cell in node.makes}
    reads = {place: (cell, size, weight) for node in inside for place, cell, size, weight in node.reads}
    costs = [sum(quantity) for quantity in zip(*(node.costs for node in inside), strict=True)]
    costs[_WEIGHT] = sum(size for _, size, weight in reads.values() if weight)
    costs[_ACT_READ] = sum(size for cell, size, weight in reads.values() if not weight and cell not in made)
    results = [
        i for i in used if any(nodes[j].role not in TRANSFERS for j in users[i] if j not in ours)
    ]  # not a state to store
    costs[_ACT_WRITE] = sum(nodes[i].costs[_ACT_WRITE] for i in results)
    kind = _kind(nodes, members, users)
    return Node(
        name=kind,
        path=mixer,
        layer=inside[0].layer,
        role=kind,
        dtype=max(inside, key=lambda node: node.costs[0] + node.costs[1]).dtype,
        shape=nodes[max(results, default=members[-1])].shape,
        costs=tuple(costs),
        weights=tuple(sorted({name for node in inside for name in node.weights})),
        calls=tuple(call for node in inside for call in node.calls),
        issued=tuple(number for node in inside for number in node.issued),
    )


def _kind(nodes: Sequence[Node], members: Sequence[int], users: Sequence[Sequence[int]]) -> str:
    """The window where its result goes to a convolution; else the scan where it reads or makes a state."""
    after = [nodes[j] for i in members for j in users[i]]
    if any(node.name == CONVOLUTION for node in after):
        return WINDOW
    stored = any(node.role == STATE_STORE for node in after)
    read = any(nodes[j].role == STATE_LOAD for i in members for j in nodes[i].inputs)
    return SCAN if stored or read else GATES
