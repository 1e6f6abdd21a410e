"""Schedulers: which ready task a free engine takes.

The contract. A scheduler ranks the tasks of a step when the step is released: among ready tasks the lowest rank goes
first, and among equals program order decides (sequences as the scenario lists them, then tokens, then the step's own
order). It may bind tasks into chains, which stay on the engine that ran their first task, and may limit how many engines
work at once. It must not change what it is given and never sees the clock: so a schedule depends on nothing but the order
of events.

To add one: write such a class in a file of its own and register it as an entry point in the group `decode_sim.schedulers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from models.graph import IntArray
from sim.base.kernel import kernel, launch
from sim.base.registry import Registry
from sim.mapping.tasks import TaskGraph


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


class StepView(NamedTuple):
    """What a scheduler may know of a step.

    age: number of its release, smaller is older. compute, work: picoseconds of each task on an engine and, at full speed,
    on the channel; [task].
    """

    graph: TaskGraph
    age: int
    compute: IntArray
    work: IntArray


class Scheduler(Protocol):
    """See the module for the contract.

    engines: how many engines may work at once, None for all.
    work_conserving: no engine stays idle while a ready task could run on it.
    """

    @property
    def engines(self) -> int | None: ...
    @property
    def work_conserving(self) -> bool: ...

    def ranks(self, step: StepView) -> IntArray:
        """One rank per task, the lowest goes first."""
        ...

    def chains(self, graph: TaskGraph) -> Sequence[int] | None:
        """One chain number per task, or None if any engine will do."""
        ...


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
    chain, on any engine.
    """

    work_conserving = False

    def chains(self, graph: TaskGraph) -> Sequence[int] | None:
        chain = list(range(len(graph)))
        taken = [not held for held in graph.engine.tolist()]
        start, inputs = graph.input_start.tolist(), graph.inputs.tolist()
        for task, held in enumerate(graph.engine.tolist()):
            if not held:
                continue
            for source in reversed(inputs[start[task] : start[task + 1]]):
                if not taken[source]:
                    taken[source] = True
                    chain[task] = chain[source]
                    break
        return chain


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


SCHEDULERS: Registry[type[Scheduler]] = Registry(
    "scheduler",
    {
        "serial": Serial, "earliest": Earliest, "sticky": Sticky, "critical_path": CriticalPath,
        "oldest_token": OldestToken, "shortest": Shortest,
    },
)  # fmt: skip
