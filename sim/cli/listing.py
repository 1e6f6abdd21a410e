"""`sim list`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from shutil import get_terminal_size

import click

from models.index import summaries
from sim.base.errors import unknown
from sim.base.units import format_bytes

#: Columns of the table of models.
MODELS = ("model", "parameters", "weights", "layers", "hidden", "KV cache per token", "experts per token")

#: Tables with figures of each name, and tables with a line about each.
DEVICES, LISTS = ("hardware", "links"), ("models", "arbiters", "schedulers", "batching", "routers", "costs", "scenarios")


def _models() -> list[tuple[str, ...]]:
    rows = list[tuple[str, ...]]()
    for name, model in summaries().items():
        size = f"{format_bytes(model.parameter_bytes)} {model.dtype}"
        kv = f"{model.kv_bytes:,} B"
        rows.append((name, f"{model.parameters:,}", size, str(model.layers), str(model.hidden), kv, model.experts or ""))
    return rows


@click.command("list")
@click.argument("what", type=click.Choice([*DEVICES, *LISTS]))
@click.argument("name", required=False)
def command(what: str, name: str | None) -> None:
    """List the names that a scenario can use, or only NAME.

    For hardware and links, NAME lists every figure with its source.
    """
    # Tables of all else know the simulator, which takes longer to import than the table of models to print.
    tables = import_module("sim.cli.lists") if what != "models" else None
    if tables is not None and what in DEVICES:
        head, every, one = tables.DEVICES[what]
        _show_table([head, *every()] if name is None else one(name))
        return
    rows: list[tuple[str, ...]] = tables.LISTS[what]() if tables is not None else _models()
    if name:
        names = [row[0] for row in rows]
        if name not in names:
            raise unknown(what.removesuffix("s"), name, names)
        rows = [row for row in rows if row[0] == name]
    _show_table([MODELS if what == "models" else (TITLES.get(what, what.removesuffix("s")), "description"), *rows])


#: Headings of names, where they are not the singular of what is listed.
TITLES = {"batching": "policy", "costs": "cost model"}


def _show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with columns of equal width.

    On a terminal the last one is wrapped where it does not fit, and left out where little is left for it.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sys.stdout.isatty():
        while len(widths) > 2 and _left(widths) < min(NARROWEST, widths[-1]):
            del widths[-1]
            rows = [row[:-1] for row in rows]
    left, indent = _left(widths) if sys.stdout.isatty() else 0, sum(widths[:-1]) + 2 * (len(widths) - 1)
    for row in rows:
        start = "".join(f"{cell.ljust(width)}  " for cell, width in zip(row[:-1], widths, strict=False))
        first, *more = textwrap.wrap(row[-1], left) or [""] if left >= NARROWEST else [row[-1]]
        for line in (start + first, *(" " * indent + text for text in more)):
            click.echo(line.rstrip())


def _left(widths: Sequence[int]) -> int:
    """Columns of the terminal that are left for the last column of a table."""
    return get_terminal_size().columns - sum(widths[:-1]) - 2 * (len(widths) - 1)


NARROWEST = 20  # columns that text is wrapped in; where fewer are left, it runs over
