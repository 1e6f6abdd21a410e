"""A run that is analyzed part by part while it is simulated, so that the rows of its log need not be kept."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from sim.analysis.findings import Analysis
from sim.base.kernel import MANY_TASKS
from sim.executors import Executed, Executor, simulate
from sim.executors.size import OnProgress, counted
from sim.log.tables import EventLog, Window
from sim.runs.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """A run that was simulated and added up. It can be pickled.

    log: with rows if the plan says so. analysis: of all rows. window: the log of `trace.window`; None if there is no window, or
    all rows are kept. seconds: wall-clock time of the analysis so far.
    """

    log: EventLog
    analysis: Analysis
    window: EventLog | None
    executed: Executed
    seconds: float = 0.0


class Analyst:
    """Analyzes a run part by part while it is simulated.

    many: tasks from which compiled code runs. apart: the run is of a replica, to be joined with others.
    """

    def __init__(self, planned: Plan, many: int = MANY_TASKS, *, apart: bool = False) -> None:
        self._plan, self._many, self._seconds = planned, many, 0.0
        setup = planned.setup
        self._analysis = Analysis(
            planned.rules, engines=setup.engines, channels=setup.channels, compiled=not many, apart=apart
        )  # fmt: skip
        self._window = None if planned.window is None else Window(*planned.window)

    def simulate(self, executor: Executor, on_progress: OnProgress | None = None) -> Simulated:
        """Simulate the plan. Raises InputError, SimulationError."""
        setup, sink = self._plan.setup, None if self._plan.record == "all" else self._take
        log, executed = simulate(setup, executor, counted(setup, on_progress), sink, many=self._many)
        if sink is None:
            self._take(log)
        return Simulated(
            log=log, analysis=self._analysis, window=None if self._window is None else self._window.log(),
            executed=executed, seconds=self._seconds,
        )  # fmt: skip

    def _take(self, part: EventLog) -> None:
        """Analyze the next steps of the run."""
        began = perf_counter()
        self._analysis.add(part)
        if self._window is not None:
            self._window.add(part)
        self._seconds += perf_counter() - began
