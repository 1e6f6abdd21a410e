"""The calls that are measured: a scenario, a setup, an event log, a result. Nothing else here calls the simulator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from sim import executors
from sim.executors import Executor
from sim.executors.setup import Setup
from sim.log.tables import EventLog
from sim.render.summary import summary as summary_of
from sim.runs.plan import plan
from sim.runs.repeats import measure, numbers
from sim.runs.result import Result
from sim.runs.run import read
from sim.runs.run import run as run_scenario
from sim.runs.workload import requests
from sim.scenario import Scenario
from sim.scenario.shipped import scenarios

#: Values of `record` -> largest task count measured with it: rows of 30 million tasks are 2 GB.
RECORDS = {"all": 30_000_000, "steps": 10**9}


def scenario(name: str | Path, *overrides: str) -> Scenario:
    """A shipped scenario, by its name, or one of a file."""
    return read(name if isinstance(name, Path) else scenarios()[name], list(overrides))


def setup_of(scenario: Scenario) -> Setup:
    return plan(scenario).setup


def simulate(setup: Setup, executor: Executor = "compiled", *, rows: bool = True) -> EventLog:
    """Simulate a setup, until every column of the log is there. rows: keep those of tasks."""
    log, _ = executors.simulate(setup, executor, None, None if rows else _forget)
    for column in fields(log.tasks):
        getattr(log.tasks, column.name)
    return log


def _forget(_part: EventLog) -> None:
    """Take rows that are not kept."""


def run(scenario: Scenario, executor: Executor = "compiled") -> Result:
    """Simulate a scenario, with all checks and the breakdown."""
    return run_scenario(scenario, executor=executor)


def repeat(scenario: Scenario, count: int, executor: Executor = "compiled") -> Iterator[dict[str, int]]:
    """Run a scenario with several seeds, and return the size of each run."""
    return measure(scenario, count, _numbers, executor=executor)


def _numbers(result: Result) -> dict[str, int]:
    """Compute the numbers of `sim run --repeats`, and return the size of the run."""
    numbers(result)
    return size(result.log)


def tasks(log: EventLog) -> int:
    """Tasks that were simulated, whether their rows were kept or not."""
    return int(sum(len(graph) * count for graph, count in zip(log.graphs, np.bincount(log.steps.graph), strict=True)))


def size(log: EventLog) -> dict[str, int]:
    """Size of a run."""
    return {"tasks": tasks(log), "intervals": len(log.services), "steps": len(log.steps)}


def tokens(scenario: Scenario) -> int:
    """Output tokens of all requests."""
    return sum(request.tokens for request in requests(scenario))


def summary(result: Result) -> str:
    """Text that `sim run --json` prints."""
    return json.dumps(summary_of(result))
