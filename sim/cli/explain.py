"""`sim explain`."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING

import click

from sim.base.errors import InputError
from sim.cli.console import output, print_json, status
from sim.cli.options import complete_scenario, needs_all_ops
from sim.cli.progress import simulating
from sim.render import breakdown, explain, narrow, story
from sim.render.summary import summary_rows
from sim.runs.result import Result
from sim.runs.run import read, run
from sim.runs.what_if import to_json as what_if_data
from sim.runs.what_if import what_if
from sim.scenario.shipped import find_scenario

if TYPE_CHECKING:
    from sim.analysis.optimal import Optimum


@click.command("explain")
@click.argument("name", metavar="SCENARIO", shell_complete=complete_scenario)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value, as in `sim run`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: that of `sim run`, with `what_if` and `optimal`.")
@click.option("--what-if/--no-what-if", "with_what_if", default=True,
              help="Rerun the scenario on better machines (faster memory, more engines, ...).")  # fmt: skip
@click.option("--token", metavar="S.T", help="Tell the story of output token T of sequence S alone, in order of time.")
@click.option("--request", type=int, metavar="N", help="Tell the story of request N alone, step by step.")
@click.option("--optimal", "with_optimal", is_flag=True, help="Search for the best schedule; needs the extra `optimal`.")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              help="Time limit of --optimal, in seconds.")  # fmt: skip
def command(
    name: str, overrides: tuple[str, ...], as_json: bool, with_what_if: bool, token: str | None, request: int | None,
    with_optimal: bool, time_limit: float,
) -> None:  # fmt: skip
    """Explain a run: where the time went, what caused each wait, the critical path, bounds, and what would help."""
    wanted = None if token is None else _numbers(token)
    scenario = read(find_scenario(name), list(overrides))
    needs_all_ops(scenario, "an explanation")
    with simulating(scenario.name) as on_progress:
        result = run(scenario, on_progress=on_progress)
    if wanted is not None or request is not None:
        _tell(result, wanted, request, as_json=as_json)
        return
    answer = None
    if with_optimal:
        with status("searching for the best schedule"):
            answer = _optimal(result, time_limit)
    changes = None
    if with_what_if:
        changes = what_if(result, status("simulating better machines"))
    if as_json:
        data = summary_rows(result, timing=False)
        data["critical_path"] = breakdown.critical_path(result, links=True)
        data["what_if"] = None if changes is None else what_if_data(changes)
        data["optimal"] = None if answer is None else breakdown.optimal(answer, result.makespan)
        print_json(data)
        return
    console = output(120)
    narrow.show(console, explain.render(result))
    if answer is not None:
        console.print(f"\n{answer.sentence(result.makespan)}", highlight=False)
    if changes is not None:
        narrow.show(console, explain.what_would_help(changes))


def _numbers(token: str) -> tuple[int, int]:
    """Numbers of `0.3`: sequence and token. Raises InputError."""
    sequence, _, number = token.partition(".")
    if not (sequence.isdecimal() and number.isdecimal()):
        raise InputError(f"--token: expected a sequence and a token such as 0.3, found {token}")
    return int(sequence), int(number)


def _tell(result: Result, token: tuple[int, int] | None, request: int | None, *, as_json: bool) -> None:
    """Print stories: of a token, of a request, or of both."""
    data: dict[str, object] = {}
    console = output(120)
    if token is not None:
        data["token"] = told = story.token(result, *token)
        if not as_json:
            narrow.show(console, story.render_token(told, result.log.owner_words))
    if request is not None:
        data["request"] = told = story.request(result, request)
        if not as_json:
            narrow.show(console, story.render_request(told))
    if as_json:
        click.echo(json.dumps(data))


def _optimal(result: Result, time_limit: float) -> Optimum:
    try:
        optimal = import_module("sim.analysis.optimal")  # an extra, and slow to import
    except ModuleNotFoundError:
        raise InputError("--optimal needs OR-tools: pip install 'decode-sim[optimal]'") from None
    answer: Optimum = optimal.optimum(
        result.log, result.plan.rules, result.scenario.hardware.memory.arbiter.name, time_limit=time_limit
    )
    return answer
