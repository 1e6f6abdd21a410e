"""Repeats of a scenario with different seeds: means and their confidence intervals.

Runs with different seeds are independent replications (A. M. Law, "Simulation Modeling and Analysis", chapter 9): for n values
of a metric with mean m and standard deviation s, the 95 % confidence interval of its expectation is m ± t s / sqrt(n), with
Student's t for n - 1 degrees of freedom. It assumes roughly normal values, as means are; for a p99 of few requests it is
unreliable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sim.analysis.requests import TITLES
from sim.base.errors import InputError
from sim.executors import Executor, side_by_side
from sim.runs.apart import NEVER, Apart, Beside
from sim.runs.plan import Plan, plan
from sim.runs.result import Result
from sim.runs.run import known_names, run, run_plan
from sim.runs.shared import Shared
from sim.scenario import Scenario, override

R = TypeVar("R")

MOST = 1000

#: Student's t, two-sided 95 %, for 1 to 30 degrees of freedom, then from 40, 60, 100, 1000. NIST e-Handbook 1.3.6.7.2.
T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
    2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
T_FROM = ((1000, 1.962), (100, 1.984), (60, 2.000), (40, 2.021), (30, 2.042))

STATISTICS = ("mean", "p50", "p90", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Mean of a metric over all runs that have it. unit: `ps`, `share` or empty. half: half of its 95 % confidence interval."""

    name: str
    unit: str
    values: tuple[float, ...]
    mean: float
    half: float


def repeat(scenario: Scenario, count: int, *, executor: Executor = "auto") -> Iterator[Result]:
    """Run a scenario with its seed and the following ones. Raises InputError for a count below 2 or above `MOST`."""
    return side_by_side(partial(run, executor=executor), _with_seeds(scenario, count))


def measure(
    scenario: Scenario, count: int, wanted: Callable[[Result], R], *, executor: Executor = "auto", beside: Beside | None = None
) -> Iterator[R]:  # fmt: skip
    """Yield `wanted(result)` of each run of `repeat`. Runs start now, in processes if that is faster, so it must be picklable.

    beside: where they run instead; it gets plans, in which all files are read. Raises InputError for a count below 2 or above
    `MOST`, and for a scenario that cannot run.
    """
    scenarios = _with_seeds(scenario, count)
    if beside is not None:
        shared = Shared()
        return beside(partial(_wanted, wanted, executor), ((each, plan(each, shared)) for each in scenarios))
    # Graphs made once here are available in all processes.
    setup = plan(scenario).setup
    return side_by_side(lambda each: wanted(run(each, executor=executor)), scenarios, setup)


def _wanted(wanted: Callable[[Result], R], executor: Executor, planned: tuple[Scenario, Plan]) -> R:
    """Return what is wanted of a run."""
    return wanted(run_plan(*planned, 0, executor=executor, apart=Apart(least=NEVER)))


def _with_seeds(scenario: Scenario, count: int) -> list[Scenario]:
    if not 2 <= count <= MOST:
        raise InputError(f"expected 2 to {MOST} repeats, found {count}")
    seeds = range(scenario.seed, scenario.seed + count)
    return [override(scenario, [f"seed={seed}"], known_names()) for seed in seeds]


def estimates(results: Sequence[dict[str, tuple[str, float]]]) -> list[Estimate]:
    """Estimates of the metrics that at least two runs have. results: the `numbers` of each run."""
    names = dict.fromkeys(name for numbers in results for name in numbers)
    found = []
    for name in names:
        rows = [numbers[name] for numbers in results if name in numbers]
        if len(rows) > 1:
            mean, half = interval([value for _, value in rows])
            found.append(Estimate(name=name, unit=rows[0][0], values=tuple(v for _, v in rows), mean=mean, half=half))
    return found


def numbers(result: Result) -> dict[str, tuple[str, float]]:
    """Metrics of a run that are estimated: name -> (unit, value)."""
    served, makespan = result.requests, result.makespan
    found: dict[str, tuple[str, float]] = {
        "makespan": ("ps", makespan),
        "tokens/s": ("", round(served.tokens_per_second, 6)),
        "requests/s": ("", round(served.requests_per_second, 6)),
        "requests in the system": ("", round(served.in_system, 6)),
    }
    times, fairness = served.times(), served.fairness()
    for name, title in TITLES.items():
        if (times_of := times[name]) is not None:
            found.update({f"{title}, {each}": ("ps", getattr(times_of, each)) for each in STATISTICS})
    for name, title in (("tokens_per_s", "fairness of tokens/s"), ("slowdown", "fairness of slowdowns")):
        if (index := fairness[name]) is not None:
            found[title] = ("", round(index, 6))
    m = result.metrics
    if makespan:
        found["engine utilization"] = ("share", sum(m.engine_busy) / (makespan * len(m.engine_busy)))
        found["channel utilization"] = ("share", sum(m.delivered) / (makespan * len(m.delivered)))
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of at least two values, and half of the 95 % confidence interval of their expectation."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, student_t(n - 1) * math.sqrt(variance / n)


def student_t(freedom: int) -> float:
    """Student's t, two-sided 95 %; between entries of the table, the value for fewer degrees of freedom, which is larger."""
    return T[freedom - 1] if freedom <= len(T) else next(t for least, t in T_FROM if freedom >= least)


def to_json(scenario: Scenario, found: Sequence[Estimate], count: int) -> dict[str, Any]:
    """JSON-ready data; times in ps."""
    return {
        "scenario": scenario.name,
        "seeds": list(range(scenario.seed, scenario.seed + count)),
        "confidence": 0.95,
        "numbers": [
            {"name": e.name, "unit": e.unit, "mean": round(e.mean, 6), "half_width": round(e.half, 6), "values": list(e.values)}
            for e in found
        ],
    }
