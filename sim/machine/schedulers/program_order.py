"""Schedulers in program order: on all engines, on one, or with chains of tasks that stay on an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.graph import IntArray
from sim.machine.schedulers.contract import StepView
from sim.mapping.tasks import TaskGraph


class Earliest:
    """List scheduling in program order."""

    engines: int | None = None
    work_conserving = True

    def ranks(self, step: StepView) -> IntArray:
        return np.zeros(len(step.graph), dtype=np.int64)

    def chains(self, graph: TaskGraph) -> Sequence[int] | None:
        return None


class Serial(Earliest):
    """One task at a time over all engines, in program order."""

    engines: int | None = 1
    work_conserving = False


class Sticky(Earliest):
    """Program order, and a chain stays on its engine: its data is there.

    A task goes on with the chain of the last input that no earlier task went on with; one without such an input starts a
    chain, on any engine. A chain stays on its device.
    """

    work_conserving = False

    def chains(self, graph: TaskGraph) -> Sequence[int] | None:
        chain = list(range(len(graph)))
        taken = [not held for held in graph.engine.tolist()]
        start, inputs, device = graph.input_start.tolist(), graph.inputs.tolist(), graph.device.tolist()
        for task, held in enumerate(graph.engine.tolist()):
            if not held:
                continue
            for source in reversed(inputs[start[task] : start[task + 1]]):
                if not taken[source] and device[source] == device[task]:
                    taken[source] = True
                    chain[task] = chain[source]
                    break
        return chain
