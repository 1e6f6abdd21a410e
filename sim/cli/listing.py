"""`sim list`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from shutil import get_terminal_size
from typing import Any

import click

import models.library
from models.graph import QUANTITIES
from sim.base.errors import unknown
from sim.base.registry import Registry
from sim.base.units import format_bytes
from sim.cost import COST_MODELS
from sim.machine.arbiters import ARBITERS
from sim.machine.links import find as find_link
from sim.machine.links import names as link_names
from sim.machine.presets import PRESETS, Figure, find
from sim.machine.schedulers import SCHEDULERS
from sim.runs.run import read
from sim.scenario.shipped import scenarios
from sim.serving.policies import BATCHING_POLICIES
from sim.serving.routers import ROUTERS


def _scenarios() -> list[tuple[str, ...]]:
    return [(name, " ".join(read(path).description.split())) for name, path in scenarios().items()]


#: Columns of the table of models.
MODELS = ("model", "parameters", "weights", "layers", "hidden", "KV cache per token", "experts per token")


def _models() -> list[tuple[str, ...]]:
    rows = list[tuple[str, ...]]()
    for name in models.library.names():
        model = models.library.load(name)
        kv = int(model.step().costs(0)[QUANTITIES.index("kv_write")].sum())
        size = f"{format_bytes(model.parameter_bytes)} {model.dtype}"
        experts = f"{model.experts.top_k} of {model.experts.count}" if model.experts is not None else ""
        rows.append((name, f"{model.parameters:,}", size, str(model.layers), str(model.hidden), f"{kv:,} B", experts))
    return rows


#: Columns of the table of machines.
HARDWARE = ("device", "bf16 peak", "memory", "bandwidth", "engines", "")


def _hardware() -> list[tuple[str, ...]]:
    """The table of machines: name and figures of each, and its title. An asterisk marks what is unsure."""
    rows = list[tuple[str, ...]]()
    for name in PRESETS.names():
        preset = find(name)
        peak = preset.peak.get("bfloat16") or preset.peak.get("any")
        bandwidth = "not published" if preset.unpublished else _short(preset.bandwidth)
        rows.append((name, _short(peak), _short(preset.capacity), bandwidth, _short(preset.engines), preset.title))
    return rows


def _short(figure: Figure | None) -> str:
    """A figure in a table."""
    return "-" if figure is None else f"{figure.text}{'*' if figure.unsure else ''}"


def _machine(name: str) -> list[tuple[str, str]]:
    """Every figure of a preset, with its source and what is uncertain about it, and the software it was fitted to."""
    preset = find(name)
    rows = [(key, _figure(figure)) for key, figure in preset.figures()]
    rows += [("software", str(software)) for software in preset.software]
    return [*rows, ("bandwidth", f"not published: {preset.unpublished}")] if preset.unpublished else rows


def _figure(figure: Figure) -> str:
    notes = [f"{word}: {note}" for word in ("derived", "unsure") if (note := getattr(figure, word))]
    return "; ".join([f"{figure.text}  {figure.source}", *notes])


#: Columns of the table of links.
LINKS = ("link", "bandwidth", "latency", "")


def _links() -> list[tuple[str, ...]]:
    """The table of links: name, figures in one direction, and title."""
    found = [(name, find_link(name)) for name in link_names()]
    return [(name, _short(link.bandwidth), _short(link.latency), link.title) for name, link in found]


def _link(name: str) -> list[tuple[str, str]]:
    """Both figures of a link, with their sources."""
    link = find_link(name)
    return [(key, _figure(getattr(link, key))) for key in ("bandwidth", "latency")]


def _of(registry: Registry[Any]) -> Callable[[], list[tuple[str, ...]]]:
    return lambda: list[tuple[str, ...]](registry.summaries())


#: Names with figures: columns of the table, its rows, and the figures of one.
DEVICES: dict[str, tuple[tuple[str, ...], Callable[[], list[tuple[str, ...]]], Callable[[str], Sequence[tuple[str, ...]]]]] = {
    "hardware": (HARDWARE, _hardware, _machine),
    "links": (LINKS, _links, _link),
}

LISTS: dict[str, Callable[[], list[tuple[str, ...]]]] = {
    "models": _models,
    "arbiters": _of(ARBITERS),
    "schedulers": _of(SCHEDULERS),
    "batching": _of(BATCHING_POLICIES),
    "routers": _of(ROUTERS),
    "costs": _of(COST_MODELS),
    "scenarios": _scenarios,
}


@click.command("list")
@click.argument("what", type=click.Choice([*DEVICES, *LISTS]))
@click.argument("name", required=False)
def command(what: str, name: str | None) -> None:
    """List the names that a scenario can use, or only NAME.

    For hardware and links, NAME lists every figure with its source.
    """
    if what in DEVICES:
        head, every, one = DEVICES[what]
        _show_table([head, *every()] if name is None else one(name))
        return
    rows = LISTS[what]()
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
