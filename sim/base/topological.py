"""Topological order of a graph given as the inputs of each node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from heapq import heapify, heappop, heappush


def topological_order(inputs: Mapping[int, Collection[int]], rank: Callable[[int], int] = int) -> list[int]:
    """Order nodes so that each comes after its inputs; among those that are free to come next, the lowest rank is first.

    inputs: of each node, distinct nodes. rank: by default the node's own number; ranks must differ.
    Nodes on a cycle, or behind one, are left out: a result that is shorter than `inputs` says that there is a cycle.
    """
    outputs: dict[int, list[int]] = {node: [] for node in inputs}
    for node, sources in inputs.items():
        for source in sources:
            outputs[source].append(node)
    missing = {node: len(sources) for node, sources in inputs.items()}
    ready = [(rank(node), node) for node, count in missing.items() if not count]
    heapify(ready)
    order = []
    while ready:
        _, node = heappop(ready)
        order.append(node)
        for output in outputs[node]:
            missing[output] -= 1
            if not missing[output]:
                heappush(ready, (rank(output), output))
    return order
