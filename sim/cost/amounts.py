"""FLOPs and bytes of tasks, exactly: the rows of a rate table on a machine that does one of each in a picosecond."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from models.graph import IntArray, Members, StepLanes
from sim.base.units import PS_PER_S
from sim.cost.model import Rates
from sim.cost.rows import BYTES, COMPUTE, R_COMPUTES, VECTOR, RateTable
from sim.mapping.steps import BatchGraph
from sim.mapping.tasks import TaskGraph, path_of

#: The picosecond of overhead, which is taken off again, keeps apart a task without FLOPs and one of a single FLOP.
_UNIT = Rates(flops=PS_PER_S, vector_flops=PS_PER_S, overhead=1, bandwidth=PS_PER_S, link=PS_PER_S)


class AmountTable(RateTable):
    """FLOPs of matrix products, and bytes moved, of steps of one task graph.

    dtype: [row], the arithmetic of its tasks. path: [row], over which of `PATHS` they move. count: [row], tasks of a step.
    hops: [task], links that its transfer crosses, 1 if none are given. crossed: [row], those of all its tasks of a step.
    """

    def __init__(self, graph: TaskGraph, hops: IntArray | None = None) -> None:
        super().__init__(graph, _UNIT)
        self.rates[VECTOR] = 0
        _, first = np.unique(self.rows.of, return_index=True)
        self.path: npt.NDArray[np.int8] = path_of(graph.moves[first])
        self.dtype: npt.NDArray[np.str_] = graph.ops.dtype[graph.op[first]]
        self.count = np.bincount(self.rows.of, minlength=len(self.rows.row)).astype(np.int64)
        self.hops = np.ones(len(graph), dtype=np.int64) if hops is None else hops
        self.crossed = np.zeros_like(self.count)
        np.add.at(self.crossed, self.rows.of, self.hops)

    def amounts(self, steps: StepLanes) -> tuple[IntArray, IntArray]:
        """FLOPs and bytes of a task of each row, [lane, row] each."""
        found = np.empty((len(steps.context), len(self.count), 3), dtype=np.int64)
        for lanes, part in self._alike(steps):
            found[lanes] = self.durations(part)
        return found[:, :, COMPUTE] - self.rows.row[:, R_COMPUTES], found[:, :, BYTES]

    def _alike(self, steps: StepLanes) -> Iterator[tuple[npt.NDArray[np.intp] | slice, StepLanes]]:
        """Steps of as many members each, which are those with new tokens: a rate table sums over all that it is given."""
        ops, members = self.graph.ops, steps.members
        if members is None or not isinstance(ops, BatchGraph) or ops.members != 0:
            yield slice(None), steps
            return
        counted = np.logical_or.reduce(ops.summed_members(members.query))  # [member, lane]
        order, count = np.argsort(~counted, axis=0, kind="stable"), np.maximum(counted.sum(axis=0), 1)
        for many in np.unique(count).tolist():
            lanes = np.flatnonzero(count == many)
            columns = {
                name: np.take_along_axis(getattr(members, name), order, axis=0)[:many, lanes]
                for name in ("sequence", "context", "query", "loads", "kept")
            }
            yield lanes, StepLanes(
                sequence=steps.sequence[lanes], token=steps.token[lanes], context=steps.context[lanes],
                members=Members(**columns, logits=members.logits[lanes]),
            )  # fmt: skip
