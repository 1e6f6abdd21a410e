"""Durations of the tasks of steps, as rows that tasks share."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sim.cost.roofline import Roofline
from sim.executors.compiled.state import BYTES, COMPUTE, WORK
from sim.executors.setup import Setup, lanes_of, sram_use
from sim.graph import IntArray, StepLanes
from sim.serving import Batch
from sim.tasks import TaskGraph


class Costs(Protocol):
    """Durations of the steps of one graph. rows: how many a step has. row_of [task]: the row of each task."""

    rows: int
    row_of: IntArray

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        """Write [lane, row, (compute, work, bytes of SRAM)]."""
        ...

    def fill_step(self, out: npt.NDArray[np.int64], loop: int, token: int, batch: Batch) -> None:
        """The same of one step of a loop."""
        ...


class PerTask:
    """Any cost model: a row for each task, by NumPy."""

    def __init__(self, setup: Setup, graph: TaskGraph) -> None:
        self.setup, self.graph = setup, graph
        self.rows = len(graph)
        self.row_of = np.arange(self.rows)

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        compute, work = self.setup.costs.durations(self.graph, lanes)
        out[:, :, COMPUTE], out[:, :, WORK] = compute.T, work.T
        if self.setup.sram is not None:
            out[:, :, BYTES] = operand_bytes(self.setup, self.graph, lanes)

    def fill_step(self, out: npt.NDArray[np.int64], loop: int, token: int, batch: Batch) -> None:
        self.fill(out, lanes_of(loop, token, batch))


def operand_bytes(setup: Setup, graph: TaskGraph, lanes: StepLanes) -> Any:
    """[task]: bytes of SRAM that a prefetched operand takes; raises SramError if one does not fit."""
    use = sram_use(setup, graph, lanes) if lanes.members is not None else sram_use(setup)
    need = np.zeros(len(graph), dtype=np.int64)
    loads = np.flatnonzero(graph.prefetch)
    need[loads] = [use[consumer] for consumer in graph.outputs[graph.output_start[loads]].tolist()]
    return need


class Rated:
    """Rooflines: a row for all tasks that cost the same, by compiled code."""

    def __init__(self, setup: Setup, graph: TaskGraph, costs: Roofline) -> None:
        self.setup, self.graph, self.table = setup, graph, costs.table(graph)
        self.rows, self.row_of = len(self.table.rows.row), self.table.rows.of
        self.operands = np.unique(self.row_of[graph.prefetch])

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        self.table.fill(out, lanes, compiled=True)
        if self.too_large(out):
            operand_bytes(self.setup, self.graph, lanes)  # which raises

    def fill_step(self, out: npt.NDArray[np.int64], loop: int, token: int, batch: Batch) -> None:
        self.table.fill_step(out, batch.table, context=batch.context, tokens=batch.tokens, logits=batch.logits)
        if self.too_large(out):
            operand_bytes(self.setup, self.graph, lanes_of(loop, token, batch))

    def too_large(self, out: npt.NDArray[np.int64]) -> bool:
        """Whether an operand does not fit SRAM."""
        sram = self.setup.sram
        return sram is not None and bool((out[:, self.operands, BYTES] > sram).any())


def costs_of(setup: Setup, graph: TaskGraph) -> Costs:
    """The durations of the steps of a graph."""
    if type(setup.costs) is Roofline:
        return Rated(setup, graph, setup.costs)
    return PerTask(setup, graph)
