"""The contract of a scheduler, which decides which ready task a free engine takes.

A scheduler ranks the tasks of a step when the step is released: among ready tasks the lowest rank goes first, and among equals
program order decides (sequences as the scenario lists them, then tokens, then the step's own order). It may bind tasks into
chains, which stay on the engine that ran their first task, and may limit how many engines work at once. It must not change
what it is given and never sees the clock: so a schedule depends on nothing but the order of events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from models.graph import IntArray
from sim.mapping.tasks import TaskGraph


class StepView(NamedTuple):
    """Facts of a step that a scheduler decides from.

    age: number of its release, smaller is older. compute, work: picoseconds of each task on an engine and, at full speed,
    on the channel; [task].
    """

    graph: TaskGraph
    age: int
    compute: IntArray
    work: IntArray


class Scheduler(Protocol):
    """Ranks the tasks of a step; see the module for the contract.

    engines: number of engines that may work at once, None for all.
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
