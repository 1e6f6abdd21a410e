"""Rows of times, and how each follows from others: what a tape computes, for many lanes at once.

Row 0 is the release of the step, at 0. Every other row is one of

    a sum       t[row] = t[source] + delay
    a maximum   t[row] = max(t[sources])
    an instant  of a shared channel, computed by `sim.replay.sharing`

Rows that are computed alike are one: heads of an op that begin at once and cost the same have the same times. They are
evaluated level by level: all that depend only on lower levels, in one NumPy operation per level and form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.errors import SimulationError
from sim.graph import IntArray

ZERO = 0
COMPUTE, TRANSFER, LATENCY = 0, 1, 2  # what a delay is; of which task, comes with it
INSTANT, MAXIMUM = 3, 4  # how else a time may be computed

Rows = npt.NDArray[np.intp]


class Node(NamedTuple):
    """How times are computed. form: the delay, or what else it is. number: of the task of the delay, or of the instant."""

    form: int
    sources: tuple[int, ...]
    number: int = 0


@dataclass(slots=True)
class _Level:
    """sums: form of delay, places, sources, tasks of the delays. maxima: places, sources [arity, place]. instants: numbers."""

    sums: list[tuple[int, slice, Rows, Rows]] = field(default_factory=list)
    maxima: list[tuple[slice, Rows]] = field(default_factory=list)
    instants: list[int] = field(default_factory=list)


class Program:
    """Collects rows, then `compile` merges those that are alike and puts them into levels.

    Afterwards `index[row]` is the place of its times, and `nodes[place]` says how they are computed, sources first.
    """

    def __init__(self) -> None:
        self.sources: list[tuple[int, ...]] = [()]
        self.delay: list[tuple[int, int] | None] = [None]
        self.instant: dict[int, int] = {}  # row -> number of the instant
        self.index: Rows = np.zeros(0, dtype=np.intp)
        self.nodes: list[Node] = []
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

    def compile(self, alike: Sequence[int]) -> None:
        """Merge rows and put them into levels. alike: per task, the first that has the same delays in every lane."""
        found, node = _merge(self, alike)
        level = [0]
        groups: dict[tuple[int, int, int], list[int]] = {}  # (level, form, arity) -> numbers of nodes
        for number, (form, sources, _) in enumerate(found[1:], 1):
            level.append(1 + max([level[source] for source in sources]))
            groups.setdefault((level[number], form, len(sources)), []).append(number)
        order = [ZERO, *(number for key in sorted(groups) for number in groups[key])]
        place = np.empty(len(found), dtype=np.intp)
        place[order] = range(len(order))
        where = place.tolist()
        self.index = place[node]
        self.nodes = [
            Node(form, tuple([where[source] for source in sources]), number)
            for form, sources, number in (found[number] for number in order)
        ]
        self.levels = [_Level() for _ in range(1 + max(level))]
        for (depth, form, _), numbers in sorted(groups.items()):
            first = where[numbers[0]]
            self._add(self.levels[depth], form, slice(first, first + len(numbers)))

    def _add(self, level: _Level, form: int, here: slice) -> None:
        """Nodes of one form and arity at neighbouring places."""
        nodes = self.nodes[here]
        numbers = [node.number for node in nodes]
        if form == INSTANT:
            level.instants += numbers
            return
        sources = np.array([node.sources for node in nodes], dtype=np.intp).T
        if form == MAXIMUM:
            level.maxima.append((here, sources))
        else:
            level.sums.append((form, here, sources[0], np.array(numbers, dtype=np.intp)))

    def run(
        self, delays: tuple[IntArray, IntArray, int], index: Rows, instant: Callable[[int, IntArray], None]
    ) -> IntArray:  # fmt: skip
        """Compute all times [place, lane]. delays: compute and transfer [row, lane], whose row for each task `index` gives,
        and latency; `instant` fills its own row.
        """
        compute, transfer, latency = delays
        lanes = compute.shape[1]
        times = np.empty((len(self.nodes), lanes), dtype=np.int64)
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


def _merge(program: Program, alike: Sequence[int]) -> tuple[list[Node], list[int]]:
    """The nodes that rows come to, each after its sources, and the node of each row."""
    name = _names(program)
    sources = [tuple([name[source] for source in each]) for each in program.sources]
    edges = sum(map(len, sources))
    nodes = [Node(MAXIMUM, ())]
    made: dict[tuple[int, tuple[int, ...], int], int] = {}
    node = [ZERO, *[-1] * (len(program) - 1)]
    for wanted in range(1, len(program)):
        stack = [name[wanted]]
        while stack:
            row = stack[-1]
            if node[row] >= 0:
                stack.pop()
                continue
            before = [node[source] for source in sources[row]]
            if -1 in before:
                if len(stack) > edges + 1:
                    raise SimulationError(f"the rows of a tape wait for each other: {stack[-8:]}")
                stack += [source for source in sources[row] if node[source] < 0]
                continue
            stack.pop()
            delay = program.delay[row]
            if delay is not None:
                form, task = delay
                key = (form, tuple(before), ZERO if form == LATENCY else alike[task])
            elif row in program.instant:
                key = (INSTANT, tuple(sorted(set(before))), program.instant[row])
            else:  # nothing comes before the release
                key = (MAXIMUM, tuple(sorted({*before} - {ZERO})) or (ZERO,), 0)
                if len(key[1]) == 1:
                    node[row] = key[1][0]
                    continue
            number = made.get(key)
            if number is None:
                number = made[key] = len(nodes)
                nodes.append(Node(*key))
            node[row] = number
    return nodes, [node[row] for row in name]


def _names(program: Program) -> list[int]:
    """For each row, the row that it is only another name for."""
    name = list(range(len(program)))
    for first in range(1, len(program)):
        row, chain = first, []
        while len(program.sources[row]) == 1 and program.delay[row] is None and row not in program.instant:
            chain.append(row)
            row = program.sources[row][0]
        for alias in chain:
            name[alias] = row
    return name
