"""Roofline costs (Williams, Waterman, Patterson, 2009), with the memory roof left to the simulated channel.

    time on an engine = the later of matrix FLOPs / peak of the arithmetic and elements / vector rate, + overhead
    time on the channel = bytes / bandwidth

A lower bound of every kernel that computes the op in that arithmetic, never a prediction: real kernels reach part of the peak.
Vector work overlaps the matrix products of its own task, in every kind of op: matrix and vector units are separate, and a
kernel that works in blocks does the vector work of one block during the products of the next, as FlashAttention-3 does with
softmax and products (Shah et al., 2024), and epilogues of products do. Where a real kernel does one after the other, it takes
up to twice as long; to add the two up would be no bound.
"""

from __future__ import annotations

import numpy as np

from models.graph import IntArray, StepLanes
from sim.cost.model import Caching, Rates
from sim.cost.rows import COMPUTE, WORK, RateTable
from sim.mapping.tasks import TaskGraph


class Roofline(Caching):
    """The later of FLOPs over the peak of their format and elements over the vector rate, bytes over the channel: a bound."""

    CACHES = ("_tables",)

    def __init__(self, *, machine: Rates, seed: int) -> None:
        self.machine = machine
        self.seed = seed
        self._clear()

    def _clear(self) -> None:
        self._tables: dict[int, RateTable] = {}  # by id of the graph, which each keeps alive

    def launches(self, graph: TaskGraph) -> IntArray:
        """Picoseconds of each task on its engine before it loads operands [task]."""
        return np.full(len(graph), self.machine.overhead, dtype=np.int64)

    def table(self, graph: TaskGraph) -> RateTable:
        """The rows of a graph, made once."""
        if id(graph) not in self._tables:
            self._tables[id(graph)] = RateTable(graph, self.machine)
        return self._tables[id(graph)]

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work, index = self.distinct(graph, steps)
        return compute[index], work[index]

    def distinct(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """Durations of tasks that stand for all [row, lane], and the row of each task."""
        table = self.table(graph)
        found = table.durations(steps)
        return found[:, :, COMPUTE].T, found[:, :, WORK].T, table.rows.of
