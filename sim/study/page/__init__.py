"""One self-contained HTML page of a study, in the looks of the page of a run: no network, no other file."""

from __future__ import annotations

import html
from importlib.resources import files
from math import prod
from typing import Any

from sim.render.page.document import document
from sim.study.answers import Answers, PointOf
from sim.study.effects import grouped
from sim.study.metrics import METRICS
from sim.study.tables import change, search_cells, setting, show, title

FEW = 0.25  # share of all combinations below which values of axes are grouped


def data(answers: Answers) -> dict[str, Any]:
    """The study as JSON-ready data: points in columns, the front, effects and knees."""
    points = answers.points
    names = [name for name in answers.columns if any(name in point.means for point in points)]
    on_front = {point.number for point in answers.front()}
    return {
        "name": answers.manifest["name"],
        "description": answers.manifest["description"],
        "runs": answers.runs,
        "failed": answers.failed,
        "skipped": answers.skipped,
        "trials": answers.trials,
        "seeds": answers.manifest["repeats"],
        "constraints": answers.manifest["constraints"],
        "derived": list(answers.manifest["columns"]),
        "objectives": dict(answers.objectives),
        "axes": [
            {
                "key": key, "short": axis.short, "numeric": _numeric(axis.texts),
                "dimension": axis.dimension, "values": list(axis.texts),
                "texts": list(axis.texts.values()),
            }
            for key, axis in answers.axes.items()
        ],
        "columns": [
            {"name": n, "title": title(n), "unit": METRICS[n].unit if n in METRICS else "", **_of_search(answers, n)}
            for n in names
        ],
        "find": _find(answers),
        "points": {
            "number": [p.number for p in points],
            "seed": [p.seed for p in points],
            "feasible": [p.feasible for p in points],
            "front": [p.number in on_front for p in points],
            "axes": [[p.values.get(key) for p in points] for key in answers.axes],
            "groups": _groups([[p.values.get(key) for p in points] for key in answers.axes]),
            "means": [[p.means.get(name) for p in points] for name in names],
            "sets": [[list(each) for each in p.sets.items()] for p in points],
            "halves": [[p.halves.get(name) for p in points] for name in names],
        },
        "effects": [
            {"axes": list(each.axes), "objective": each.objective, "share": each.share}
            for objective in answers.objectives
            for each in answers.effects(objective)
        ],
        "changes": [
            {"axis": key, "objective": objective, "text": change(each)}
            for objective in answers.objectives
            for key, each in answers.sensitivities(objective).items()
        ],
        "knees": [
            {"axis": k.axis, "objective": k.objective, "value": setting(answers, k.axis, k.value), "gained": k.gained}
            for objective in answers.objectives
            for k in answers.knees(objective)
        ],
        "again": [list(each) for each in answers.again.items()],
        "base": str(answers.folder / "base.yaml"),
    }  # fmt: skip


def _groups(axes: list[list[Any]]) -> list[list[Any] | None]:
    """Values [axis, point] with the middle of a group in place of each, where few of all combinations were run, as in samples.

    None for axes that stay as they are.
    """
    points, combinations = max(map(len, axes), default=0), prod(len(set(values)) for values in axes)
    found = [grouped(values) if FEW * combinations > points else values for values in axes]
    return [None if of == values else of for of, values in zip(found, axes, strict=True)]


def _of_search(answers: Answers, column: str) -> dict[str, str]:
    dimension = answers.dimension(column)
    return {} if dimension is None else {"dimension": dimension.base}


def _find(answers: Answers) -> dict[str, Any] | None:
    """The answers of searches, in the order of points: the text of the mean, the interval, runs and notes of each."""
    find = answers.find
    if find is None:
        return None
    return {
        "title": f"{find.words} {find.key} at which {' and '.join(answers.manifest['constraints'])}",
        "key": find.key,
        "intervals": [None if p.found is None else [p.found.low, p.found.high] for p in answers.points],
        "cells": [search_cells(find, p) for p in answers.points],
    }


def _numeric(values: Any) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def finding(answers: Answers) -> str:
    """One sentence: the best point, and the axis that matters most."""
    objective = next(iter(answers.objectives))
    best = answers.best(objective, 1)
    if not best:
        return "No point meets all constraints."
    effects = [each for each in answers.effects(objective) if len(each.axes) == 1]
    most = f"; {effects[0].axes[0]} explains {effects[0].share:.0%} of its variance" if effects else ""
    value = show(objective, best[0].means[objective], answers.dimension(objective))
    return f"{title(objective)} is best at {value} with {_settings(answers, best[0])}{most}."


def _settings(answers: Answers, point: PointOf) -> str:
    return ", ".join(
        f"{axis.short} {setting(answers, key, point.values[key])}"
        for key, axis in answers.axes.items()
        if point.values.get(key) is not None
    )


def render(answers: Answers) -> str:
    """The page as text; the same rows give the same bytes."""
    return document(
        _read("template.html"),
        {
            "title": html.escape(answers.manifest["name"]),
            "description": html.escape(answers.manifest["description"]),
            "finding": html.escape(finding(answers)),
        },
        data={"data": data(answers)},
        scripts=[_read("study.js")],
        style=_read("study.css"),
        policy="img-src data:",  # the ramp of a legend of colors
    )


def _read(name: str) -> str:
    return (files("sim.study") / "page" / name).read_text(encoding="utf-8")
