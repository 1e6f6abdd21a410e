"""Answers of a study, from its rows: means over seeds, the best points, the Pareto front, effects of axes, knees.

The front holds the points that no other one dominates: none is at least as good in all objectives and better in one. The main
effect of an axis on an objective is by how much the objective's mean over all other axes differs between the axis's values; the
share of an effect is its part of the variance, as in an analysis of variance (`sim.study.effects`). The knee of a curve is the
first value after which all further ones together bring less than a tenth of what the whole axis brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.base.errors import InputError
from sim.base.quantities import Dimension
from sim.runs.repeats import interval
from sim.study.axes import DIMENSIONS, plain
from sim.study.effects import Change, Floats, sensitivities
from sim.study.effects import parts as parts_of
from sim.study.metrics import METRICS
from sim.study.optimize import told
from sim.study.search import Find, Found, bracket_of, exact, found
from sim.study.store import OK, SKIPPED, parts, read_manifest, read_part

KNEE = 0.1  # share of the whole gain below which the rest of an axis is not worth it


@dataclass(frozen=True, slots=True)
class AxisInfo:
    """An axis of a stored study. texts: value in rows -> as it is written. order: value -> its place on the axis."""

    key: str
    dimension: str | None
    texts: Mapping[Any, str]
    order: Mapping[Any, int]

    @property
    def short(self) -> str:
        """The last word of the key, for headings; `count` alone says too little."""
        words = self.key.split(".")
        return ".".join(words[-2:]) if words[-1] in ("count", "name", "rate") else words[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointOf:
    """A point over all of its seeds.

    values: axes. means, halves: of each column, and halves of 95 % intervals. found: the answer of its search; then columns are
    of the last value of each seed that holds. sets: keys beside axes with their values, for the command that runs it again.
    """

    number: int
    seed: int
    seeds: int
    values: Mapping[str, Any]
    means: Mapping[str, float]
    halves: Mapping[str, float]
    feasible: bool
    found: Found | None = None
    sets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An effect on an objective. axes: one for a main effect, two for an interaction. share: of the variance.

    means: value -> mean of the objective, of a main effect.
    """

    axes: tuple[str, ...]
    objective: str
    share: float
    means: Mapping[Any, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """The value of an axis after which an objective hardly improves. gained: share of the whole gain up to there."""

    axis: str
    objective: str
    value: Any
    gained: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A stored study and its results. failed, skipped: rows without metrics. errors: the most frequent errors, with counts.

    trials: of an optimization, how many have results.
    """

    folder: Path
    manifest: Mapping[str, Any]
    axes: Mapping[str, AxisInfo]
    objectives: Mapping[str, str]
    columns: Sequence[str]
    points: Sequence[PointOf]
    runs: int
    failed: int
    skipped: int
    errors: Sequence[tuple[str, int]]
    find: Find | None = None
    trials: int | None = None

    @property
    def again(self) -> Mapping[str, str]:
        """Keys that the command of each point sets, so that it has a trace."""
        again: Mapping[str, str] = self.manifest.get("again", {})
        return again

    @property
    def feasible(self) -> list[PointOf]:
        """The points that meet all constraints and have all objectives."""
        return [p for p in self.points if p.feasible and all(name in p.means for name in self.objectives)]

    def best(self, objective: str, count: int) -> list[PointOf]:
        """The best points by one objective; among equals, those that come first."""
        sign = self.sign(objective)
        return sorted(self.feasible, key=lambda p: (sign * p.means[objective], p.number))[:count]

    def front(self) -> list[PointOf]:
        """The Pareto front, from the best by the first objective on."""
        points = self.feasible
        keep = front(np.array([[self.sign(o) * p.means[o] for o in self.objectives] for p in points]))
        first = next(iter(self.objectives))
        return sorted(
            (p for p, on in zip(points, keep, strict=True) if on), key=lambda p: (self.sign(first) * p.means[first], p.number)
        )

    def dimension(self, column: str) -> Dimension | None:
        """The kind of quantity of an axis, or of a key that was searched for; None for other columns."""
        if self.find is not None and column == self.find.key:
            return self.find.dimension
        base = self.axes[column].dimension if column in self.axes else None
        return next((each for each in DIMENSIONS if each.base == base), None)

    def sign(self, objective: str) -> int:
        """1 for an objective that is to be small, -1 for one that is to be large."""
        return 1 if self.objectives[objective] == "min" else -1

    def effects(self, objective: str) -> list[Effect]:
        """Main effects and interactions of two axes, the largest share of the variance first."""
        y, levels = self._levels(objective)
        found = parts_of(y, levels)
        if found is None:
            return []
        effects = [
            Effect(axes=(key,), objective=objective, share=share, means=self._sorted(key, found.means[key]))
            for key, share in found.axes.items()
        ]
        effects += [Effect(axes=pair, objective=objective, share=share) for pair, share in found.pairs.items()]
        return sorted(effects, key=lambda each: -each.share)

    def sensitivities(self, objective: str) -> dict[str, Change]:
        """The change of an objective with twice the value of each axis of numbers."""
        return sensitivities(*self._levels(objective))

    def _levels(self, objective: str) -> tuple[Floats, dict[str, list[Any]]]:
        """An objective [point], and the values of all axes that vary [point]."""
        points = [] if objective in self.axes else [p for p in self.points if objective in p.means]
        levels = {key: [p.values.get(key) for p in points] for key in self.axes if self._varies(points, key)}
        return np.array([p.means[objective] for p in points]), levels

    def _sorted(self, key: str, means: Mapping[Any, float]) -> dict[Any, float]:
        """Means of values in the order of the axis."""
        order = self.axes[key].order
        return {value: means[value] for value in sorted(means, key=lambda v: order.get(v, 0)) if value is not None}

    def knees(self, objective: str) -> list[Knee]:
        """Where more of an axis stops helping, for axes of numbers along which an objective improves."""
        found = []
        for effect in self.effects(objective):
            if len(effect.axes) > 1 or len(effect.means) < 3:
                continue
            values = sorted(effect.means) if all(_is_number(v) for v in effect.means) else []
            if not values:
                continue
            y = [self.sign(objective) * effect.means[v] for v in values]
            gain = y[0] - min(y)
            if y[-1] >= y[0]:
                continue
            last = next(i for i, each in enumerate(y) if each - min(y[i:]) < KNEE * gain)
            if last < len(values) - 1:
                found.append(Knee(axis=effect.axes[0], objective=objective, value=values[last], gained=(y[0] - y[last]) / gain))
        return found

    def _varies(self, points: Sequence[PointOf], key: str) -> bool:
        """Whether an axis has several values, other than as a key of cases, whose effect is that of the cases."""
        values = {p.values.get(key) for p in points}
        of_case = (
            "case" in self.axes
            and key != "case"
            and (len({(p.values["case"], p.values.get(key)) for p in points}) == len({p.values["case"] for p in points}))
        )
        return len(values) > 1 and not of_case

    def command(self, point: PointOf) -> str:
        """The command that runs a point again, with its trace."""
        words = [f"--set {_quoted(f'{key}={axis.texts[point.values[key]]}')}" for key, axis in self.axes.items()
                 if key not in {"case", "seed"} and point.values.get(key) is not None]  # fmt: skip
        words += [f"--set {_quoted(f'{key}={text}')}" for key, text in {**self.again, **point.sets}.items()]
        words.append(f"--set seed={point.seed}")
        return " ".join(["sim run", _quoted(str(self.folder / "base.yaml")), *words])


def _quoted(word: str) -> str:
    return word if all(c.isalnum() or c in "._/=-+:,[]%" for c in word) else "'" + word.replace("'", "'\\''") + "'"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def front(costs: Floats) -> npt.NDArray[np.bool_]:
    """Which of the points [point, objective] no other one dominates; smaller is better, equal points are all kept."""
    count = len(costs)
    keep = np.ones(count, dtype=bool)
    if not count:
        return keep
    order = np.lexsort(costs.T[::-1])
    on: list[int] = []
    for i in order.tolist():
        rows = costs[on]
        if on and bool(((rows <= costs[i]).all(axis=1) & (rows < costs[i]).any(axis=1)).any()):
            keep[i] = False
        else:
            on.append(i)
    return keep


def read_answers(folder: Path) -> Answers:
    """Read the rows of a study. Raises InputError if the folder holds none."""
    manifest = read_manifest(folder)
    tables = [read_part(part) for part in parts(folder)]
    if not tables:
        raise InputError(f"{folder}: expected rows, found none; `sim sweep` makes them")
    columns: dict[str, list[Any]] = {name: [] for name in tables[0].column_names}
    for table in tables:
        for name in columns:
            columns[name] += table.column(name).to_pylist()
    axes = {key: _axis(key, axis, columns[key]) for key, axis in manifest["axes"].items()}
    numbers = [name for name in (*manifest["columns"], *METRICS) if name in columns]
    of_axes = [name for name in manifest["objectives"] if name in axes]
    find = Find.from_json(manifest["find"]) if manifest.get("find") else None
    errors: dict[str, int] = {}
    for error, status in zip(columns["error"], columns["status"], strict=True):
        if status not in (OK, SKIPPED):
            errors[error] = errors.get(error, 0) + 1
    return Answers(
        folder=folder, manifest=manifest, axes=axes, objectives=manifest["objectives"],
        columns=numbers if find is None else [find.key, *numbers], find=find,
        points=_points(columns, axes, [*numbers, *of_axes], find),
        runs=len(columns["status"]),
        failed=sum(errors.values()), skipped=columns["status"].count(SKIPPED),
        errors=sorted(errors.items(), key=lambda item: -item[1]),
        trials=told(folder) if manifest.get("optimize") else None,
    )  # fmt: skip


def _axis(key: str, written: Mapping[str, Any], column: Sequence[Any]) -> AxisInfo:
    """An axis with the values of the manifest; of a range that an optimization chooses from, with those of rows."""
    texts = dict(written["values"])
    dimension = next((each for each in DIMENSIONS if each.base == written["dimension"]), None)
    if chosen := {value for value in column if value is not None} - texts.keys():
        texts |= {value: plain(value) if dimension is None else dimension.format(value) for value in chosen}
        texts = dict(sorted(texts.items()))
    return AxisInfo(key, written["dimension"], texts, {value: i for i, value in enumerate(texts)})


def _points(
    columns: Mapping[str, list[Any]], axes: Mapping[str, AxisInfo], numbers: Sequence[str], find: Find | None
) -> list[PointOf]:  # fmt: skip
    """All points that have a row with metrics; of a search, all."""
    by_point: dict[int, list[int]] = {}
    for i, status in enumerate(columns["status"]):
        if status == OK or find is not None:
            by_point.setdefault(columns["point"][i], []).append(i)
    if find is None:
        return [_point(n, by_point[n], columns, axes, numbers) for n in sorted(by_point)]
    return [_searched(n, by_point[n], columns, axes, numbers, find) for n in sorted(by_point)]


def _searched(
    number: int, rows: Sequence[int], columns: Mapping[str, list[Any]], axes: Mapping[str, AxisInfo], numbers: Sequence[str],
    find: Find,
) -> PointOf:  # fmt: skip
    """The answer of the search of a point; its metrics are those of the last value of each seed that holds."""
    by_seed: dict[int, dict[Fraction, int]] = {}
    for i in rows:
        by_seed.setdefault(columns["seed"][i], {})[exact(columns[find.key][i])] = i
    brackets = [
        bracket_of(find, {value: bool(columns["feasible"][i]) for value, i in by_seed[seed].items()})
        for seed in sorted(by_seed)
    ]
    last = [by_seed[seed][b.inner] for seed, b in zip(sorted(by_seed), brackets, strict=True) if b.inner is not None]
    answer = found(find, brackets)
    made = _point(number, last or rows[:1], columns, axes, numbers if last else ())
    means, halves = dict(made.means), dict(made.halves)
    if answer.mean is not None and answer.low is not None and answer.high is not None:
        means[find.key], halves[find.key] = answer.mean, max(answer.mean - answer.low, answer.high - answer.mean)
    sets = {find.key: find.text(brackets[0].inner)} if brackets[0].inner is not None else {}
    return replace(made, means=means, halves=halves, seeds=len(by_seed), feasible=bool(last), found=answer, sets=sets)


def _point(
    number: int, rows: Sequence[int], columns: Mapping[str, list[Any]], axes: Mapping[str, AxisInfo], numbers: Sequence[str]
) -> PointOf:  # fmt: skip
    """The means over the seeds of a point."""
    means, halves = dict[str, float](), dict[str, float]()
    for name in numbers:
        values = [columns[name][i] for i in rows]
        if len(values) == 1:
            if values[0] is not None:
                means[name] = values[0]
        elif None not in values:
            means[name], halves[name] = interval(values)
    first = min(rows, key=lambda i: columns["seed"][i])
    return PointOf(
        number=number, seed=columns["seed"][first], seeds=len(rows), values={key: columns[key][first] for key in axes},
        means=means, halves=halves, feasible=all(columns["feasible"][i] for i in rows),
    )  # fmt: skip
