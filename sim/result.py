"""What a run gives: the scenario, the event log, and what the analyses say of it."""

from __future__ import annotations

from dataclasses import dataclass

from sim.analysis.bounds import Bounds
from sim.analysis.breakdown import Breakdown
from sim.analysis.context import Rules
from sim.analysis.metrics import Metrics
from sim.eventlog import EventLog
from sim.graph import ModelGraph
from sim.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of wall-clock time that the parts of a run took: the only part of a result that is not reproducible."""

    capture: float
    simulate: float
    analyse: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run and its account. `log` holds the event log as NumPy columns; `checks` names the invariants that were checked."""

    scenario: Scenario
    model: ModelGraph
    log: EventLog
    rules: Rules
    metrics: Metrics
    bounds: Bounds
    breakdown: Breakdown
    checks: tuple[str, ...]
    timing: Timing

    @property
    def makespan(self) -> int:
        """Picoseconds from 0 to the end of the last task."""
        return self.log.makespan

    def __repr__(self) -> str:
        return f"Result({self.scenario.name!r}, {len(self.log.tasks)} tasks, makespan {self.makespan} ps)"
