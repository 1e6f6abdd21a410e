"""Proofs that a point need not be run: its bounds alone show that it is dominated, or that it misses a constraint.

A point whose bounds and known columns (`sim.study.bounds`) are no better in any objective than a point that was run, and worse
in one, is not on the front, whatever a run would give. Percentiles, rates of requests and goodput have no such bound.

Points are taken in generations, by their numbers alone: the first is a sixteenth of them, evenly spread, and each later one is
compared with those before it. So what is skipped depends neither on time nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sim.study.batches import Job
from sim.study.bounds import BOUNDED, EXACT, BoundsOf
from sim.study.metrics import METRICS, with_unit
from sim.study.points import Point, Study
from sim.study.store import cell

#: Steps between the points of each generation, and where each begins.
GENERATIONS = ((16, 0), (16, 8), (8, 4), (4, 2), (2, 1))


def generations(study: Study) -> Iterator[list[Point]]:
    """The points of a study in the order in which they are compared."""
    points = list(study.points())
    for step, first in GENERATIONS:
        if chosen := points[first::step]:
            yield chosen


class Proofs:
    """Compares the bounds of points with the results of earlier generations.

    applies: whether objectives are written, all of them are bounded or known before a run, at least one is bounded, and each
    point has one seed.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._known = {*study.keys, *EXACT}
        for name, expression in study.columns.items():
            if expression.columns <= self._known:
                self._known.add(name)
        bounded = [name for name, sense in study.objectives.items() if name in EXACT or BOUNDED.get(name) == sense]
        rest = [name for name in study.objectives if name not in bounded]
        numbers = all(_is_number(study, name) for name in rest)
        self.applies = study.asked and study.repeats == 1 and bool(bounded) and numbers and self._known.issuperset(rest)
        asked = frozenset().union(study.objectives, *(each.columns for each in (*study.columns.values(), *study.constraints)))
        self._bounds = BoundsOf(asked)
        self._signs = [1 if sense == "min" else -1 for sense in study.objectives.values()]
        self._numbers: list[int] = []
        self._vectors = np.zeros((0, len(self._signs)))

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the results of a generation: those that meet all constraints may dominate later points."""
        good = [row for row in rows if row["feasible"] and all(row.get(name) is not None for name in self._study.objectives)]
        self._numbers += [row["point"] for row in good]
        self._vectors = np.concatenate([self._vectors, *(np.array([self._vector(row)]) for row in good)])

    def refute(self, point: Point, job: Job) -> tuple[str, int] | None:
        """Why a point need not be run, and its lower bound, ps; None if it must be."""
        bounds = self._bounds(job)
        if bounds is None:
            return None
        low = int(bounds["makespan_ps"] or 0)
        row: dict[str, Any] = {axis.key: cell(axis, value.column, value.text) for axis, value in point.settings}
        row |= {"seed": point.seed, **bounds}
        for name, expression in self._study.columns.items():
            if name in self._known:
                row[name] = expression(row) if all(row.get(column) is not None for column in expression.columns) else None
        if missed := self._missed(row):
            constraint, column = missed
            return f"infeasible: {constraint}; {_told(row, [column])}", low
        if any(row.get(name) is None for name in self._study.objectives):
            return None
        mine = np.array(self._vector(row))
        dominated = (self._vectors <= mine).all(axis=1) & (self._vectors < mine).any(axis=1)
        if dominated.any():
            by = min(self._numbers[i] for i in np.flatnonzero(dominated).tolist())
            return f"dominated by point {by}: {_told(row, self._study.objectives)}", low
        return None

    def _missed(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """A constraint that cannot be met, and the column whose bound shows it; None if there is none."""
        for constraint in self._study.constraints:
            if constraint.columns <= self._known:
                # What a run alone shows, such as the bytes of steps that depend on times, is None.
                if all(row.get(name) is not None for name in constraint.columns) and not constraint(row):
                    return constraint.text, "makespan_ps"
            elif (limit := constraint.limit) is not None and BOUNDED.get(limit.column) == ("min" if limit.below else "max"):
                value, sign = row.get(limit.column), 1 if limit.below else -1
                if value is None:  # such as energy that is not known
                    continue
                if sign * value > sign * limit.bound or (limit.strict and value == limit.bound):
                    return constraint.text, limit.column
        return None

    def _vector(self, row: Mapping[str, Any]) -> list[float]:
        return [sign * float(row[name]) for sign, name in zip(self._signs, self._study.objectives, strict=True)]


def _is_number(study: Study, name: str) -> bool:
    """Whether a column that is known before a run holds numbers."""
    values: Sequence[Any] = [value.column for value in study.keys[name].values] if name in study.keys else [0]
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _told(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    """The bounds of columns, in words; of the makespan if none of them has one."""
    bounded = [name for name in columns if name in BOUNDED or name in EXACT] or ["makespan_ps"]
    return ", ".join(f"{METRICS[name].title} {_sense(name)} {with_unit(row[name], METRICS[name].unit)}" for name in bounded)


def _sense(name: str) -> str:
    return "is" if name in EXACT else "at least" if BOUNDED[name] == "min" else "at most"
