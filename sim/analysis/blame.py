"""Who waited because of whom, in picoseconds: for engines, and for the channel.

Both matrices have a row for whoever waited and a column for whoever was in the way, and each row sums to the waits of its
`breakdown` exactly.

Engines. While a task waits and all m engines are busy, m tasks hold them, each to blame for 1/m of that time. So with the
clock of `AllBusy`, which runs only then, an entry is the overlap of waits and holds, over m.

Channel. First what is nobody's fault but the machine's (column `alone`): what a transfer would lose to the limit of its own
port, or to a channel that never reaches its peak, if nobody else were there. The rest is split over the other transfers that
the channel served between its issue and its end, by the work that they received meanwhile; under FIFO that is who was ahead
of it, under sharing who shared. If the channel served nobody else, the rest is `alone` too (mere picoseconds of rounding).

Fractions are carried through the sums and given out once per row, by largest remainder. Cost: n log n for each pair of a
waiting and a holding group that overlap in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.analysis.breakdown import (
    COMPUTE,
    INVARIANT,
    PARTS,
    TRANSFER,
    WAIT_CHANNEL,
    WAIT_ENGINE,
    WAIT_POLICY,
    WAIT_SRAM,
    Breakdown,
)  # fmt: skip
from sim.analysis.context import Rules
from sim.cost.fixed import largest_remainder
from sim.errors import SimulationError
from sim.eventlog import EventLog

Ints = npt.NDArray[np.int64]
Times = Ints

MANY = 100  # a larger matrix is no longer read by anyone: then it is by sequence, and then by ranges of sequences
ALONE = "alone"


class AllBusy:
    """The intervals in which no engine is idle, and a clock that runs only then: `clock(t)` is their length up to t.

    Among m engines the k-th start (counting from 0 in order of time) leaves none idle exactly until the (k + 1 - m)-th end,
    if that comes later: k + 1 have started, so k + 1 - m must have ended before the next one can start.
    """

    def __init__(self, log: EventLog) -> None:
        held = log.tasks.engine >= 0
        start, end = np.sort(log.tasks.start[held]), np.sort(log.tasks.end[held])
        begin, until = start[log.engines - 1 :], end[: max(0, len(end) - log.engines + 1)]
        some = begin < until
        self._begin, self._until = begin[some], until[some]
        self._before = np.concatenate(([0], np.cumsum(self._until - self._begin)))

    def clock(self, time: Times) -> Times:
        """Picoseconds of [0, time) in which all engines were busy."""
        if not len(self._begin):
            return np.zeros_like(time)
        i = np.searchsorted(self._begin, time, side="right") - 1
        inside = np.minimum(time, self._until[i]) - self._begin[i]
        return np.where(i >= 0, self._before[np.maximum(i, 0)] + inside, 0)


class Split:
    """Splits the time [ready, end] of tasks. `Split(log, rules)(rows)` gives one column per entry of `PARTS`."""

    def __init__(self, log: EventLog, rules: Rules) -> None:
        self._tasks = log.tasks
        self._rules = rules
        self._busy: AllBusy | None = None
        self._log = log

    def __call__(self, rows: npt.NDArray[np.int64]) -> list[Times]:
        t = self._tasks
        ready, start, end, engine = t.ready[rows], t.start[rows], t.end[rows], t.engine[rows]
        compute, work = t.compute[rows], t.work[rows]
        parts = [np.zeros(len(rows), dtype=np.int64) for _ in PARTS]
        held = engine >= 0
        full = np.where(work > 0, -(-work // self._rules.stripes) + self._rules.latency, 0)
        service = end - start
        if self._rules.execution == "stream":
            larger = np.where(held & (compute >= full), compute, 0)
            parts[COMPUTE] = larger
            parts[TRANSFER] = np.where(larger > 0, 0, full)
        else:
            parts[COMPUTE] = np.where(held, end - t.loaded[rows], 0)
            parts[TRANSFER] = full
        parts[WAIT_CHANNEL] = service - parts[COMPUTE] - parts[TRANSFER]
        waited = start - ready
        parts[WAIT_SRAM] = np.where(held, 0, waited)
        queued = np.flatnonzero(held & (waited > 0))
        if len(queued):
            if self._busy is None:
                self._busy = AllBusy(self._log)
            parts[WAIT_ENGINE][queued] = self._busy.clock(start[queued]) - self._busy.clock(ready[queued])
            parts[WAIT_POLICY][queued] = waited[queued] - parts[WAIT_ENGINE][queued]
        if min(int(column.min(initial=0)) for column in parts) < 0:
            bad = next(int(rows[column.argmin()]) for column in parts if column.min(initial=0) < 0)
            raise SimulationError(f"invariant does not hold: {INVARIANT}: {self._log.name(bad)} ran faster than it can")
        return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """names: of rows and columns. wait: [who, because of whom] in ps. alone: [who], nobody's fault (see the module)."""

    names: tuple[str, ...]
    wait: Ints
    alone: Ints

    def largest(self, count: int) -> list[tuple[str, str, int]]:
        """(who, because of whom, ps): the largest entries, the largest first."""
        whole = np.column_stack([self.wait, self.alone])
        order = np.argsort(-whole, axis=None, kind="stable")[:count]
        columns = (*self.names, ALONE)
        found = [divmod(int(i), len(columns)) for i in order]
        return [(self.names[i], columns[j], int(whole[i, j])) for i, j in found if whole[i, j]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Matrices by kind of task and by owner: `token` (named `sequence.token`); with many of them `sequence`, or `sequences`
    (ranges of them). `owner` says which.
    """

    owner: str
    engine_by_owner: Matrix
    engine_by_kind: Matrix
    channel_by_owner: Matrix
    channel_by_kind: Matrix


def blame(log: EventLog, rules: Rules, account: Breakdown) -> Blame:
    """Split all waits. Raises SimulationError if a row does not sum to the waits of its group."""
    owner, owners, of_step = _owners(log)
    of_owner, of_kind = of_step[log.tasks.step], _kinds(log, account.kinds)
    waits = np.zeros((len(owners), account.by_step.shape[1]), dtype=np.int64)
    np.add.at(waits, of_step, account.by_step)
    engines, channel = _Engines(log), _Channel(log, rules)
    result = Blame(
        owner=owner,
        engine_by_owner=engines.matrix(of_owner, owners),
        engine_by_kind=engines.matrix(of_kind, account.kinds),
        channel_by_owner=channel.matrix(of_owner, owners),
        channel_by_kind=channel.matrix(of_kind, account.kinds),
    )
    for matrix, expected in (
        (result.engine_by_owner, waits[:, WAIT_ENGINE]),
        (result.engine_by_kind, account.by_kind[:, WAIT_ENGINE]),
        (result.channel_by_owner, waits[:, WAIT_CHANNEL]),
        (result.channel_by_kind, account.by_kind[:, WAIT_CHANNEL]),
    ):
        if (matrix.wait.sum(axis=1) + matrix.alone != expected).any():
            raise SimulationError("invariant does not hold: who is blamed for a wait sums to the wait")
    return result


def _owners(log: EventLog) -> tuple[str, tuple[str, ...], Ints]:
    """What rows by owner stand for, their names, and the row of each step."""
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


def _kinds(log: EventLog, names: tuple[str, ...]) -> Ints:
    """The kind of each row, as an index into names."""
    column = np.empty(len(log.tasks), dtype=np.int64)
    number = [np.array([names.index(kind) for kind in graph.kinds], dtype=np.int64)[graph.kind] for graph in log.graphs]
    for step in range(len(log.steps)):
        column[log.rows(step)] = number[int(log.steps.graph[step])]
    return column


def _members(group: Ints) -> Iterator[tuple[int, Ints]]:
    """Each group that occurs, with the positions of its members in ascending order."""
    order = np.argsort(group, kind="stable")
    if len(order):
        for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            yield int(group[members[0]]), members


def _given_out(names: tuple[str, ...], weights: Ints, totals: Ints, alone: Ints) -> Matrix:
    rows = [largest_remainder(row, total) if total else [0] * len(names)
            for row, total in zip(weights.tolist(), totals.tolist(), strict=True)]  # fmt: skip
    return Matrix(names=names, wait=np.array(rows, dtype=np.int64).reshape(weights.shape), alone=alone)


def _totals(groups: int, group: Ints, values: Ints) -> Ints:
    sums = np.zeros(groups, dtype=np.int64)
    np.add.at(sums, group, values)
    return sums


class _Engines:
    """Waits for engines, on the clock of `AllBusy`."""

    def __init__(self, log: EventLog) -> None:
        t = log.tasks
        clock = AllBusy(log).clock
        held = np.flatnonzero(t.engine >= 0)
        ready, start, end = clock(t.ready[held]), clock(t.start[held]), clock(t.end[held])
        waits, holds = ready < start, start < end
        self._waiter, self._ready, self._start = held[waits], ready[waits], start[waits]
        self._holder, self._from, self._until = held[holds], start[holds], end[holds]

    def matrix(self, group: Ints, names: tuple[str, ...]) -> Matrix:
        waiter, holder = group[self._waiter], group[self._holder]
        overlap = np.zeros((len(names), len(names)), dtype=np.int64)
        for who, mine in _members(waiter):
            ready, start = self._ready[mine], self._start[mine]
            near = np.flatnonzero((self._until > ready.min()) & (self._from < start.max()))
            waited = _WaitedUntil(ready, start)
            np.add.at(overlap[who], holder[near], waited(self._until[near]) - waited(self._from[near]))
        totals = _totals(len(names), waiter, self._start - self._ready)
        return _given_out(names, overlap, totals, np.zeros_like(totals))


class _WaitedUntil:
    """How long intervals have lasted up to a time, summed over them: sum of (t - begin) if begun, less (t - end) if ended.

    The two sums may overflow int64; their difference does not, and arithmetic modulo 2^64 gets it right.
    """

    def __init__(self, begin: Ints, end: Ints) -> None:
        self._edges = [(edge, np.concatenate(([0], np.cumsum(edge)))) for edge in (np.sort(begin), np.sort(end))]

    def __call__(self, time: Ints) -> Ints:
        begun, ended = (self._since(time, *edge) for edge in self._edges)
        return begun - ended

    @staticmethod
    def _since(time: Ints, edge: Ints, sums: Ints) -> Ints:
        count = np.searchsorted(edge, time)
        return np.asarray(time * count - sums[count])


class _Channel:
    """Waits for the channel: who received work while a transfer was outstanding."""

    def __init__(self, log: EventLog, rules: Rules) -> None:
        t, self._log = log.tasks, log
        rows = np.flatnonzero(t.work > 0)
        parts = Split(log, rules)(rows)
        wait, at_best = parts[WAIT_CHANNEL], parts[TRANSFER]
        num, den = rules.fastest.as_integer_ratio()
        at_port = -(-(-(-t.work[rows] // rules.stripes) * den) // num) + rules.latency
        if rules.execution == "stream":
            at_best = at_best + parts[COMPUTE]
            at_port = np.where(t.engine[rows] >= 0, np.maximum(at_port, t.compute[rows]), at_port)
        alone = np.clip(at_port - at_best, 0, wait)
        arrived = np.where(t.engine[rows] >= 0, t.loaded[rows], t.end[rows])
        some = wait > 0
        self._rows, self._alone, self._rest = rows[some], alone[some], (wait - alone)[some]
        self._issued, self._arrived = (t.start[rows] + rules.latency)[some], arrived[some]
        # Transfers wait only for those on their own channels.
        self._on = [self._own_work(channel) for channel in range(log.channels)]
        others = np.zeros_like(self._rest)
        for channel, own in enumerate(self._on):
            here = np.flatnonzero(own)
            served = _ServedUntil(log, np.flatnonzero(log.grants.channel == channel))
            others[here] += served(self._arrived[here]) - served(self._issued[here]) - own[here]
        nobody = others == 0
        self._alone[nobody] += self._rest[nobody]
        self._rest[nobody] = 0
        self._scale = self._rest / np.maximum(others, 1)

    def _own_work(self, channel: int) -> Ints:
        """What each waiting transfer received on a channel."""
        grants = self._log.grants
        here = grants.channel == channel
        return _totals(len(self._log.tasks), grants.task[here], grants.work[here])[self._rows]

    def matrix(self, group: Ints, names: tuple[str, ...]) -> Matrix:
        grants, waiter = self._log.grants, group[self._rows]
        weights = np.zeros((len(names), len(names)), dtype=np.int64)
        for channel, own in enumerate(self._on):
            here = np.flatnonzero(grants.channel == channel)
            for whom, members in _members(group[grants.task[here]]):
                mine = here[members]
                first, last = grants.start[mine].min(), grants.end[mine].max()
                near = np.flatnonzero((own > 0) & (self._arrived > first) & (self._issued < last))
                served = _ServedUntil(self._log, mine)
                received = served(self._arrived[near]) - served(self._issued[near])
                received -= np.where(waiter[near] == whom, own[near], 0)
                # Rounded up, so that what is small does not vanish; where the channel ran at full speed the scale is 1.
                share = np.ceil(received * self._scale[near]).astype(np.int64)
                np.add.at(weights[:, whom], waiter[near], share)
        rest, alone = (_totals(len(names), waiter, column) for column in (self._rest, self._alone))
        return _given_out(names, weights, rest, alone)


class _ServedUntil:
    """The work that some grants of one channel had delivered up to a time, in ps at full speed, rounded down.

    The intervals of service of a channel are equal or disjoint, so the sum is linear within each.
    """

    def __init__(self, log: EventLog, grants: Ints) -> None:
        grants = grants[np.argsort(log.grants.start[grants], kind="stable")]
        start, end, work = log.grants.start[grants], log.grants.end[grants], log.grants.work[grants]
        first = np.flatnonzero(np.append(True, start[1:] != start[:-1]))[: len(start)]
        self._start, self._length = start[first], (end - start)[first]
        self._work = np.add.reduceat(work, first) if len(first) else work
        self._before = np.cumsum(self._work) - self._work

    def __call__(self, time: Ints) -> Ints:
        if not len(self._start):
            return np.zeros_like(time)
        i = np.maximum(np.searchsorted(self._start, time, side="right") - 1, 0)
        inside = np.clip(time - self._start[i], 0, self._length[i])
        # work * inside / length, without the product that could overflow; at full speed the second term is 0
        whole, rest = np.divmod(self._work[i], self._length[i])
        part = np.where(inside == self._length[i], rest, np.floor(rest * (inside / self._length[i])).astype(np.int64))
        return np.asarray(self._before[i] + whole * inside + part)
