"""`sim list`."""

from __future__ import annotations

from collections.abc import Callable

import click

import models.library
from models.graph import QUANTITIES
from sim.base.errors import unknown
from sim.base.units import format_bytes
from sim.cost import COST_MODELS
from sim.machine.arbiters import ARBITERS
from sim.machine.presets import PRESETS, Figure, find
from sim.machine.schedulers import SCHEDULERS
from sim.runs.run import read
from sim.scenario.shipped import scenarios
from sim.serving.policies import BATCHING_POLICIES


def _scenarios() -> list[tuple[str, str]]:
    return [(name, read(path).description) for name, path in scenarios().items()]


def _models() -> list[tuple[str, str]]:
    rows = []
    for name in models.library.names():
        model = models.library.load(name)
        kv = int(model.step().costs(0)[QUANTITIES.index("kv_write")].sum())
        size = f"{model.parameters:,} parameters ({format_bytes(model.parameter_bytes)} as {model.dtype})"
        experts = f", {model.experts.top_k} of {model.experts.count} experts a token" if model.experts is not None else ""
        rows.append((name, f"{size}, {model.layers} layers, hidden {model.hidden}, KV cache {kv:,} B a token{experts}"))
    return rows


def _hardware() -> list[tuple[str, str]]:
    rows = []
    for name in PRESETS.names():
        preset = find(name)
        figures = [f"{key.removeprefix('peak.').removeprefix('on_chip.')} {figure}" for key, figure in preset.figures()]
        if preset.unpublished:
            figures.append("bandwidth not published")
        rows.append((name, f"{preset.title}: {', '.join(figures)}"))
    return rows


def _machine(name: str) -> list[tuple[str, str]]:
    """Every figure of a preset, with its source and what is uncertain about it."""
    preset = find(name)
    rows = [(key, _figure(figure)) for key, figure in preset.figures()]
    return [*rows, ("bandwidth", f"not published: {preset.unpublished}")] if preset.unpublished else rows


def _figure(figure: Figure) -> str:
    notes = [f"{word}: {note}" for word in ("derived", "unsure") if (note := getattr(figure, word))]
    return "; ".join([f"{figure.text}  {figure.source}", *notes])


LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "models": _models,
    "hardware": _hardware,
    "arbiters": ARBITERS.summaries,
    "schedulers": SCHEDULERS.summaries,
    "batching": BATCHING_POLICIES.summaries,
    "costs": COST_MODELS.summaries,
    "scenarios": _scenarios,
}


@click.command("list")
@click.argument("what", type=click.Choice(list(LISTS)))
@click.argument("name", required=False)
def command(what: str, name: str | None) -> None:
    """List the names that a scenario can use, or only NAME. For hardware, NAME lists every figure with its source."""
    rows = _machine(name) if what == "hardware" and name else LISTS[what]()
    if name and what != "hardware":
        names = [each for each, _ in rows]
        if name not in names:
            raise unknown(what.removesuffix("s"), name, names)
        rows = [row for row in rows if row[0] == name]
    width = max((len(key) for key, _ in rows), default=0)
    for key, text in rows:
        click.echo(f"{key:<{width}}  {text}".rstrip())
