"""Effects of axes on an objective: parts of its variance, means of levels, and sensitivities with intervals.

Where all combinations of levels were run, the variance splits into orthogonal parts: that of an axis is the sum of squares
between its levels, that of two together what their cells have beyond both. Where some were not (samples, optimizations, points
that proofs skip, errors), levels of one axis come with different levels of others, and their plain means would compare those.
There, effects are fitted by least squares, all axes at once (D. C. Montgomery, "Design and Analysis of Experiments", chapter
10), and parts are those that the fit would have with all combinations, less what random numbers would explain. Numbers of many
values are grouped then, as many of them in each group.

A sensitivity is the change of an objective that goes with twice the value of an axis: the slope of its logarithm over that of
the axis, in a fit of all axes at once, with the interval of Student's t. The interval is that of the fit: it is wide where the
effect depends on where one is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.runs.repeats import student_t

MOST = 12  # levels of an axis in a fit
GROUPS = 6  # in which an axis of more values is grouped

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Levels = Mapping[str, Sequence[Hashable]]


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of the variance of axes and of pairs of axes, and the means of levels of each axis."""

    axes: Mapping[str, float]
    pairs: Mapping[tuple[str, str], float]
    means: Mapping[str, Mapping[Any, float]]


@dataclass(frozen=True, slots=True)
class Change:
    """Relative change of an objective with twice the value of an axis, and its 95 % interval: -0.5 is half."""

    mean: float
    low: float
    high: float


def parts(y: Floats, levels: Levels) -> Parts | None:
    """The parts of the variance of an objective [point]; None if it does not vary. levels: of each axis, [point]."""
    total = float(((y - y.mean()) ** 2).sum()) if len(y) > 1 else 0.0
    if not levels or total <= 1e-12 * float((y**2).sum()):
        return None
    codes = {key: _codes(each) for key, each in levels.items()}
    complete = len(y) == prod(len(names) for names, _ in codes.values())
    return _of_all(y, codes, total) if complete else _of_some(y, codes, total)


