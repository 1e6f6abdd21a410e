"""Costs that the op graph itself gives; a cost model fills in what it does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.graph import IntArray, StepLanes
from sim.cost.model import CostModel, launches_of
from sim.mapping.tasks import ALL_BYTES, CLASS_BIT, TaskGraph

_OPERANDS = ALL_BYTES & ~(CLASS_BIT["act_read"] | CLASS_BIT["act_write"])


class WrittenCosts:
    """`compute` and `transfer`: picoseconds of each op on an engine and on a free channel, or None: `others` says.

    Tasks share the time of their op so that they sum to it. What moves activations is never given.
    """

    def __init__(self, compute: Sequence[int | None], transfer: Sequence[int | None], *, others: CostModel) -> None:
        self.compute = compute
        self.transfer = transfer
        self.others = others

    def launches(self, graph: TaskGraph) -> IntArray:
        """Picoseconds of each task on its engine before it loads operands: as `others`; a time that is given contains it."""
        return launches_of(self.others, graph)

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        on_engine, on_channel = self.given(graph)
        if complete(graph, on_engine, on_channel):
            compute, work = np.zeros((2, len(graph), len(steps.context)), dtype=np.int64)
        else:
            compute, work = self.others.durations(graph, steps)
        return (
            np.where(on_engine[:, None] > 0, on_engine[:, None], compute),
            np.where(on_channel[:, None] > 0, on_channel[:, None], work),
        )

    def given(self, graph: TaskGraph) -> tuple[IntArray, IntArray]:
        """Times on an engine and on the channel [task], 0 where the op gives none or the task does no such thing."""
        operands = (graph.moves & _OPERANDS) != 0
        return (
            np.where(graph.computes, self._shares(graph, self.compute), 0),
            np.where(operands, self._shares(graph, self.transfer), 0),
        )

    @staticmethod
    def _shares(graph: TaskGraph, times: Sequence[int | None]) -> IntArray:
        """Per task, at least 1 ps where its op gives a time, else 0."""
        given = np.array([time is not None for time in times])[graph.op]
        shares = graph.share(np.array([time or 0 for time in times], dtype=np.int64))
        return np.where(given, np.maximum(shares, 1), 0)


def complete(graph: TaskGraph, on_engine: IntArray, on_channel: IntArray) -> bool:
    """Whether every task has the times that it needs."""
    return not ((graph.computes & (on_engine == 0)) | ((graph.moves != 0) & (on_channel == 0))).any()
