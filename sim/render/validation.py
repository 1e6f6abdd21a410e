"""Result of a validation on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from sim.base.units import format_time
from sim.render.breakdown import extrapolations
from sim.render.narrow import Fitting
from sim.runs.validation import LARGE, Comparison, Row, within


def render(
    comparisons: Sequence[Comparison], *, title: Sequence[str], profile: str | None, warnings: Sequence[str], band: float
) -> RenderableType:
    """Render a table per point, and the verdict. Without a profile predictions are lower bounds, and there is no verdict."""
    parts: list[RenderableType] = [Text(line, style="bold") for line in title]
    if profile is None:
        parts.append(Text("no profile: predicted is the roofline at this device's best rates, a lower bound", style="yellow"))
    parts += [Text(f"profile: {warning}", style="yellow") for warning in warnings]
    for comparison in comparisons:
        parts += [Text(), _table(comparison)]
        if errors := comparison.large().tolist():
            median, high = np.median(errors), np.quantile(errors, 0.9)
            parts.append(Text(f"ops over {LARGE:.1%} of the step: {len(errors)}, error median {median:.1%}, p90 {high:.1%}"))
        parts += [
            Text(f"extrapolated: {text}", style="yellow") for text in extrapolations(comparison.prediction.extrapolations)
        ]
    return Group(*parts, Text(), _verdict(comparisons, profile, band))


def to_json(
    comparisons: Sequence[Comparison], *, facts: Mapping[str, Any], profile: str | None, warnings: Sequence[str], band: float
) -> dict[str, Any]:
    """JSON-ready data of a validation; times in ps."""
    points = []
    for comparison in comparisons:
        errors = comparison.large().tolist()
        large = {"median": float(np.median(errors)), "p90": float(np.quantile(errors, 0.9))} if errors else {}
        points.append(
            {
                "batch": comparison.batch,
                "context": comparison.context,
                "rounds": len(comparison.steps),
                "step": _numbers(comparison.step),
                "ops": _numbers(comparison.together),
                "kinds": {row.name: _numbers(row) for row in comparison.kinds},
                "large_ops": {"count": len(errors), **large},
                "extrapolations": extrapolations(comparison.prediction.extrapolations),
                "within": None if profile is None else comparison.within(band),
            }
        )
    verdict = None if profile is None else within(comparisons, band)
    judged = {"profile": profile, "warnings": [*warnings], "lower_bound": profile is None, "band": band, "within": verdict}
    return {**facts, **judged, "points": points}


def _numbers(row: Row) -> dict[str, float]:
    return {
        "count": row.ops, "measured_ps": row.measured, "predicted_ps": row.predicted, "error": round(row.error, 4),
        "spread": round(row.spread, 4), "noise": round(row.noise, 4),
    }  # fmt: skip


def _table(comparison: Comparison) -> Fitting:
    title = f"batch {comparison.batch}, context {comparison.context:,}, {len(comparison.steps)} rounds"
    table = Fitting(drop=("spread", "ops"), header_style="bold", title=title)
    table.add_column("op")
    for name in ("ops", "measured", "spread", "predicted", "error", "noise"):
        table.add_column(name, justify="right")
    for row in (*comparison.kinds, comparison.together, comparison.step):
        whole = row.name == "step"
        table.add_row(
            "the step" if whole else "all ops" if row.name == "ops" else row.name, "" if whole else f"{row.ops:,}",
            format_time(row.measured), f"{row.spread:.1%}", format_time(row.predicted), f"{row.error:+.1%}", f"{row.noise:.1%}",
            style="bold" if whole else "",
        )  # fmt: skip
    return table


def _verdict(comparisons: Sequence[Comparison], profile: str | None, band: float) -> Text:
    errors = [abs(comparison.step.error) for comparison in comparisons]
    worst, noise = max(errors), max(comparison.step.noise for comparison in comparisons)
    if profile is None:
        return Text(f"steps take up to {1 / (1 - worst):.2f} times the lower bound; a profile would predict them")
    found = f"error of steps: median {np.median(errors):.1%}, largest {worst:.1%}; noise up to {noise:.1%}"
    if within(comparisons, band):
        return Text(f"{found}; within {band:.0%}", style="green")
    return Text(f"{found}; not within {band:.0%}", style="red")
