"""The functions of `import sim`: load, run, explain, compare, report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sim.runs.run as runs
from sim.api.result import Result
from sim.api.shown import Shown
from sim.base.files import whole_file
from sim.executors import Executor
from sim.executors.size import OnProgress
from sim.render import compare as comparison
from sim.render import explain as explanation
from sim.render import story
from sim.render.breakdown import critical_path
from sim.render.page import render as render_page
from sim.render.summary import summary
from sim.runs.what_if import to_json, what_if
from sim.scenario import Scenario, from_dict
from sim.scenario.shipped import find_scenario

#: A scenario, or what one is made of: the name of a shipped scenario, the path of a file, or plain data.
Source = Scenario | str | os.PathLike[str] | Mapping[str, Any]


def load(source: Source, overrides: Sequence[str] = ()) -> Scenario:
    """Read and check a scenario.

    Args:
        source: The name of a shipped scenario, the path of a YAML file, or plain data as in such a file.
        overrides: Assignments such as `hardware.memory.bandwidth=50 GB/s`, applied in order, as by `--set`.

    Raises:
        InputError: Something in it is wrong; one line says what and where.
    """
    if isinstance(source, Scenario):
        return runs.changed(source, overrides) if overrides else source
    if isinstance(source, Mapping):
        return from_dict(source, overrides=overrides, known=runs.known_names())
    return runs.read(find_scenario(source) if isinstance(source, str) else Path(source), list(overrides))


def run(
    scenario: Source, overrides: Sequence[str] = (), *, executor: Executor = "auto", on_progress: OnProgress | None = None
) -> Result:
    """Simulate a scenario and analyze the run.

    Args:
        scenario: A scenario, the name of a shipped one, the path of a file, or plain data as in such a file.
        overrides: Assignments such as `hardware.memory.bandwidth=50 GB/s`, applied in order, as by `--set`.
        executor: `simpy`, `compiled`, or `auto` for the faster one; results are identical.
        on_progress: Callback, called periodically with output tokens so far, output tokens in total, and simulated time in ps.

    Raises:
        InputError: Something in the scenario cannot be used.
        SimulationError: An invariant does not hold, which is a defect of the program.
    """
    return Result.of(runs.run(load(scenario, overrides), executor=executor, on_progress=on_progress))


def explain(
    scenario: Source | Result, *, token: tuple[int, int] | None = None, request: int | None = None, what_would_help: bool = True
) -> Shown:
    """Explain a run, as `sim explain` does: where the time went, what caused each wait, and what would help.

    Args:
        scenario: A result, or a scenario to run.
        token: Sequence and token, to tell the story of that token alone.
        request: Number of a request, to tell the story of that request alone.
        what_would_help: Run the scenario again on better machines.

    Returns:
        Text on a terminal, HTML in a notebook; `data` is that of `sim explain --json`.

    Raises:
        InputError: Ops were not recorded, or there is no such token or request.
    """
    result = _ran(scenario)
    if token is not None:
        told = story.token(result, *token)
        return Shown(told, (story.render_token(told, result.log.owner_words),))
    if request is not None:
        told = story.request(result, request)
        return Shown(told, (story.render_request(told),))
    data = {**summary(result, timing=False), "critical_path": critical_path(result, links=True), "what_if": None}
    shown = [explanation.render(result)]
    if what_would_help:
        changes = what_if(result)
        data["what_if"] = to_json(changes)
        shown.append(explanation.what_would_help(changes))
    return Shown(data, tuple(shown))


def compare(*scenarios: Source | Result, names: Sequence[str] | None = None) -> Shown:
    """Compare two runs or more, as `sim compare` does: settings, results, and where the time of a token went.

    Args:
        scenarios: Results, or scenarios to run.
        names: Names of the sides; by default those of their scenarios.

    Returns:
        Text on a terminal, HTML in a notebook; `data` is that of `sim compare --json`.
    """
    if len(scenarios) < 2:
        raise TypeError(f"expected two scenarios or more, found {len(scenarios)}")
    data = comparison.compare([_ran(each) for each in scenarios], names)
    return Shown(data, (comparison.render(data),))


def report(scenario: Source | Result, path: str | os.PathLike[str], *, what_would_help: bool = True) -> Path:
    """Write one self-contained HTML page of a run, as `sim report` does.

    Args:
        scenario: A result, or a scenario to run.
        path: File to write.
        what_would_help: Run the scenario again on better machines.

    Returns:
        The path.

    Raises:
        InputError: Ops were not recorded.
        OSError: The file cannot be written.
    """
    result = _ran(scenario)
    result.rows("a page")
    page = render_page(result, what_if=to_json(what_if(result)) if what_would_help else None).encode()
    with whole_file(path) as file:
        file.write(page)
    return Path(path)


def _ran(scenario: Source | Result) -> Result:
    return scenario if isinstance(scenario, Result) else run(scenario)
