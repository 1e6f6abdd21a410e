"""The command line. Exit status: 0 success, 1 failure, 2 bad input.

Each command is a module of its own, imported on first use, so that `sim --help` and tab completion answer at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from sim import __version__
from sim.base.errors import InputError, SimError, nearest, one_line
from sim.base.files import protected_inputs

#: name -> (module, one line for `sim --help`)
COMMANDS = {
    "new": ("sim.cli.new", "Write a commented scenario for a model and a device."),
    "run": ("sim.cli.run", "Run scenarios: summary, trace, JSON."),
    "explain": (
        "sim.cli.explain",
        "Explain a run: where the time went, what caused each wait, what would help.",
    ),
    "compare": ("sim.cli.compare", "Compare scenarios: differences in settings, results and where the time went."),
    "sweep": ("sim.cli.sweep", "Run a study: many scenarios that differ in a few keys, on all cores."),
    "study": ("sim.cli.study", "Show the results of a study: best points, Pareto front, effects; as a page or CSV."),
    "report": ("sim.cli.report", "Write one HTML page of a run: timeline, charts, tables."),
    "explore": ("sim.cli.explore", "Open a live page with sliders that simulate a scenario at each change."),
    "view": ("sim.cli.view", "Open a trace in the Perfetto UI."),
    "check": ("sim.cli.check", "Check scenarios without running them."),
    "list": ("sim.cli.listing", "List models, hardware, links, arbiters, schedulers, costs or scenarios."),
    "schema": ("sim.cli.schema", "Print the JSON Schema of scenario files."),
    "validate": ("sim.cli.validate", "Run a real model on this device and compare it with its simulation."),
    "capture": ("sim.cli.capture", "Print the op graph of a model as a table."),
    "profile": ("sim.cli.profile", "Measure a device: op times, bandwidth, overheads."),
    "import-kernels": ("sim.cli.import_kernels", "Fit a device profile to tables of kernel times."),
    "completion": ("sim.cli.completion", "Print a script for tab completion in your shell."),
}


#: Headings of `sim --help`; a command of none is under "More".
GROUPS = {
    "Simulate": ("run", "explain", "compare", "report", "explore", "view"),
    "Studies": ("sweep", "study"),
    "Scenarios": ("new", "check", "list", "schema"),
    "Models and devices": ("capture", "validate", "profile", "import-kernels"),
}
EXAMPLE = ("sim run two_tokens_4_engines", "sim view traces/two_tokens_4_engines.pftrace", "sim explain two_tokens_4_engines")


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C until the block ends: during an import it could be lost, or surface as an ImportError."""
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a hint and the list of commands for a name that is none."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], COMMANDS)}; commands: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with _no_interrupt():
            command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with protected_inputs():
                return super().invoke(ctx)
        except KeyboardInterrupt:  # here, because click itself prints an empty line at it
            raise click.Abort from None
        except BrokenPipeError:  # `sim list models | head`; here, because click ends with status 1 at it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
            raise click.exceptions.Exit(0) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        named = {name for names in GROUPS.values() for name in names}
        for title, names in {**GROUPS, "More": [name for name in COMMANDS if name not in named]}.items():
            if rows := [(name, COMMANDS[name][1]) for name in names if name in COMMANDS]:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=30)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            for line in EXAMPLE:
                formatter.write_text(line)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sim")
def cli() -> None:
    """Where does LLM decode wait? Simulate engines that share a memory channel."""


def _nearest_choice(error: click.ClickException) -> str:
    """A hint to the nearest of the choices of an option, empty if the error is about something else."""
    choices = getattr(getattr(getattr(error, "param", None), "type", None), "choices", None)
    found = re.search(r"'([^']*)' is not one of", error.message)
    return nearest(found[1], choices) if choices and found else ""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; entry point of the `sim` command."""
    if sys.stdout is None:
        sys.exit("error: standard output is closed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that half-written files are removed
    try:
        status: Any = cli.main(args=arguments, prog_name="sim", standalone_mode=False)
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        status = 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        status = 2
    except click.ClickException as error:  # wrong options: click's own words, in one line
        text, hint = one_line(" ".join(error.format_message().split())), _nearest_choice(error)
        click.echo(f"error: {text.removesuffix('.') + hint if hint else text}", err=True)
        status = 2
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        status = 2
    except SimError as error:
        click.echo(f"error: {error}", err=True)
        status = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {one_line(f'{where}{error.strerror or error}')}", err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)
