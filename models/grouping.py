"""Group aten ops into named ops.

First each node gets a label (`models.labels`). Then connected nodes with equal labels become one group. A node without a label
stays alone under its aten name.

Nothing is lost: a group's costs are the sums of its nodes', activations that never leave the group included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.attention import ROLES
from models.labels import INDEXER, Label, Labels
from models.recording import CHOSEN, KV_LOAD, Node, Recording
from sim.base.topological import topological_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes (ascending) that are one op, and its names.

    result: the node whose result the op is known by. dtype: the type that it computes in, empty if that of the result.
    """

    kind: str
    path: str
    part: str
    heads: int
    nodes: tuple[int, ...]
    result: int
    dtype: str = ""


def single(index: int, node: Node) -> Group:
    """A node as an op of its own, under its aten name."""
    part = node.hint if node.hint == CHOSEN else ""
    return Group(kind=node.name, path=node.path, part=part, heads=node.heads, nodes=(index,), result=index)


def group(recording: Recording) -> list[Group]:
    """Groups of a recording in topological order."""
    nodes = recording.nodes
    labels = Labels(recording).labels
    home = _connected(nodes, labels)
    while cyclic := _cyclic(nodes, home):
        for i, g in enumerate(home):
            if g in cyclic:
                home[i], labels[i] = i, None
    members: dict[int, list[int]] = {}
    for i, g in enumerate(home):
        members.setdefault(g, []).append(i)
    groups = [_make(nodes, tuple(indices), labels[indices[0]]) for indices in members.values()]
    return _in_order(nodes, groups)


def _make(nodes: list[Node], indices: tuple[int, ...], label: Label | None) -> Group:
    if label is None:
        return single(indices[0], nodes[indices[0]])
    kind, path, part = label
    inside = set(indices)
    used = {j for i in indices for j in nodes[i].inputs}
    # The last op whose result no op inside needs: an op may also issue views and dead code.
    result = next((i for i in reversed(indices) if i not in used), indices[-1])
    heads = max(nodes[i].heads for i in inside)
    # An indexer multiplies what its cache holds; transformers widens that first, which kernels do as they add.
    loads = [nodes[j].dtype for i in indices for j in nodes[i].inputs if kind == INDEXER and nodes[j].role == KV_LOAD]
    dtype = loads[0] if loads else ""
    return Group(kind=kind, path=path, part=part, heads=heads, nodes=indices, result=result, dtype=dtype)


def _in_order(nodes: list[Node], groups: list[Group]) -> list[Group]:
    """Topological order that follows the program: a group stands where its last node stood."""
    home = {i: g for g, members in enumerate(groups) for i in members.nodes}
    inputs = {g: {home[j] for i in members.nodes for j in nodes[i].inputs} - {g} for g, members in enumerate(groups)}
    order = topological_order(inputs, rank=lambda g: groups[g].nodes[-1])
    assert len(order) == len(groups)
    return [groups[g] for g in order]


def _connected(nodes: list[Node], labels: list[Label | None]) -> list[int]:
    """For each node, the smallest node of its group: neighbors with the same label and layer are united."""
    home = list(range(len(nodes)))

    def find(i: int) -> int:
        while home[i] != i:
            home[i] = home[home[i]]
            i = home[i]
        return i

    def unite(a: int, b: int) -> None:
        a, b = find(a), find(b)
        home[max(a, b)] = min(a, b)

    latest: dict[tuple[Label, int], int] = {}
    for i, (node, label) in enumerate(zip(nodes, labels, strict=True)):
        if label is None:
            continue
        for j in node.inputs:
            residuals = label[0] == "residual" and node.name == nodes[j].name
            if labels[j] == label and nodes[j].layer == node.layer and not residuals:
                unite(i, j)
        if node.role in ROLES or (label[0] == "rope" and node.layer >= 0):  # one op even where its parts do not meet
            unite(i, latest.setdefault((label, node.layer), i))
    return [find(i) for i in range(len(nodes))]


def _cyclic(nodes: list[Node], home: list[int]) -> set[int]:
    """Groups of several nodes that lie on cycles of the graph of groups."""
    needs: dict[int, set[int]] = {}
    feeds: dict[int, set[int]] = {}
    for i, node in enumerate(nodes):
        for j in node.inputs:
            if home[i] != home[j]:
                needs.setdefault(home[i], set()).add(home[j])
                feeds.setdefault(home[j], set()).add(home[i])
    left = set(home)
    for edges_in, edges_out in ((needs, feeds), (feeds, needs)):  # remove groups before all cycles, then groups after them
        waiting = {g: len(edges_in.get(g, set()) & left) for g in left}
        free = [g for g, n in waiting.items() if not n]
        while free:
            g = free.pop()
            left.discard(g)
            for f in edges_out.get(g, set()) & left:
                waiting[f] -= 1
                if not waiting[f]:
                    free.append(f)
    sizes: dict[int, int] = {}
    for g in home:
        sizes[g] = sizes.get(g, 0) + 1
    return {g for g in left if sizes[g] > 1 and _meets_itself(g, needs, left)}


def _meets_itself(start: int, needs: Mapping[int, set[int]], among: set[int]) -> bool:
    """Whether a group needs its own result, by way of groups of `among`."""
    seen: set[int] = set()
    stack = [start]
    while stack:
        found = needs.get(stack.pop(), set()) & among - seen
        if start in found:
            return True
        seen |= found
        stack += found
    return False
