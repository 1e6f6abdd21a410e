"""All analyses that one pass over a log can make, at once or part by part as the run is recorded.

analysis = Analysis(rules, engines=4, channels=1)
analysis.add(log)  # or part after part, each of consecutive whole steps
analysis.bounds(log), analysis.metrics(log), ...  # of a log that needs no rows any more

Parts must be separate in time, as those of a single decode loop are: a step is released when the one before it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.analysis.bounds import Bounds, bounds
from sim.analysis.breakdown import INVARIANT, Breakdown, breakdown
from sim.analysis.checks import check
from sim.analysis.energy import INVARIANT as ENERGY_INVARIANT
from sim.analysis.energy import Energy, Ledger
from sim.analysis.metrics import Metrics, metrics
from sim.analysis.requests import Requests, requests
from sim.analysis.rules import Rules
from sim.analysis.series import Series, series
from sim.analysis.tally import Tally
from sim.log.tables import EventLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over a run, and latencies of its requests. checks: names of all invariants, which were found to hold."""

    bounds: Bounds
    checks: tuple[str, ...]
    breakdown: Breakdown
    metrics: Metrics
    requests: Requests
    energy: Energy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings(Totals):
    """All analyses of a run: sums, and series over time."""

    series: Series


class Analysis:
    """Adds up a run. compiled: also where few rows come at a time. apart: it is of one of several runs that `beside` takes."""

    def __init__(
        self, rules: Rules, *, engines: int, channels: int, compiled: bool = False, apart: bool = False
    ) -> None:  # fmt: skip
        self._rules = rules
        self._tally = Tally(rules, engines=engines, channels=channels, compiled=compiled, keep_runs=apart)
        self._ledger: Ledger | None = None
        if rules.energy is not None:
            self._ledger = Ledger(rules.energy, engines=engines, channels=channels, stripes=rules.stripes)

    @classmethod
    def beside(cls, parts: Sequence[Analysis], log: EventLog) -> Analysis:
        """The analysis of a run of several that share no loop, engine or channel. log: of all, as `sim.log.tables.beside`."""
        made = cls(parts[0]._rules, engines=log.engines, channels=log.channels)
        made._tally = Tally.beside([each._tally for each in parts], log.graphs, made._rules)
        made._ledger = made._ledger and Ledger.beside([each._ledger for each in parts if each._ledger is not None])
        return made

    def add(self, part: EventLog) -> None:
        """Take in a whole log, or the next part of one: consecutive whole steps, whose rows begin at 0.

        Its graphs begin with those of the part before. Raises SimulationError if it begins before all before it has ended.
        """
        self._tally.add(part)
        if self._ledger is not None:
            self._ledger.add(part)

    def result(self, log: EventLog, *, warmup_time: int = 0, warmup_requests: int = 0) -> Findings:
        """All findings, as `totals`, with series over time."""
        sums = self.totals(log, warmup_time=warmup_time, warmup_requests=warmup_requests)
        served = sums.requests
        return Findings(
            bounds=sums.bounds, checks=sums.checks, breakdown=sums.breakdown, metrics=sums.metrics, requests=served,
            energy=sums.energy, series=series(log, served.arrival, served.last, self._rules.kv_layers, self._tally),
        )  # fmt: skip

    def totals(
        self, log: EventLog, *, warmup_time: int = 0, warmup_requests: int = 0, few: bool = False
    ) -> Totals:  # fmt: skip
        """All sums. log: the whole run, whose tables of tasks and of service intervals may be empty.

        few: leave out metrics of each token and kind.

        Raises SimulationError at the first invariant that does not hold.
        """
        rules, tally = self._rules, self._tally
        limits = bounds(log, rules, tally)
        checks = check(log, rules, limits, tally)
        parts = breakdown(log, rules, tally)
        served = requests(log, parts.tokens, warmup_time=warmup_time, warmup_requests=warmup_requests)
        sums, names, energy = metrics(log, tally, totals=few), [*checks, INVARIANT], None
        if self._ledger is not None:
            energy = self._ledger.result(log, parts, sums, int(served.tokens.sum()))
            names.append(ENERGY_INVARIANT)
        return Totals(
            bounds=limits, checks=tuple(names), breakdown=parts, metrics=sums, requests=served, energy=energy
        )  # fmt: skip


def analyze(log: EventLog, rules: Rules, *, warmup_time: int = 0, warmup_requests: int = 0) -> Findings:
    """All findings of a log that holds all rows."""
    whole = Analysis(rules, engines=log.engines, channels=log.channels)
    whole.add(log)
    return whole.result(log, warmup_time=warmup_time, warmup_requests=warmup_requests)
