"""`sim compare`."""

from __future__ import annotations

import json
from string import ascii_lowercase

import click

from sim.base.errors import InputError
from sim.cli.console import output
from sim.cli.options import Command, complete_scenario
from sim.cli.progress import simulating
from sim.render import compare
from sim.runs.run import read, run
from sim.scenario.shipped import find_scenario

SIDES = ascii_lowercase[:8]


def _set_options(command: Command) -> Command:
    """--set-a, --set-b, ...: the first two are in the help, which says the rest."""
    for letter in reversed(SIDES):
        text = {"a": "Change a value in the first scenario alone.", "b": "In the second; --set-c in the third, up to --set-h."}
        command = click.option(
            f"--set-{letter}", multiple=True, metavar="KEY=VALUE", help=text.get(letter), hidden=letter not in text
        )(command)  # fmt: skip
    return command


@click.command("compare")
@click.argument("names", metavar="SCENARIO...", nargs=-1, required=True, shell_complete=complete_scenario)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value in all, as in `sim run`.")
@_set_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(names: tuple[str, ...], overrides: tuple[str, ...], as_json: bool, **own: tuple[str, ...]) -> None:
    """Run scenarios and show them side by side: differences in settings, results and where the time went.

    \b
    sim compare batch_1 batch_8
    sim compare batch_8 --set-b hardware.memory.arbiter=fifo
    sim compare batch_1 batch_8 batch_64

    With one name, or fewer names than sides, the last is the scenario of the other sides, too.
    """  # noqa: D301 -- click keeps the lines after the character
    changes = _changes(names, own)
    names = (*names, *[names[-1]] * (len(changes) - len(names)))
    # All are checked before any runs.
    scenarios = [read(find_scenario(name), [*overrides, *mine]) for name, mine in zip(names, changes, strict=True)]
    results = []
    for scenario in scenarios:
        with simulating(scenario.name) as on_progress:
            results.append(run(scenario, on_progress=on_progress))
    data = compare.compare(results, compare.named([scenario.name for scenario in scenarios], changes))
    if as_json:
        click.echo(json.dumps(data))
        return
    output(120).print(compare.render(data), highlight=False)


def _changes(names: tuple[str, ...], own: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """The changes of each side. Raises InputError unless there are two sides or more."""
    changes = [list(own[f"set_{letter}"]) for letter in SIDES]
    count = max([len(names), *(i + 1 for i, each in enumerate(changes) if each)])
    if count < 2:
        raise InputError(f"expected two scenarios or more, or {names[0]} with --set-b KEY=VALUE, found one")
    if len(names) > len(SIDES):
        raise InputError(f"expected at most {len(SIDES)} scenarios, found {len(names)}")
    return changes[:count]
