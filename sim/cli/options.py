"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import click.shell_completion

from sim.base.errors import InputError
from sim.base.files import kind_of, shown
from sim.scenario import Scenario
from sim.scenario.shipped import scenarios

Command = Callable[..., Any]

#: Endings of files, which a folder of results will not have.
FILES = frozenset({
    ".csv", ".gz", ".htm", ".html", ".json", ".parquet", ".pb", ".pdf", ".perfetto-trace", ".pftrace", ".png", ".proto", ".svg",
    ".trace", ".txt", ".yaml", ".yml", ".zip",
})  # fmt: skip


def scenario_arguments(command: Command) -> Command:
    """SCENARIO... and --set, as `names` and `overrides`."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE",
        help='Change a value, e.g. --set hardware.memory.bandwidth="50 GB/s". Can be repeated.',
    )(command)  # fmt: skip
    return click.argument("names", nargs=-1, required=True, metavar="SCENARIO...", shell_complete=complete_scenario)(command)


def needs_all_ops(scenario: Scenario, wanted: str) -> None:
    """Raise InputError unless a run records every op: before the run, which may be long, not after it."""
    if scenario.record != "all":
        advice = "--set record=all records every op, if the run fits in memory"
        raise scenario.error("record", f"expected all for {wanted}, found {scenario.record}; {advice}")


def check_folder(out: Path, or_else: str) -> None:
    """Raise InputError if `--out` is a file, or is not there and has the name of one; `or_else` says what could stand there."""
    found = kind_of(out)
    if found not in {None, "folder"}:
        raise InputError(f"--out: {shown(out)} is a file; expected a folder, or {or_else}")
    if found is None and out.suffix.lower() in FILES:
        raise InputError(f"--out: {shown(out)}: expected a folder, or {or_else}")


def complete_scenario(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Shipped names, and files."""
    names: list[Any] = [name for name in scenarios() if name.startswith(incomplete)]
    return names or [click.shell_completion.CompletionItem(incomplete, type="file")]


def device_module(name: str) -> Any:
    """Import a module of `sim.measure`, and with it torch: called late, so that errors in other options are reported first."""
    try:
        return import_module(f"sim.measure.{name}")
    except ImportError as error:
        raise InputError(f"running a model needs torch and transformers (pip install torch transformers): {error}") from error
