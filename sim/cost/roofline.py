"""Roofline costs (Williams, Waterman, Patterson, 2009), with the memory roof left to the simulated channel.

    time on an engine = matrix FLOPs / peak of the op's dtype + elements / vector rate + overhead
    time on the channel = bytes / bandwidth

A lower bound, never a prediction: real kernels reach part of the peak.
"""

from __future__ import annotations

import numpy as np

from sim.cost.model import Machine, time_at_rate
from sim.errors import InputError
from sim.graph import QUANTITIES, IntArray, StepLanes
from sim.tasks import TaskGraph

FLOPS, VECTOR_OPS = QUANTITIES.index("flops"), QUANTITIES.index("vector_ops")


class Roofline:
    """FLOPs over the peak of their number format, elements over the vector rate, bytes over the channel: a lower bound."""

    def __init__(self, *, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.seed = seed

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work, index = self.distinct(graph, steps)
        return compute[index], work[index]

    def distinct(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """Durations of tasks that stand for all [row, lane], and the row of each task."""
        costs = graph.ops.costs_of(steps)
        tasks, index = graph.alike(costs, graph.ops.alike())
        flops, vector_ops = graph.share(costs[FLOPS], tasks), graph.share(costs[VECTOR_OPS], tasks)
        computes = graph.computes[tasks]
        compute = time_at_rate(vector_ops, self.machine.vector_flops) + self.machine.overhead
        dtypes = graph.ops.dtype[graph.op[tasks]]
        for dtype in np.unique(dtypes[computes & (flops.max(axis=1, initial=0) > 0)]):
            peak = self.machine.peak(str(dtype))
            if peak is None:
                task = int(tasks[np.flatnonzero((dtypes == dtype) & (flops.max(axis=1) > 0))[0]])
                known = "" if isinstance(self.machine.flops, int) else ", ".join(self.machine.flops)
                raise InputError(f"hardware.engines.flops: op {graph.kind_of(task)!r} computes in {dtype}, known here: {known}")
            rows = dtypes == dtype
            compute[rows] += time_at_rate(flops[rows], peak)
        compute = np.where(computes[:, None], np.maximum(compute, 1), 0)
        work = time_at_rate(graph.bytes_moved(costs, tasks), self.machine.bandwidth)
        work = np.where((graph.moves[tasks] != 0)[:, None], np.maximum(work, 1), 0)
        return compute, work, index
