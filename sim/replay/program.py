"""Rows of times, and how each follows from others: what a tape computes, for many lanes at once.

Row 0 is the release of the step, at 0. Every other row is one of

    a sum       t[row] = t[source] + delay
    a maximum   t[row] = max(t[sources])
    an instant  of a shared channel, computed by `sim.replay.sharing`

Rows are evaluated level by level: all that depends only on lower levels, in one NumPy operation per level and form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sim.errors import SimulationError
from sim.graph import IntArray

ZERO = 0
COMPUTE, TRANSFER, LATENCY = 0, 1, 2  # what a delay is; of which task, comes with it

Rows = npt.NDArray[np.intp]


@dataclass(slots=True)
class _Level:
    """sums: (form of delay, rows, sources, tasks of the delays); maxima: (rows, sources [arity, row]); numbers of instants."""

    sums: list[tuple[int, slice, Rows, Rows]] = field(default_factory=list)
    maxima: list[tuple[slice, Rows]] = field(default_factory=list)
    instants: list[int] = field(default_factory=list)


class Program:
    """Collects rows, then `compile` puts them into levels.

    Afterwards `name[row]` is the row that it is only another name for, `order` all others, sources first, and `index[row]`
    the place of its times.
    """

    def __init__(self) -> None:
        self.sources: list[tuple[int, ...]] = [()]
        self.delay: list[tuple[int, int] | None] = [None]
        self.instant: dict[int, int] = {}  # row -> number of the instant
        self.name: list[int] = []
        self.order: list[int] = []
        self.index: Rows = np.zeros(0, dtype=np.intp)
        self.levels: list[_Level] = []
        self._maxima: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self.sources)

    def row(self, sources: tuple[int, ...] = ()) -> int:
        """A new row, by default to be defined later. One source without a delay is another name for that row."""
        self.sources.append(sources)
        self.delay.append(None)
        return len(self.sources) - 1

    def sum(self, source: int, form: int, index: int, row: int | None = None) -> int:
        """The row `source` + the delay of that form and index."""
        row = self.row() if row is None else row
        self.sources[row], self.delay[row] = (source,), (form, index)
        return row

    def latest(self, *sources: int) -> int:
        """The row of the maximum, the same for the same sources; one source is its own maximum."""
        key = tuple(sorted(set(sources) - {ZERO})) or (ZERO,)
        if len(key) == 1:
            return key[0]
        if key not in self._maxima:
            self._maxima[key] = self.row(key)
        return self._maxima[key]

    def compile(self) -> None:
        """Resolve names, sort rows into levels, and give the rows of a level neighbouring places."""
        name = self.name = self._names()
        self.sources = [tuple(sorted({name[source] for source in sources})) for sources in self.sources]
        level = self._depths(name)
        forms: dict[tuple[int, int, int], list[int]] = {}  # (level, form, arity) -> rows
        for row in self.order:
            if row == ZERO:
                continue
            delay = self.delay[row]
            form = 3 if row in self.instant else 4 if delay is None else delay[0]
            forms.setdefault((level[row], form, len(self.sources[row])), []).append(row)
        place = np.zeros(len(self), dtype=np.intp)
        at = 1
        for rows in (forms[key] for key in sorted(forms)):
            place[rows] = range(at, at + len(rows))
            at += len(rows)
        self.index = place[name]
        self.places = at
        self.levels = [_Level() for _ in range(1 + max(level, default=0))]
        for (depth, form, _), rows in sorted(forms.items()):
            here = self.levels[depth]
            first = int(place[rows[0]])
            neighbours = slice(first, first + len(rows))
            if form == 3:
                here.instants += [self.instant[row] for row in rows]
            elif form == 4:
                here.maxima.append((neighbours, place[np.array([self.sources[row] for row in rows]).T]))
            else:
                tasks = np.array([delay[1] for row in rows if (delay := self.delay[row])], dtype=np.intp)
                here.sums.append((form, neighbours, place[[self.sources[row][0] for row in rows]], tasks))

    def _names(self) -> list[int]:
        """For each row, the row that it is only another name for."""
        name = list(range(len(self)))
        for first in range(1, len(self)):
            row, chain = first, []
            while len(self.sources[row]) == 1 and self.delay[row] is None and row not in self.instant:
                chain.append(row)
                row = self.sources[row][0]
            for alias in chain:
                name[alias] = row
        return name

    def _depths(self, name: list[int]) -> list[int]:
        """The level of each row, and `order`: all rows that are no mere names, sources first."""
        level = [-1] * len(self)
        level[ZERO] = 0
        self.order = [ZERO]
        edges = sum(map(len, self.sources))
        for wanted in range(1, len(self)):
            stack = [name[wanted]]
            while stack:
                row = stack[-1]
                if level[row] >= 0:
                    stack.pop()
                    continue
                missing = [source for source in self.sources[row] if level[source] < 0]
                if missing:
                    if len(stack) > edges + 1:
                        raise SimulationError(f"the rows of a tape wait for each other: {stack[-8:]}")
                    stack += missing
                    continue
                level[row] = 1 + max(level[source] for source in self.sources[row])
                self.order.append(row)
                stack.pop()
        return level

    def run(
        self, delays: tuple[IntArray, IntArray, int], index: Rows, instant: Callable[[int, IntArray], None]
    ) -> IntArray:  # fmt: skip
        """Compute all times [place, lane]. delays: compute and transfer [row, lane], whose row for each task `index` gives,
        and latency; `instant` fills its own row.
        """
        compute, transfer, latency = delays
        lanes = compute.shape[1]
        times = np.empty((self.places, lanes), dtype=np.int64)
        times[ZERO] = 0
        for level in self.levels:
            for form, rows, sources, tasks in level.sums:
                out = times[rows]
                np.take(times, sources, axis=0, out=out, mode="clip")
                out += latency if form == LATENCY else (compute if form == COMPUTE else transfer)[index[tasks]]
            for rows, arguments in level.maxima:
                out = times[rows]
                if len(out) < len(arguments):  # few of many: whatever takes fewer operations
                    for row, each in zip(out, arguments.T, strict=True):
                        times[each].max(axis=0, out=row)
                    continue
                np.take(times, arguments[0], axis=0, out=out, mode="clip")
                for more in arguments[1:]:
                    np.maximum(out, times[more], out=out)
            for number in level.instants:
                instant(number, times)
        return times
