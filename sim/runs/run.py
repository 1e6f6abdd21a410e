"""Run a scenario: the one public entry point.

result = run("scenarios/two_tokens_4_engines.yaml")
result.metrics.makespan, result.log.tasks.start
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from sim.analysis.findings import Analysis, Findings
from sim.base.kernel import MANY_TASKS
from sim.cost import COST_MODELS
from sim.executors import Executed, Executor, simulate
from sim.executors.size import OnProgress, counted
from sim.log.tables import EventLog, Window
from sim.machine.arbiters import ARBITERS
from sim.machine.schedulers import SCHEDULERS
from sim.runs.extrapolations import extrapolations
from sim.runs.plan import Plan, plan
from sim.runs.result import Result, Timing
from sim.scenario import Known, Scenario, load, override
from sim.serving.policies import BATCHING_POLICIES
from sim.serving.routers import ROUTERS


def known_names() -> Known:
    """The names that a scenario may use for its policies, third-party ones included."""
    return {"arbiter": ARBITERS, "scheduler": SCHEDULERS, "batching": BATCHING_POLICIES, "router": ROUTERS, "cost": COST_MODELS}


def read(path: str | Path, overrides: list[str] | None = None) -> Scenario:
    """Read and check a scenario file.

    Args:
        path: A YAML file.
        overrides: Assignments such as `hardware.memory.bandwidth=50 GB/s`, applied in order, as by `--set`.

    Raises:
        InputError: Something in the file or in an assignment is wrong; one line says what and where.
    """
    return load(path, overrides or [], known_names())


def changed(scenario: Scenario, overrides: Sequence[str]) -> Scenario:
    """The same scenario with some values changed, checked again. Raises InputError that names the assignment."""
    return override(scenario, overrides, known_names())


def run(scenario: Scenario | str | Path, *, executor: Executor = "auto", on_progress: OnProgress | None = None) -> Result:
    """Simulate a scenario and analyze the run.

    Args:
        scenario: A scenario, or the path of its file.
        executor: `simpy`, `compiled`, or `auto` for the faster one; results are identical.
        on_progress: Callback, called periodically with output tokens so far, output tokens in total, and simulated time in ps.

    Raises:
        InputError: Something in the scenario cannot be used.
        SimulationError: An invariant does not hold, which is a defect of the program.
    """
    if not isinstance(scenario, Scenario):
        scenario = read(scenario)
    began = perf_counter()
    planned = plan(scenario)
    return run_plan(scenario, planned, perf_counter() - began, executor=executor, on_progress=on_progress)


def run_plan(
    scenario: Scenario, planned: Plan, seconds: float, *, executor: Executor = "auto", on_progress: OnProgress | None = None,
    many: int = MANY_TASKS,
) -> Result:  # fmt: skip
    """Simulate and analyze the plan of a scenario, which took so many seconds to make: the rest of `run`.

    many: tasks from which compiled code runs and analyzes; 0 where one process runs many scenarios, so that it pays at once.
    """
    ready = perf_counter()
    analyst = Analyst(planned, many)
    with scenario.located():
        log, executed = analyst.simulate(executor, on_progress)
    simulated = perf_counter()
    found = analyst.findings(log)
    timing = Timing(
        capture=seconds, simulate=simulated - ready - analyst.seconds,
        analysis=perf_counter() - simulated + analyst.seconds, executed=executed,
    )  # fmt: skip
    result = Result(
        scenario=scenario, plan=planned, log=log, metrics=found.metrics, bounds=found.bounds,
        breakdown=found.breakdown, checks=found.checks, extrapolations=extrapolations(planned.setup, log), timing=timing,
        requests=found.requests, series=found.series, energy=found.energy, window=analyst.window(),
    )  # fmt: skip
    return result.without_steps() if planned.record == "none" else result


class Analyst:
    """Analyzes a run part by part while it is simulated, so that the rows of a log need not be kept.

    many: tasks from which compiled code runs. seconds: wall-clock time of the analyses during the simulation.
    """

    def __init__(self, planned: Plan, many: int = MANY_TASKS) -> None:
        self._plan, self._many, self.seconds = planned, many, 0.0
        self._analysis = Analysis(
            planned.rules, engines=planned.setup.engines, channels=planned.setup.channels, compiled=not many
        )
        self._window = None if planned.window is None else Window(*planned.window)

    def simulate(self, executor: Executor, on_progress: OnProgress | None) -> tuple[EventLog, Executed]:
        """Simulate the plan. The log has rows if the plan says so."""
        sink = None if self._plan.record == "all" else self._take
        return simulate(self._plan.setup, executor, counted(self._plan.setup, on_progress), sink, many=self._many)

    def _take(self, part: EventLog) -> None:
        """Analyze the next steps of the run."""
        began = perf_counter()
        self._analysis.add(part)
        if self._window is not None:
            self._window.add(part)
        self.seconds += perf_counter() - began

    def findings(self, log: EventLog) -> Findings:
        """All findings of the whole run. Raises SimulationError at the first invariant that does not hold."""
        if self._plan.record == "all":
            self._analysis.add(log)
        return self._analysis.result(
            log, warmup_time=self._plan.warmup_time, warmup_requests=self._plan.warmup_requests
        )  # fmt: skip

    def window(self) -> EventLog | None:
        """The log of `trace.window`; None if there is no window, or all rows are kept."""
        return None if self._window is None else self._window.log()
