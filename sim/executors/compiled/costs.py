"""Durations of the tasks of steps, as rows that tasks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sim.cost.fixed import Fixed
from sim.cost.kernel_costs import KernelCosts
from sim.cost.written import WrittenCosts, complete
from sim.cost.model import CostModel, Rates
from sim.cost.roofline import Roofline
from sim.cost.rows import RateTable
from sim.executors.compiled.state import BYTES, COMPUTE, COST, WORK
from sim.executors.operands import sram_use
from sim.executors.setup import Setup
from models.graph import IntArray, StepLanes
from sim.mapping.operands import OPERAND_BITS, operands_of
from sim.mapping.tasks import ALL_BYTES, TaskGraph
from sim.base.memo import Memo
from sim.base.units import PS_PER_S


class Costs(Protocol):
    """Durations of the steps of one graph. rows: how many a step has. row_of [task]: the row of each task."""

    rows: int
    row_of: IntArray

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        """Write [lane, row, (compute, work, bytes of SRAM)]."""
        ...


class Constant:
    """Durations that are the same in every step: a row for all tasks that take as long. compute, work: [task]."""

    def __init__(self, compute: IntArray, work: IntArray) -> None:
        kinds, self.row_of = np.unique(np.stack([compute, work]), axis=1, return_inverse=True)
        self.rows = kinds.shape[1]
        self.table = np.zeros((self.rows, COST), dtype=np.int64)
        self.table[:, COMPUTE], self.table[:, WORK] = kinds

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        out[:] = self.table


class PerTask:
    """Any cost model: a row for each task, by NumPy."""

    def __init__(self, graph: TaskGraph, costs: CostModel) -> None:
        self.graph, self.costs = graph, costs
        self.rows = len(graph)
        self.row_of = np.arange(self.rows)

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        compute, work = self.costs.durations(self.graph, lanes)
        out[:, :, COMPUTE], out[:, :, WORK] = compute.T, work.T


class Rated:
    """Durations by rates: a row for all tasks that cost the same, by compiled code."""

    def __init__(self, table: RateTable) -> None:
        self.table = table
        self.rows, self.row_of = len(table.rows.row), table.rows.of

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        self.table.fill(out, lanes, compiled=True)


class Launched:
    """Durations of kernels, made from those of rates."""

    def __init__(self, costs: KernelCosts, graph: TaskGraph) -> None:
        self.kernels = costs.table(graph)
        self.rated = Rated(self.kernels.rates)
        self.rows, self.row_of = len(self.kernels.t0), self.kernels.of

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        rates = np.zeros((len(lanes.context), self.rated.rows, COST), np.int64)
        self.rated.fill(rates, lanes)
        out[:] = self.kernels.launched(rates)


class Both(ABC):
    """Costs of which each row is made of a row of one and a row of another."""

    def __init__(self, one: Costs, other: Costs) -> None:
        self.one, self.other = one, other
        pairs, self.row_of = np.unique(np.stack([one.row_of, other.row_of]), axis=1, return_inverse=True)
        self.of_one, self.of_other = pairs
        self.rows = len(self.of_one)

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        first, second = (np.zeros((len(lanes.context), costs.rows, COST), np.int64) for costs in (self.one, self.other))
        self.one.fill(first, lanes)
        self.other.fill(second, lanes)
        self.join(out, first[:, self.of_one], second[:, self.of_other])

    @abstractmethod
    def join(self, out: npt.NDArray[np.int64], first: IntArray, second: IntArray) -> None:
        """Write what follows from the rows [lane, row, (compute, work, bytes)] of both."""


class Completed(Both):
    """Durations that are given, and where there are none (0) those of another."""

    def join(self, out: npt.NDArray[np.int64], first: IntArray, second: IntArray) -> None:
        np.copyto(out, np.where(first > 0, first, second))


class WithBytes(Both):
    """Durations, with the bytes of another: those that operands take in SRAM."""

    def join(self, out: npt.NDArray[np.int64], first: IntArray, second: IntArray) -> None:
        out[:] = first
        out[:, :, BYTES] = second[:, :, BYTES]


class InSram:
    """Durations and bytes of operands; those that are needed together must fit SRAM."""

    def __init__(self, setup: Setup, graph: TaskGraph, sram: tuple[int, ...], costs: Costs) -> None:
        self.setup, self.graph, self.costs = setup, graph, costs
        self.rows, self.row_of = costs.rows, costs.row_of
        device = graph.device
        groups = {  # most are alike
            (sram[int(device[group[0]])], *sorted(self.row_of[group].tolist())) for group in operands_of(graph).groups()
        }
        self._space = np.array([space for space, *_ in groups], dtype=np.int64)
        self._row = np.array([row for _, *rows in groups for row in rows], dtype=np.int64)
        self._first = np.cumsum([0, *(len(group) - 1 for group in groups)])[:-1]

    def fill(self, out: npt.NDArray[np.int64], lanes: StepLanes) -> None:
        self.costs.fill(out, lanes)
        if self._too_large(out):
            sram_use(self.setup, self.graph, lanes)  # which raises, and says what would fit

    def _too_large(self, out: npt.NDArray[np.int64]) -> bool:
        """Whether operands that are admitted together exceed SRAM."""
        if not len(self._first):
            return False
        together = np.add.reduceat(np.maximum(1, out[:, self._row, BYTES]), self._first, axis=1)
        return bool((together > self._space).any())


#: Bytes that pass through no SRAM that is counted: activations, and what is stored.
OTHER_BITS = ALL_BYTES & ~OPERAND_BITS

#: A machine by which nothing but bytes is right.
BYTES_ALONE = Rates(flops=PS_PER_S, vector_flops=PS_PER_S, overhead=0, bandwidth=PS_PER_S)


#: Constant durations of graphs, each with its cost model, which the entry keeps alive: runs of a study share both.
CONSTANTS: Memo[tuple[Fixed, Constant]] = Memo(2**20, lambda made: len(made[1].row_of))


def _constant(model: Fixed, graph: TaskGraph) -> tuple[Fixed, Constant]:
    given = model.constant(graph)
    assert given is not None
    return model, Constant(*given)


def costs_of(setup: Setup, graph: TaskGraph) -> Costs:
    """The durations of the steps of a graph."""
    costs = _costs_by(setup.costs, graph)
    if setup.sram is None:
        return costs
    if not isinstance(costs, Rated) or (graph.moves[operands_of(graph).task] & OTHER_BITS).any():
        only = replace(graph, moves=(graph.moves & OPERAND_BITS).astype(np.uint16))
        costs = WithBytes(costs, Rated(RateTable(only, BYTES_ALONE)))
    return InSram(setup, graph, setup.sram, costs)


def _costs_by(model: CostModel, graph: TaskGraph) -> Costs:
    """The durations of the steps of a graph by a cost model."""
    if type(model) is Roofline:
        return Rated(model.table(graph))
    if type(model) is KernelCosts:
        return Launched(model, graph)
    if type(model) is Fixed and not model.jitter:
        return CONSTANTS.of(graph, id(model), partial(_constant, model, graph))[1]
    if type(model) is WrittenCosts:
        given = model.given(graph)
        return Constant(*given) if complete(graph, *given) else Completed(Constant(*given), _costs_by(model.others, graph))
    return PerTask(graph, model)
