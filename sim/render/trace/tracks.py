"""Parts of a trace in any file format: tracks, slices as columns, counters, and how to lay them out.

Two things on one track must nest or be apart, or trace viewers spoil them silently. `lanes` gives overlapping intervals
lanes of their own, and `nesting_order` puts begins and ends into an order in which they nest. Both work on picoseconds,
where every interval is longer than zero, so that rounding to nanoseconds afterwards cannot change the nesting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.base.units import PS_PER_NS

Column = npt.NDArray[np.integer]
Times = npt.NDArray[np.int64]

NO_ROW = -1


@dataclass(frozen=True, slots=True)
class Track:
    """A line of the viewer. `parent` is the uuid of the track it stands under, 0 for none; siblings are sorted by `rank`.

    `unit` is given for counters only.
    """

    uuid: int
    name: str
    parent: int = 0
    rank: int = 0
    description: str = ""
    unit: str | None = None


@dataclass(slots=True)
class Tracks:
    """All tracks of a trace; uuids count from 1, parents come before their children."""

    all: list[Track] = field(default_factory=list)
    _children: dict[int, int] = field(default_factory=dict)

    def add(self, name: str, parent: int = 0, description: str = "", unit: str | None = None) -> int:
        """Add a track below its elder siblings; return its uuid."""
        rank = self._children.get(parent, 0)
        self._children[parent] = rank + 1
        self.all.append(Track(len(self.all) + 1, name, parent, rank, description, unit))
        return len(self.all)


@dataclass(slots=True)
class Strings:
    """Strings that columns refer to by number. Numbers count from 1: 0 means "none" to Perfetto."""

    ids: dict[str, int] = field(default_factory=dict)

    def __call__(self, value: str) -> int:
        return self.ids.setdefault(value, len(self.ids) + 1)

    def __len__(self) -> int:
        return len(self.ids)

    def table(self) -> list[str]:
        """Strings by number; entry 0 is empty."""
        return ["", *self.ids]


class Role(IntEnum):
    """Meaning of a slice. It decides what `Slices.row` counts and which arguments the slice gets."""

    RUN = 0  # a task on its engine
    MOVE = 1  # a transfer while its channel serves it
    OP = 2  # a task in the lanes of its token
    STEP = 3  # a token; the row is one of the step table
    LAYER = 4  # part of a token, without a row
    PHASE = 5  # part of a task: loading, waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """Slices as columns, one entry each.

    track: uuid. start, end: int64 ps, start < end. depth: how many slices of the track are around it, at most 7.
    name, category: numbers of strings. color: slices of one color get one number, 0 for none.
    role: see `Role`. row: of the task table (or step table), or NO_ROW. cause: row of the task that was waited for, or NO_ROW.
    """

    track: npt.NDArray[np.int32]
    start: Times
    end: Times
    depth: npt.NDArray[np.int8]
    name: npt.NDArray[np.int32]
    category: npt.NDArray[np.int8]
    color: npt.NDArray[np.int32]
    role: npt.NDArray[np.int8]
    row: npt.NDArray[np.int64]
    cause: npt.NDArray[np.int64]

    @classmethod
    def make(
        cls,
        *,
        track: Column | int,
        start: Times,
        end: Times,
        name: Column | int,
        category: int,
        role: Role,
        depth: int = 0,
        color: Column | int = 0,
        row: Column | int = NO_ROW,
        cause: Column | int = NO_ROW,
    ) -> Slices:
        """Give each column its type, and a single value to every slice; leave out what lasts no time."""
        keep = np.flatnonzero(start < end)

        def column(values: Column | int, dtype: type[Any]) -> npt.NDArray[Any]:
            each = np.broadcast_to(np.asarray(values, dtype=dtype), start.shape)
            return each if len(keep) == len(start) else each[keep]

        return cls(
            track=column(track, np.int32), start=column(start, np.int64), end=column(end, np.int64),
            depth=column(depth, np.int8), name=column(name, np.int32), category=column(category, np.int8),
            color=column(color, np.int32), role=column(int(role), np.int8), row=column(row, np.int64),
            cause=column(cause, np.int64),
        )  # fmt: skip

    @classmethod
    def concatenate(cls, groups: Sequence[Slices]) -> Slices:
        return cls(**{f.name: np.concatenate([getattr(group, f.name) for group in groups]) for f in fields(cls)})

    def take(self, index: npt.NDArray[np.integer | np.bool_]) -> Slices:
        return Slices(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def within(self, window: tuple[int, int] | None) -> Slices:
        """Slices that overlap a window of time (ps); they are not cut, so that durations stay true."""
        if window is None:
            return self
        return self.take((self.start < window[1]) & (self.end > window[0]))

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True)
class Counter:
    """A value over time: from `time[i]` (ps, ascending) on it is `value[i]`."""

    track: int
    time: Times
    value: npt.NDArray[np.int64] | npt.NDArray[np.float64]


def colors(step: Column) -> npt.NDArray[np.int32]:
    """One color per step, far apart for steps that follow each other: the Perfetto UI gives near numbers near hues."""
    return np.asarray((step.astype(np.int64) + 1) * 40_503 % 65_521, dtype=np.int32)


def to_ns(ps: Times) -> Times:
    """Nearest nanosecond. Only absolute times are rounded, never durations: what touches goes on touching."""
    return (ps + PS_PER_NS // 2) // PS_PER_NS


def nesting_order(slices: Slices) -> tuple[Times, npt.NDArray[np.bool_]]:
    """Order the 2n begins and ends of slices so that on each track every prefix nests.

    Return for each event the index of its slice, and whether it is the begin. Events are in order of time; at one
    instant ends come before begins, inner ends before outer ends, outer begins before inner begins.
    """
    depth = slices.depth.astype(np.int64)
    # One integer to sort by: time, then a rank of four bits. Sorting must be stable, or ties would fall differently on
    # different processors.
    key = np.concatenate([slices.start * 16 + (8 + depth), slices.end * 16 + (7 - depth)])
    order = np.argsort(key, kind="stable")
    count = len(slices)
    begin = order < count
    return np.where(begin, order, order - count), begin


def lanes(group: Column, start: Times, end: Times) -> npt.NDArray[np.int64]:
    """Give each interval [start, end) a lane of its group so that no two intervals of a lane overlap.

    Uses as few lanes as possible. Of the free lanes an interval takes the one that was freed last, which keeps chains of
    intervals on one lane; when a group falls idle, it starts afresh at lane 0.
    """
    count = len(start)
    if not count:
        return np.zeros(0, dtype=np.int64)
    interval = np.concatenate([np.arange(count), np.arange(count)])
    opens = np.repeat(np.array([False, True]), count)
    order = np.argsort(np.concatenate([end * 2, start * 2 + 1]), kind="stable")  # ends before starts
    order = order[_stably(np.concatenate([group, group])[order])]
    interval, opens = interval[order], opens[order]

    # Free lanes are a stack, so an interval that raises the number of open ones from d to d + 1 takes the lane of the
    # interval whose end last lowered it from d + 1 to d: its predecessor among the crossings of level d.
    after = np.cumsum(np.where(opens, 1, -1))
    level = after - opens
    period = np.cumsum(after == 0) - (after == 0)
    crossing = _stably(period * (level.max() + 1) + level)
    interval, opens, level, period = interval[crossing], opens[crossing], level[crossing], period[crossing]
    inherits = opens.copy()
    inherits[0] = False
    inherits[1:] &= (level[1:] == level[:-1]) & (period[1:] == period[:-1])

    source = np.arange(count)
    heirs = np.flatnonzero(inherits)
    source[interval[heirs]] = interval[heirs - 1]
    lane = np.zeros(count, dtype=np.int64)
    lane[interval[opens]] = level[opens]
    while True:  # follow inheritance to its origin, in doubling steps
        further = source[source]
        if np.array_equal(further, source):
            return lane[source]
        source = further


def _stably(key: Column) -> npt.NDArray[np.intp]:
    """The stable order of small integers: of 16 bits NumPy sorts them by radix, many times faster."""
    return np.argsort(key.astype(np.uint16) if key.max(initial=0) < 1 << 16 else key, kind="stable")


def steps_of(time: Times, change: Times) -> tuple[Times, Times]:
    """Sum changes at times into a step function: ascending times, without repeats, and the value from each on."""
    order = np.argsort(time, kind="stable")
    time, total = time[order], np.cumsum(change[order])
    last = np.append(time[1:] != time[:-1], True) if len(time) else np.zeros(0, dtype=np.bool_)
    return time[last], total[last]


def thin(counter: Counter) -> Counter:
    """Keep one value per nanosecond, the last, and only values that differ from the one before."""
    ns = to_ns(counter.time)
    keep = np.append(ns[1:] != ns[:-1], True) if len(ns) else np.zeros(0, dtype=np.bool_)
    time, value = counter.time[keep], counter.value[keep]
    differs = np.append(True, value[1:] != value[:-1])[: len(value)]
    return Counter(counter.track, time[differs], value[differs])
