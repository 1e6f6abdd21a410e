"""Schedulers by rank: longest remaining path, oldest token, shortest task."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.graph import IntArray
from sim.base.kernel import kernel, launch
from sim.machine.schedulers.contract import StepView
from sim.machine.schedulers.program_order import Earliest


@kernel
def remaining_paths(pool: Any, outputs: int, width: int, ranks: Any, at: int, step: int, size: int) -> None:
    """Turn the lengths of the tasks of a step into ranks: less the longest path from the start of each to the end of the step.

    ranks: at `at + task * step` a length in ps, then the rank. pool: at `outputs + task * width` where the numbers of the
    consumers of a task begin in the pool, and then where they end. The upward rank of HEFT (Topcuoglu et al., 2002).
    """
    for task in range(size - 1, -1, -1):
        after = 0
        for i in range(pool[outputs + task * width], pool[outputs + task * width + 1]):
            after = min(after, ranks[at + pool[i] * step])
        ranks[at + task * step] = after - ranks[at + task * step]


class CriticalPath(Earliest):
    """Longest remaining path first."""

    def ranks(self, step: StepView) -> IntArray:
        graph, size = step.graph, len(step.graph)
        ranges = np.column_stack([graph.output_start[:-1], graph.output_start[1:]]) + 2 * size
        rank = step.compute + step.work
        launch(remaining_paths, compiled=False)(np.concatenate([ranges.ravel(), graph.outputs]), 0, 2, rank, 0, 1, size)
        return rank


class OldestToken(Earliest):
    """First the tasks of the token whose step was released first."""

    def ranks(self, step: StepView) -> IntArray:
        return np.full(len(step.graph), step.age, dtype=np.int64)


class Shortest(Earliest):
    """Shortest task first."""

    def ranks(self, step: StepView) -> IntArray:
        return step.compute + step.work
