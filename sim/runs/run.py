"""Run a scenario: the one public entry point.

result = run("scenarios/two_tokens_4_engines.yaml")
result.metrics.makespan, result.log.tasks.start
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from sim.base.kernel import MANY_TASKS
from sim.cost import COST_MODELS
from sim.executors import Executor
from sim.executors.size import OnProgress
from sim.machine.arbiters import ARBITERS
from sim.machine.schedulers import SCHEDULERS
from sim.runs.analyst import Analyst
from sim.runs.apart import Apart
from sim.runs.apart import simulate as simulate_apart
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


def run(
    scenario: Scenario | str | Path, *, executor: Executor = "auto", on_progress: OnProgress | None = None,
    apart: Apart | None = None,
) -> Result:  # fmt: skip
    """Simulate a scenario and analyze the run.

    Args:
        scenario: A scenario, or the path of its file.
        executor: `simpy`, `compiled`, or `auto` for the faster one; results are identical.
        on_progress: Callback, called periodically with output tokens so far, output tokens in total, and simulated time in ps.
        apart: How replicas that can be simulated alone run side by side; the result is the same.

    Raises:
        InputError: Something in the scenario cannot be used.
        SimulationError: An invariant does not hold, which is a defect of the program.
    """
    if not isinstance(scenario, Scenario):
        scenario = read(scenario)
    began = perf_counter()
    planned = plan(scenario)
    return run_plan(scenario, planned, perf_counter() - began, executor=executor, on_progress=on_progress, apart=apart)


def run_plan(
    scenario: Scenario, planned: Plan, seconds: float, *, executor: Executor = "auto", on_progress: OnProgress | None = None,
    many: int = MANY_TASKS, apart: Apart | None = None,
) -> Result:  # fmt: skip
    """Simulate and analyze the plan of a scenario, which took so many seconds to make: the rest of `run`.

    many: tasks from which compiled code runs and analyzes; 0 where one process runs many scenarios, so that it pays at once.
    """
    ready = perf_counter()
    with scenario.located():
        done = simulate_apart(planned, executor, on_progress, apart or Apart(), many)
        if done is None:
            done = Analyst(planned, many).simulate(executor, on_progress)
    simulated = perf_counter()
    log = done.log
    found = done.analysis.result(log, warmup_time=planned.warmup_time, warmup_requests=planned.warmup_requests)
    timing = Timing(
        capture=seconds, simulate=simulated - ready - done.seconds,
        analysis=perf_counter() - simulated + done.seconds, executed=done.executed,
    )  # fmt: skip
    result = Result(
        scenario=scenario, plan=planned, log=log, metrics=found.metrics, bounds=found.bounds,
        breakdown=found.breakdown, checks=found.checks, extrapolations=extrapolations(planned.setup, log), timing=timing,
        requests=found.requests, series=found.series, energy=found.energy, window=done.window,
    )  # fmt: skip
    return result.without_steps() if planned.record == "none" else result
