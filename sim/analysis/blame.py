"""Causes of waits for engines and for the channel, in picoseconds.

Both matrices have a row for the group that waited and a column for the group that was in the way. Each row sums exactly to the
waits of its `breakdown`.

Engines. While a task waits and all m engines are busy, m tasks hold them, and each causes 1/m of that time. So on a clock that
runs only then, an entry is the overlap of waits and holds, over m. A transfer that waits for SRAM because of the engines
(`sim.analysis.sram`) waits likewise.

Channel. First the part that no other transfer causes (column `alone`): what a transfer would lose to the limit of its own port,
or to a channel that never reaches its peak, if it were the only one. The rest is split over the other transfers that the
channel served between its issue and its end, by the work that they received meanwhile: under FIFO those ahead of it, under
sharing those that shared. If the channel served no other, the rest is `alone` too (mere picoseconds of rounding). A transfer
that waits for SRAM while the channel serves waits for the channel, too: for what others receive before it is issued.

Fractions are carried through the sums and given out once per row, by largest remainder. Cost: n log n, and n for each group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.analysis.blame_kernels import OTHERS, REST, TASK, WAIT_ROWS, WAITED_ALONE, channel_waits, overlap_engines, receive_on
from sim.analysis.breakdown import Breakdown
from sim.analysis.parts import WAIT_CHANNEL, WAIT_ENGINE, WAIT_LINK
from sim.analysis.rules import Rules
from sim.analysis.sram_waits import Causes, causes, stretches
from sim.analysis.sums import narrow, sum_by
from sim.base.errors import SimulationError
from sim.base.kernel import launch
from sim.cost.fixed import largest_remainder
from sim.log import derived
from sim.log.columns import NONE, Tasks, is_large, services_of, tasks_of, viewed
from sim.log.tables import EventLog

Ints = npt.NDArray[np.int64]

MANY = 100  # rows; a larger matrix is unreadable: then it is by sequence, and then by ranges of sequences
ALONE = "alone"
MANY_PAIRS = 2**18  # of a task and a group: from there compiled code pays


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """names: of rows and columns. wait: [waiting, cause], ps. alone: [waiting], ps that no other task caused."""

    names: tuple[str, ...]
    wait: Ints
    alone: Ints

    def largest(self, count: int) -> list[tuple[str, str, int]]:
        """Largest entries (waiting, cause, ps), the largest first."""
        whole = np.column_stack([self.wait, self.alone])
        order = np.argsort(-whole, axis=None, kind="stable")[:count]
        columns = (*self.names, ALONE)
        found = [divmod(int(i), len(columns)) for i in order]
        return [(self.names[i], columns[j], int(whole[i, j])) for i, j in found if whole[i, j]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Matrices by kind of task (of more than `MANY`, those that waited least are one group), and by owner: `token` (named
    `sequence.token`); with many of them `sequence`, or `sequences` (ranges of them). `owner` says which.
    """

    owner: str
    engine_by_owner: Matrix
    engine_by_kind: Matrix
    channel_by_owner: Matrix
    channel_by_kind: Matrix


def blame(log: EventLog, rules: Rules, breakdown: Breakdown) -> Blame:
    """Split all waits by their causes. Raises SimulationError if a row does not sum to the waits of its group."""
    owner, owners, of_step = _owners(log)
    by_owner = _Groups(owners, of_step[log.tasks.step].astype(np.int16))
    kinds, of_kind = _kinds(breakdown)
    by_kind = _Groups(kinds, of_kind[_kind(log, breakdown.kinds)].astype(np.int16))
    kind_waits = sum_by(breakdown.by_kind, of_kind, len(kinds))
    waits = sum_by(breakdown.by_step, of_step, len(owners))
    compiled = is_large(log) or len(log.tasks) * max(len(owners), len(kinds)) > MANY_PAIRS
    waited_for = causes(log, bounded_sram=rules.sram is not None, compiled=compiled)
    engines = _Engines(log, breakdown, waited_for, compiled=compiled)
    channel = _Channel(log, rules, breakdown, waited_for, compiled=compiled)
    result = Blame(
        owner=owner,
        engine_by_owner=engines.matrix(by_owner, waits[:, WAIT_ENGINE]),
        engine_by_kind=engines.matrix(by_kind, kind_waits[:, WAIT_ENGINE]),
        channel_by_owner=channel.matrix(by_owner),
        channel_by_kind=channel.matrix(by_kind),
    )
    for matrix, expected in (
        (result.engine_by_owner, waits[:, WAIT_ENGINE]),
        (result.engine_by_kind, kind_waits[:, WAIT_ENGINE]),
        (result.channel_by_owner, waits[:, WAIT_CHANNEL] + waits[:, WAIT_LINK]),
        (result.channel_by_kind, kind_waits[:, WAIT_CHANNEL] + kind_waits[:, WAIT_LINK]),
    ):
        if (matrix.wait.astype(object).sum(axis=1) + matrix.alone != expected).any():
            raise SimulationError("invariant does not hold: the causes of waits sum to the waits")
    return result


