"""Bytes moved, by kind of task, from what the ops of each step move: no rows of tasks are looked at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.eventlog import EventLog
from sim.graph import QUANTITIES, IntArray, OpGraph, StepLanes
from sim.tasks import CLASS_BIT, WRITE_BITS, TaskGraph

_LANES = 512  # steps at once, so that a matrix of the costs of all ops stays small


class _Source(NamedTuple):
    """The tasks of a graph that move bytes of one class and are of one kind.

    ops: those whose shares are all among the tasks, so that together they move what the ops move; None if some are not.
    """

    quantity: int
    writes: bool
    kind: str
    tasks: npt.NDArray[np.intp]
    ops: npt.NDArray[np.integer] | None


def moved_by_kind(log: EventLog) -> dict[str, tuple[int, int]]:
    """Kind of task: bytes read, bytes written by all tasks of that kind."""
    sums: dict[str, tuple[int, int]] = {}
    for number, graph in enumerate(log.graphs):
        steps = np.flatnonzero(log.steps.graph == number)
        sources = _sources(graph)
        for first in range(0, len(steps), _LANES):
            lanes = log.lanes(steps[first : first + _LANES])
            totals = _op_totals(graph.ops, lanes)
            for source in sources:
                if source.ops is None:
                    amount = int(graph.share(graph.ops.costs_of(lanes)[source.quantity], source.tasks).sum())
                else:
                    amount = int(totals[source.quantity, source.ops].sum())
                read, written = sums.get(source.kind, (0, 0))
                sums[source.kind] = (read, written + amount) if source.writes else (read + amount, written)
    return sums


def _sources(graph: TaskGraph) -> list[_Source]:
    found = []
    for name, bit in CLASS_BIT.items():
        tasks = np.flatnonzero(graph.moves & bit)
        for kind in np.unique(graph.kind[tasks]).tolist():
            mine = tasks[graph.kind[tasks] == kind]
            found.append(
                _Source(
                    quantity=QUANTITIES.index(name), writes=bool(bit & WRITE_BITS), kind=graph.kinds[kind], tasks=mine,
                    ops=_whole_ops(graph, mine),
                )
            )  # fmt: skip
    return found


def _whole_ops(graph: TaskGraph, tasks: npt.NDArray[np.intp]) -> npt.NDArray[np.integer] | None:
    """The ops of some tasks, if each share of them is there once."""
    ops, which, count = np.unique(graph.op[tasks], return_inverse=True, return_counts=True)
    shares = np.unique(which * (int(graph.parts.max(initial=0)) + 1) + graph.part[tasks])
    complete = (count[which] == graph.parts[tasks]).all() and len(shares) == len(tasks)
    return ops if complete else None


def _op_totals(ops: OpGraph, lanes: StepLanes) -> IntArray:
    """All costs, summed over some steps [quantity, op]."""
    if type(ops) is not OpGraph:
        return np.asarray(ops.costs_of(lanes).sum(axis=2))
    one = np.ones_like(lanes.context)
    return np.asarray(ops.evaluate(one * ops.batch, one, lanes.context).sum(axis=1)[ops.cost_index])