def grouped(values: Sequence[Any]) -> list[Any]:
    """Numbers with the middle one of their group in place of each, if they are many; others as they are."""
    unique = sorted(set(values)) if all(_is_number(value) for value in values) else []
    if len(unique) <= MOST:
        return list(values)
    order = np.argsort(np.array(values, dtype=np.float64), kind="stable")
    found: list[Any] = [None] * len(values)
    of: dict[Any, Any] = {}
    for part in np.array_split(order, GROUPS):
        middle = values[int(part[len(part) // 2])]
        for i in part.tolist():
            found[i] = of.setdefault(values[i], middle)  # equal values are of one group
    return found


def _codes(levels: Sequence[Hashable]) -> tuple[list[Any], Ints]:
    """The levels of an axis, and the number of that of each point."""
    numbers: dict[Hashable, int] = {}
    of = np.array([numbers.setdefault(level, len(numbers)) for level in levels], dtype=np.intp)
    return list(numbers), of


def _of_all(y: Floats, codes: Mapping[str, tuple[list[Any], Ints]], total: float) -> Parts:
    """Parts where each combination of levels has one point."""
    axes, means = dict[str, float](), dict[str, dict[Any, float]]()
    for key, (names, of) in codes.items():
        each = np.bincount(of, weights=y) / np.bincount(of)
        axes[key] = _between(y, of) / total
        means[key] = dict(zip(names, each.tolist(), strict=True))
    pairs = {}
    for one, other in combinations(codes, 2):
        both = _between(y, _cells(codes[one], codes[other])) / total
        pairs[one, other] = max(0.0, both - axes[one] - axes[other])
    return Parts(axes, pairs, means)


def _of_some(y: Floats, codes: Mapping[str, tuple[list[Any], Ints]], total: float) -> Parts:
    """Parts where combinations are missing. Of axes that change together, all have those of the first."""
    codes = {key: _codes(grouped([names[code] for code in of.tolist()])) for key, (names, of) in codes.items()}
    like = {key: next(first for first in codes if _alike(codes[first][1], codes[key][1])) for key in codes}
    alone = {key: codes[key] for key in dict.fromkeys(like.values())}
    dummies = {key: np.eye(len(names))[of] for key, (names, of) in alone.items()}
    fit = _fit(y, list(dummies.values()))
    effects = dict(zip(alone, np.split(fit.slopes, np.cumsum([len(names) for names, _ in alone.values()])[:-1]), strict=True))
    spread = {key: fit.noise(len(each) - 1, float(each.var())) for key, each in effects.items()}
    whole = sum(spread.values()) + fit.rest / len(y) or total / len(y)
    pairs = {}
    for one, other in combinations(alone, 2):
        _, of = np.unique(_cells(alone[one], alone[other]), return_inverse=True)
        both = _fit(y, [*dummies.values(), np.eye(int(of.max()) + 1)[of]])
        if both.rank < len(y):
            pairs[one, other] = both.noise(both.rank - fit.rank, (fit.rest - both.rest) / len(y)) / whole
    means = {}
    for key, (names, _) in codes.items():
        each, of = effects[like[key]], alone[like[key]][1]
        place = dict(zip(codes[key][1].tolist(), of.tolist(), strict=True))  # number of a level -> that of the first like it
        means[key] = {name: float(y.mean() + each[place[i]] - each[of].mean()) for i, name in enumerate(names)}
    return Parts({key: spread[like[key]] / whole for key in codes}, pairs, means)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A fit by least squares. slopes: without that of 1. rest: sum of squares that is left."""

    slopes: Floats
    rest: float
    rank: int
    points: int

    def noise(self, columns: int, variance: float) -> float:
        """A variance that columns explain, less what as many random ones would; 0 if nothing is left."""
        free = self.points - self.rank
        return max(0.0, variance - (columns * self.rest / free / self.points if free else 0.0))


def _fit(y: Floats, columns: Sequence[Floats]) -> _Fit:
    table = np.concatenate([np.ones((len(y), 1)), *columns], axis=1)
    slopes, _, rank, _ = np.linalg.lstsq(table, y, rcond=None)
    rest = float(((y - table @ slopes) ** 2).sum())
    return _Fit(slopes[1:], rest, int(rank), len(y))


def _alike(one: Ints, other: Ints) -> bool:
    """Whether two axes change together, so that no fit can tell them apart."""
    pairs = len(set(zip(one.tolist(), other.tolist(), strict=True)))
    return pairs == len(set(one.tolist())) == len(set(other.tolist()))


def _cells(one: tuple[list[Any], Ints], other: tuple[list[Any], Ints]) -> Ints:
    return np.asarray(one[1] * len(other[0]) + other[1])


def _between(y: Floats, of: Ints) -> float:
    """Sum of squares between the groups of equal levels."""
    counts = np.bincount(of)
    means = np.bincount(of, weights=y) / np.maximum(counts, 1)
    return float((counts * (means - y.mean()) ** 2).sum())


def sensitivities(y: Floats, levels: Levels) -> dict[str, Change]:
    """The change of an objective with twice the value of each axis of numbers above 0, of those that a fit can tell apart."""
    numbers = {key: each for key, each in levels.items() if all(_is_number(v) and v > 0 for v in each)}  # type: ignore[operator]
    if not numbers or len(y) < 3 or (y <= 0).any():
        return {}
    of_numbers = np.log2(np.array(list(numbers.values()), dtype=np.float64)).T  # [point, axis]
    others = [np.eye(len(names))[of] for names, of in (_codes(each) for key, each in levels.items() if key not in numbers)]
    table = np.concatenate([of_numbers - of_numbers.mean(axis=0), np.ones((len(y), 1)), *others], axis=1)
    slopes, _, rank, _ = np.linalg.lstsq(table, np.log2(y), rcond=None)
    free = len(y) - int(rank)
    if free < 1:
        return {}
    rest = float(((np.log2(y) - table @ slopes) ** 2).sum())
    inverse = np.linalg.pinv(table.T @ table, hermitian=True)
    seen = np.diag(inverse @ (table.T @ table))  # 1 for what the fit can tell apart
    found = {}
    for i, key in enumerate(numbers):
        if seen[i] > 1 - 1e-6:
            half = student_t(free) * float(np.sqrt(max(0.0, inverse[i, i]) * rest / free))
            mean, low, high = (float(2**slope - 1) for slope in (slopes[i], slopes[i] - half, slopes[i] + half))
            found[key] = Change(mean, low, high)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
