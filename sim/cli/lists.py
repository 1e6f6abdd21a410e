"""Rows of the tables of `sim list`, except that of models, which needs nothing of the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sim.base.registry import Registry
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
    "arbiters": _of(ARBITERS),
    "schedulers": _of(SCHEDULERS),
    "batching": _of(BATCHING_POLICIES),
    "routers": _of(ROUTERS),
    "costs": _of(COST_MODELS),
    "scenarios": _scenarios,
}