def _owners(log: EventLog) -> tuple[str, tuple[str, ...], Ints]:
    """Kind of owner, the names of owners, and the owner of each step [step]."""
    steps = log.steps
    if len(steps) <= MANY:
        names = tuple(f"{s}.{t}" for s, t in zip(steps.sequence.tolist(), steps.token.tolist(), strict=True))
        return "token", names, np.arange(len(steps), dtype=np.int64)
    sequences, of_step = np.unique(steps.sequence, return_inverse=True)
    if len(sequences) <= MANY:
        return "sequence", tuple(map(str, sequences.tolist())), of_step.astype(np.int64)
    ranges = np.array_split(sequences, MANY)
    names = tuple(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in ranges)
    return "sequences", names, np.repeat(np.arange(MANY, dtype=np.int64), [len(r) for r in ranges])[of_step]


def _kinds(breakdown: Breakdown) -> tuple[tuple[str, ...], Ints]:
    """Names of the groups of kinds, and the group of each kind [kind]; of many kinds those that waited least are one group."""
    names, count = breakdown.kinds, len(breakdown.kinds)
    if count <= MANY:
        return names, np.arange(count, dtype=np.int64)
    waited = breakdown.by_kind[:, WAIT_ENGINE] + breakdown.by_kind[:, WAIT_CHANNEL]
    kept = np.sort(np.argsort(-waited, kind="stable")[: MANY - 1])
    group = np.full(count, MANY - 1, dtype=np.int64)
    group[kept] = np.arange(MANY - 1)
    return (*(names[i] for i in kept), f"{count - MANY + 1:,} other kinds"), group


def _kind(log: EventLog, names: tuple[str, ...]) -> npt.NDArray[np.int32]:
    """Kind of each task [row], as an index into `names`."""
    place = {name: i for i, name in enumerate(names)}
    index = np.array([place[name] for name in derived.forms(log).kinds], dtype=np.int32)
    return np.asarray(index[derived.kind(log)])


class _Groups(NamedTuple):
    """names: of groups. of: [row], the index of its group."""

    names: tuple[str, ...]
    of: npt.NDArray[np.int16]


def _given_out(names: tuple[str, ...], weights: Ints, totals: npt.NDArray[Any], alone: npt.NDArray[Any]) -> Matrix:
    """A matrix whose rows sum to totals, in proportion to weights."""
    rows = [
        largest_remainder(row, total) if total else [0] * len(names)
        for row, total in zip(weights.tolist(), totals.tolist(), strict=True)
    ]
    return Matrix(names=names, wait=narrow(np.array(rows, dtype=object).reshape(weights.shape)), alone=alone)


def _shift(whole: int) -> int:
    """By how many bits weights are shortened where they could pass int64: they stay in proportion."""
    return max(0, whole.bit_length() - 62)


