"""Result of a run: the scenario, the event log, and its analyses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sim.analysis.blame import Blame, blame
from sim.analysis.bounds import Bounds
from sim.analysis.breakdown import Breakdown
from sim.analysis.critical_path import CriticalPath, critical_path
from sim.analysis.energy import Energy
from sim.analysis.goodput import Goodput, goodput
from sim.analysis.metrics import Metrics, Tokens
from sim.analysis.occupancy import Occupancy, occupancy
from sim.analysis.parts import PARTS
from sim.analysis.power import Power, power
from sim.analysis.requests import Requests
from sim.analysis.series import Series
from sim.cost import Extrapolation
from sim.executors import Executed
from sim.log.tables import EventLog, StepTable
from sim.runs.plan import Plan
from sim.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of wall-clock time of the parts of a run, and which executor simulated it.

    The only part of a result that differs between runs of the same scenario.
    """

    capture: float
    simulate: float
    analysis: float
    executed: Executed


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run and its analyses.

    Sums and checks, made while the run is recorded, are fields. Analyses that read rows of the log are properties, computed
    when they are first used.

    Attributes:
        scenario: The scenario that ran.
        plan: What the scenario came to: model, setup, rules.
        log: Event log, as NumPy columns.
        metrics: Totals of engines, channels, kinds and tokens.
        bounds: Lower and upper bounds on the makespan.
        breakdown: Where the time of tasks and tokens went.
        checks: Names of the invariants that were checked.
        extrapolations: Extrapolated costs.
        timing: Wall-clock times, and the executor.
        requests: Latencies of each request.
        series: Batch size, KV cache and bandwidth over time.
        energy: Where the joules went; None if energy figures of the machine are not known.
        window: Event log of `trace.window`, if `log` has no rows.
    """

    scenario: Scenario
    plan: Plan
    log: EventLog
    metrics: Metrics
    bounds: Bounds
    breakdown: Breakdown
    checks: tuple[str, ...]
    extrapolations: tuple[Extrapolation, ...]
    timing: Timing
    requests: Requests
    series: Series
    energy: Energy | None = None
    window: EventLog | None = None

    @property
    def makespan(self) -> int:
        """Picoseconds from 0 to the end of the last task."""
        return self.metrics.makespan

    @cached_property
    def goodput(self) -> Goodput | None:
        """Requests that meet `report.slo`; None if the scenario has none."""
        return None if self.plan.slo is None else goodput(self.requests, self.plan.slo)

    @cached_property
    def blame(self) -> Blame:
        """Causes of waits for engines and channels. Raises InputError if ops were not recorded."""
        return blame(self.rows("blame"), self.plan.rules, self.breakdown)

    @cached_property
    def occupancy(self) -> Occupancy | None:
        """Operands that held SRAM while loads waited; None if it is unbounded. Raises InputError if ops were not recorded."""
        if self.plan.rules.sram is None:
            return None
        return occupancy(self.rows("the occupancy of SRAM"), self.plan.rules, self.breakdown)

    @cached_property
    def critical_path(self) -> CriticalPath:
        """The tasks that decided when the run ended. Raises InputError if ops were not recorded."""
        return critical_path(self.rows("the critical path"), self.plan.rules)

    @cached_property
    def power(self) -> Power | None:
        """Watts over time; None if energy figures are not known. Where no ops were recorded, the mean of each step."""
        return self.power_of(self.log)

    def power_of(self, log: EventLog) -> Power | None:
        """Watts over the time of a log of this run, such as that of a window."""
        rules, energy = self.plan.rules, self.energy
        return power(log, rules, energy) if rules.energy is not None and energy is not None else None

    def without_steps(self) -> Result:
        """The same result with only requests and totals."""
        none = np.zeros((0, len(PARTS)), dtype=np.int64)
        return replace(
            self, log=replace(self.log, steps=StepTable.empty(), batched=None),
            metrics=replace(self.metrics, tokens=Tokens.none()),
            breakdown=replace(self.breakdown, tokens=none, by_step=none),
            energy=self.energy and self.energy.without_steps(),
        )  # fmt: skip

    def rows(self, wanted: str) -> EventLog:
        """The log, with a row for each op. wanted: the analysis that needs it, for the error.

        Raises InputError if ops were not recorded.
        """
        if not self.log.has_rows:
            raise self.scenario.error("record", f"expected all for {wanted}, found {self.scenario.record}")
        return self.log

    def __repr__(self) -> str:
        return f"Result({self.scenario.name!r}, {self.metrics.tasks} tasks, makespan {self.makespan} ps)"
