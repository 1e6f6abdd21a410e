"""Schedulers by rank: longest remaining path, oldest token, shortest task."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.graph import IntArray
from sim.base.kernel import kernel, launch
from sim.machine.schedulers.contract import StepView
from sim.machine.schedulers.program_order import Earliest

#: A rank that has not been computed: every task lasts at least 1 ps, so ranks are below 0.
UNKNOWN = 1


@kernel
def remaining_paths(pool: Any, outputs: int, width: int, ranks: Any, at: int, step: int, size: int, nodes: int) -> None:
    """Turn the lengths of the tasks of a step into ranks: less the longest path from the start of each to the end of the step.

    size: the tasks, of so many nodes; then come joins. ranks: at `at + task * step` a length in ps, then the rank, and as many
    words for joins. pool: at `outputs + node * width` where the numbers of the consumers of a node begin in the pool, and then
    where they end. The upward rank of HEFT (Topcuoglu et al., 2002).
    """
    for join in range(size, nodes):
        ranks[at + join * step] = UNKNOWN
    for task in range(size - 1, -1, -1):
        after = 0
        for i in range(pool[outputs + task * width], pool[outputs + task * width + 1]):
            node = at + pool[i] * step
            if ranks[node] == UNKNOWN:  # a join, whose consumers are tasks after this one
                ranks[node] = 0
                join = outputs + pool[i] * width
                for j in range(pool[join], pool[join + 1]):
                    ranks[node] = min(ranks[node], ranks[at + pool[j] * step])
            after = min(after, ranks[node])
        ranks[at + task * step] = after - ranks[at + task * step]


class CriticalPath(Earliest):
    """Longest remaining path first."""

    def ranks(self, step: StepView) -> IntArray:
        links, size = step.graph.links, len(step.graph)
        nodes = size + links.joins
        ranges = np.column_stack([links.output_start[:-1], links.output_start[1:]]) + 2 * nodes
        rank = np.concatenate([step.compute + step.work, np.zeros(links.joins, dtype=np.int64)])
        pool = np.concatenate([ranges.ravel(), links.outputs])
        launch(remaining_paths, compiled=False)(pool, 0, 2, rank, 0, 1, size, nodes)
        return rank[:size]


class OldestToken(Earliest):
    """First the tasks of the token whose step was released first."""

    def ranks(self, step: StepView) -> IntArray:
        return np.full(len(step.graph), step.age, dtype=np.int64)


class Shortest(Earliest):
    """Shortest task first."""

    def ranks(self, step: StepView) -> IntArray:
        return step.compute + step.work
