"""Saved logs: an event log in a Parquet file, with the scenario that it came from."""

from __future__ import annotations

import os

from sim.executors import Executed, Executor, simulate
from sim.executors.size import OnProgress, counted
from sim.log import parquet
from sim.log.tables import EventLog
from sim.runs.model import models_of
from sim.runs.plan import plan, step_graphs
from sim.runs.run import known_names
from sim.scenario import Scenario, from_dict


def save(log: EventLog, scenario: Scenario, path: str | os.PathLike[str]) -> None:
    """Write an event log with its scenario as Parquet; after an error no file is left.

    Raises:
        InputError: The log has no rows, because ops were not recorded.
        OSError: The file cannot be written.
    """
    if not log.has_rows:
        raise scenario.error("record", f"expected all for an event log in a file, found {scenario.record}")
    with parquet.writing(path, scenario.to_dict(absolute=True), scenario.seed) as file:
        file.add(log)


def run_to_file(
    scenario: Scenario, path: str | os.PathLike[str], *, executor: Executor = "auto", on_progress: OnProgress | None = None
) -> tuple[int, Executed]:
    """Simulate and write part by part, without analyses; returns the makespan in ps, and which executor ran.

    With a single decode loop, about 250,000 tasks are in memory at a time, however long the run. Where loops overlap, all
    tasks are in memory until the end.
    """
    setup = plan(scenario).setup
    with parquet.writing(path, scenario.to_dict(absolute=True), scenario.seed) as file, scenario.located():
        _, executed = simulate(setup, executor, counted(setup, on_progress), file.add)
    return file.makespan, executed


def load(path: str | os.PathLike[str]) -> tuple[EventLog, Scenario]:
    """Read a log and the scenario that it came from, wherever the file has been moved to.

    Presets, profiles and request traces of the scenario are not read again: the file contains all that is needed of them.

    Raises:
        InputError: The file holds no log, or the model has different tasks in this version.
    """
    stored = parquet.read(path)
    scenario = from_dict(stored.scenario, stored.source, known=known_names(), complete=True)
    with scenario.located():
        graphs = step_graphs(scenario, models_of(scenario))
        return stored.log(graphs), scenario