class _Engines:
    """Waits for engines, while all of them are busy: of tasks, and of transfers for which SRAM has no space because of that."""

    def __init__(self, log: EventLog, breakdown: Breakdown, waited_for: Causes, *, compiled: bool) -> None:
        self._compiled, self._engines, t = compiled, log.machine.engines_each, tasks_of(log)
        held, waited = np.flatnonzero(t.engine >= 0), np.flatnonzero(t.ready < t.start)
        on_engine = t.engine[waited] >= 0
        self._passes = [
            _by_time(t, *(rows[t.engine[rows] // self._engines == device] for rows in (waited[on_engine], held)))
            for device in range(len(log.machine.devices))
        ]
        if len(waited_for.queue_begin):
            by_dma, device = waited[~on_engine], derived.device(log)
            self._passes += [
                _by_time(_on_clock(t, waited_for, each), by_dma[device[by_dma] == each], held[device[held] == each])
                for each in range(len(log.machine.devices))
            ]
        self._shift = _shift(log.engines * max(log.makespan, int(breakdown.total[WAIT_ENGINE])))

    def matrix(self, groups: _Groups, waits: npt.NDArray[Any]) -> Matrix:
        """waits: [group], ps; the sums of rows, where overlaps are too coarse to give them exactly."""
        n = len(groups.names)
        overlap = np.zeros((n, n), dtype=np.int64)
        for tasks, by_ready, by_taken, by_start, by_end in self._passes:
            holds, waiting, seen = (np.zeros(shape, dtype=np.int64) for shape in ((2, n), n, (n, n)))
            launch(overlap_engines, compiled=self._compiled)(
                viewed(tasks, compiled=self._compiled), by_ready, by_taken, by_start, by_end, self._engines, groups.of,
                self._shift, holds, waiting, seen, overlap,
            )  # fmt: skip
        # All engines are held while the clock runs, so each wait overlaps as many tasks.
        totals = waits if self._shift else overlap.sum(axis=1) // self._engines
        return _given_out(groups.names, overlap, totals, np.zeros(n, dtype=np.int64))


def _by_time(t: Tasks, waited: Ints, held: Ints) -> tuple[Tasks, Ints, Ints, Ints, Ints]:
    """The tasks, and rows in the orders of `overlap_engines`."""
    orders = ((waited, t.ready), (waited, t.start), (held, t.start), (held, t.end))
    by_ready, by_taken, by_start, by_end = (rows[np.argsort(column[rows], kind="stable")] for rows, column in orders)
    return t, by_ready, by_taken, by_start, by_end


def _on_clock(t: Tasks, waited_for: Causes, device: int) -> Tasks:
    """Tasks with times of the clock that runs while transfers wait for engines of a device."""
    begin, end = stretches(waited_for.queue_begin, waited_for.queue_before, waited_for.queue_first, device)
    if not len(begin):
        return t._replace(ready=np.zeros_like(t.ready), start=np.zeros_like(t.start), end=np.zeros_like(t.end))
    before = np.cumsum(end - begin) - (end - begin)

    def at(time: Ints) -> Ints:
        run = np.searchsorted(begin, time, side="right")  # runs that have begun
        last = np.maximum(run - 1, 0)
        return np.asarray(np.where(run > 0, before[last] + np.minimum(time - begin[last], (end - begin)[last]), 0))

    return t._replace(ready=at(t.ready), start=at(t.start), end=at(t.end))


def _devices(log: EventLog, rules: Rules) -> Ints:
    """[row]: the device of each task, as kernels take it; empty if SRAM is unbounded."""
    return np.zeros(0, dtype=np.int64) if rules.sram is None else derived.device(log).astype(np.int64)


class _Channel:
    """Waits for the channel: work that others received while a transfer was outstanding."""

    def __init__(self, log: EventLog, rules: Rules, breakdown: Breakdown, waited_for: Causes, *, compiled: bool) -> None:
        self._compiled, self._channels, services = compiled, log.channels, services_of(log)
        self._services = viewed(services, compiled=compiled)
        self._memories, self._each = log.machine.memories, log.machine.memories // len(log.machine.devices)
        numerator, denominator = rules.fastest.as_integer_ratio()
        moves = log.tasks.work > 0
        queued = moves & (log.tasks.engine < 0) & (log.tasks.ready < log.tasks.start)
        waits = np.empty((WAIT_ROWS, int(moves.sum() + queued.sum())), dtype=np.int64)
        self._place = np.empty(len(log.tasks), dtype=np.int64)
        count = launch(channel_waits, compiled=compiled)(
            viewed(tasks_of(log), compiled=compiled), rules.latencies, rules.stripes, numerator, denominator,
            rules.execution == "stream", viewed(waited_for, compiled=compiled), _devices(log, rules), waits, self._place,
        )  # fmt: skip
        self._waits = np.ascontiguousarray(waits[:, :count])
        self._shift = _shift(int(breakdown.total[WAIT_CHANNEL] + breakdown.total[WAIT_LINK]) + count)
        mine, first, before = np.zeros((3, len(services.task) + 1), dtype=np.int64)
        self._scratch = mine, first, before, np.zeros(2, dtype=np.int64)
        own, since, until = np.zeros((3, count), dtype=np.int64)
        self._of_waits = own, since, until
        self._receive(_Groups((), np.zeros(len(log.tasks), dtype=np.int16)), np.zeros((0, 0), dtype=np.int64))
        alone = self._waits[OTHERS] == 0
        self._waits[WAITED_ALONE, alone] += self._waits[REST, alone]
        self._waits[REST, alone] = 0

    def _receive(self, groups: _Groups, weights: Ints) -> None:
        """Fill `weights` [waiting, cause]; if there are no groups, the row OTHERS of waits."""
        for channel in range(self._channels):
            launch(receive_on, compiled=self._compiled)(
                self._services, channel, *self._scratch, self._place, self._waits, *self._of_waits, groups.of,
                len(groups.names), self._shift, channel // self._each if channel < self._memories else NONE, weights,
            )  # fmt: skip

    def matrix(self, groups: _Groups) -> Matrix:
        n = len(groups.names)
        weights = np.zeros((n, n), dtype=np.int64)
        self._receive(groups, weights)
        waiting = groups.of[self._waits[TASK]]
        rest, alone = (sum_by(self._waits[row], waiting, n) for row in (REST, WAITED_ALONE))
        return _given_out(groups.names, weights, rest, alone)
