"""What a run gives: the scenario, the event log, and what the analyses say of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.graph import ModelGraph
from sim.analysis.bounds import Bounds
from sim.analysis.breakdown import Breakdown
from sim.analysis.context import Rules
from sim.analysis.metrics import Metrics
from sim.analysis.parts import PARTS
from sim.analysis.requests import Requests
from sim.analysis.series import Series
from sim.cost import Doubt
from sim.executors import Executed
from sim.log.tables import EventLog, StepTable
from sim.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How a run came about: seconds of wall-clock time of its parts, and which executor ran.

    The only part of a result that differs between runs of the same scenario.
    """

    capture: float
    simulate: float
    analyse: float
    executed: Executed


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run and its account. `log` holds the event log as NumPy columns; `checks` names the invariants that were checked,
    `doubts` what the costs are less than sure of. `requests`: what each request got; `series`: the same over time; `window`:
    the steps of `trace.window`, where `log` has no rows; `kv_bytes`: what one token appends to the KV cache.
    """

    scenario: Scenario
    model: ModelGraph
    log: EventLog
    rules: Rules
    metrics: Metrics
    bounds: Bounds
    breakdown: Breakdown
    checks: tuple[str, ...]
    doubts: tuple[Doubt, ...]
    timing: Timing
    requests: Requests
    series: Series
    kv_bytes: int
    window: EventLog | None = None

    @property
    def makespan(self) -> int:
        """Picoseconds from 0 to the end of the last task."""
        return self.metrics.makespan

    def without_steps(self) -> Result:
        """The same with requests and totals alone."""
        none = np.zeros((0, len(PARTS)), dtype=np.int64)
        return replace(
            self, log=replace(self.log, steps=StepTable.empty(), batched=None), metrics=replace(self.metrics, tokens=()),
            breakdown=replace(self.breakdown, tokens=none, by_step=none),
        )  # fmt: skip

    def rows(self, wanted: str) -> EventLog:
        """The log with a row for each op. Raises InputError that names what is `wanted` of it, if they were not recorded."""
        if not self.log.has_rows:
            raise self.scenario.error("record", f"expected all for {wanted}, found {self.scenario.record}")
        return self.log

    def __repr__(self) -> str:
        return f"Result({self.scenario.name!r}, {self.metrics.tasks} tasks, makespan {self.makespan} ps)"
