"""`sim list`."""

from __future__ import annotations

from collections.abc import Callable

import click

import models.library
from sim.cost import COST_MODELS
from sim.hardware.arbiters import ARBITERS
from sim.runner import read
from sim.scheduling import SCHEDULERS
from sim.shipped import scenarios


def _documented(names: list[str], get: Callable[[str], object]) -> list[tuple[str, str]]:
    return [(name, (get(name).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")) for name in names]


def _scenarios() -> list[tuple[str, str]]:
    return [(name, read(path).description) for name, path in scenarios().items()]


def _models() -> list[tuple[str, str]]:
    return [(name, "") for name in models.library.names()]


LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "models": _models,
    "hardware": lambda: [("generic-npu", "4 engines of 2 TFLOP/s (bfloat16) on one 100 GB/s channel: the defaults.")],
    "arbiters": lambda: _documented(ARBITERS.names(), ARBITERS.get),
    "schedulers": lambda: _documented(SCHEDULERS.names(), SCHEDULERS.get),
    "costs": lambda: _documented(COST_MODELS.names(), COST_MODELS.get),
    "scenarios": _scenarios,
}


@click.command("list")
@click.argument("what", type=click.Choice(list(LISTS)))
def command(what: str) -> None:
    """List what a scenario can name."""
    rows = LISTS[what]()
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}".rstrip())
