"""Repeated runs of a scenario on a terminal: means with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sim.base.units import format_number, format_time
from sim.render.narrow import Fitting


def render(data: Mapping[str, Any]) -> RenderableType:
    """Render the data of `sim.runs.repeats.to_json` as a table."""
    seeds = data["seeds"]
    head = Text.assemble((data["scenario"], "bold"), f"  {len(seeds)} runs, seeds {seeds[0]} to {seeds[-1]}")
    table = Fitting(drop=("max", "min"))
    table.add_column("")
    for name in ("mean", "± 95 %", "min", "max"):
        table.add_column(name, justify="right")
    for row in data["numbers"]:
        shown = (row["mean"], row["half_width"], min(row["values"]), max(row["values"]))
        table.add_row(row["name"], *(_format(value, row["unit"]) for value in shown))
    body: list[RenderableType] = [head, table]
    if all(len(set(row["values"])) == 1 for row in data["numbers"]):
        body.append(Text("All runs are equal: nothing in this scenario depends on the seed.", style="dim"))
    return Group(*body)


def _format(value: float, unit: str) -> str:
    if unit == "ps":
        return format_time(round(value))
    return f"{value:.1%}" if unit == "share" else format_number(value)
