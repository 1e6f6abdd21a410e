"""`sim completion`."""

from __future__ import annotations

import click
import click.shell_completion

from sim.cli import cli


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script for tab completion in your shell, e.g. `eval "$(sim completion bash)"`."""
    complete = click.shell_completion.get_completion_class(shell)
    if complete is not None:
        click.echo(complete(cli, {}, "sim", "_SIM_COMPLETE").source())
