"""`sim compare`."""

from __future__ import annotations

import json

import click

from sim.cli.console import output
from sim.cli.options import complete_scenario
from sim.cli.progress import simulating
from sim.render import compare
from sim.runs.run import read, run
from sim.scenario.shipped import find_scenario


@click.command("compare")
@click.argument("first", metavar="A", shell_complete=complete_scenario)
@click.argument("second", metavar="B", shell_complete=complete_scenario)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value in both, as in `sim run`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(first: str, second: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Run two scenarios and show them side by side: differences in settings, results and where the time went."""
    scenarios = [read(find_scenario(name), list(overrides)) for name in (first, second)]  # both are checked before any runs
    results = []
    for scenario in scenarios:
        with simulating(scenario.name) as on_progress:
            results.append(run(scenario, on_progress=on_progress))
    data = compare.compare(*results)
    if as_json:
        click.echo(json.dumps(data))
        return
    output(120).print(compare.render(data), highlight=False)
