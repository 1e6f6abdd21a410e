"""`sim check`."""

from __future__ import annotations

import click

from sim.cli.options import scenario_arguments
from sim.report import account
from sim.runner import doubts, op_graphs, prepare, read
from sim.shipped import find_scenario


@click.command("check")
@scenario_arguments
def command(names: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Check scenarios without running them: syntax, names, values, and that the model can be lowered and costed."""
    for name in names:
        path = find_scenario(name)
        scenario = read(path, list(overrides))
        model, variants = op_graphs(scenario)
        setup = prepare(scenario, model, variants)
        click.echo(f"{path}: ok: {model}, {len(variants[False, False].ops)} ops, {len(setup.graph)} tasks a step")
        for doubt in account.doubts(doubts(setup)):
            click.echo(f"  doubt: {doubt}")
