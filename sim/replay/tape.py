"""A recorded step as a program and the decisions it rests on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sim.eventlog import EventLog
from sim.graph import IntArray
from sim.replay.program import COMPUTE, LATENCY, TRANSFER, ZERO, Program, Rows
from sim.replay.reach import Comparison, implied
from sim.replay.sharing import Rate, SharedChannel, time_to_serve
from sim.tasks import TaskGraph

AT_ONCE = 128  # decisions verified at once: their times stay in the processor's cache


class Costs(NamedTuple):
    """Picoseconds on an engine and, at full speed, on the channel: [row, lane]; `rows` gives the row of each task."""

    compute: IntArray
    work: IntArray
    rows: IntArray

    def of(self, lanes: IntArray) -> Costs:
        """The costs of some lanes."""
        return Costs(self.compute[:, lanes], self.work[:, lanes], self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a tape must know of the machine beside the recorded step.

    overlap: compute while operands load. delayed: the channel has latency. shared: it is `processor_sharing`, else
    `fifo`. rank, chain: per task, from the scheduler. sram: bytes, None if unbounded; freed: bytes by computing task.
    """

    overlap: bool
    delayed: bool
    shared: bool
    rank: Sequence[int]
    chain: Sequence[int] | None
    sram: int | None
    freed: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """The times of replayed steps, relative to their release.

    times: int64 [place, lane]; columns: the places of ready, start, loaded and end of each task. length: per lane, when the
    last task ended. grants: (tasks [grant], start, end, work [grant, lane]) in order of time.
    failed: per lane, the index of the first check that came out differently, -1 if none did.
    """

    times: IntArray
    columns: tuple[Rows, Rows, Rows, Rows]
    length: IntArray
    grants: tuple[IntArray, IntArray, IntArray, IntArray]
    failed: IntArray


class Tape:
    """One recorded step, with a channel of that latency (ps): `replay` gives the times of others, and tells which of them
    took other decisions.

    `decisions` holds rows of times with a <= b, or a < b if strict, and the name of what rests on it.
    """

    def __init__(self, graph: TaskGraph, log: EventLog, rules: Rules, latency: int, rate: Rate, rows: IntArray) -> None:
        self.graph, self.rules = graph, rules
        t = log.tasks
        self.engine_column = t.engine
        self.engine: list[int] = t.engine.tolist()
        self._ready, self._start, self._loaded, self._end = (c.tolist() for c in (t.ready, t.start, t.loaded, t.end))
        self._computes, self._moves = (t.compute > 0).tolist(), (t.work > 0).tolist()
        self._prefetch: list[bool] = graph.prefetch.tolist()
        self.program = Program()
        self.decisions: list[tuple[int, int, bool, str]] = []
        n = len(graph)
        self.end = [self.program.row() for _ in range(n)]
        self.arrived = [self.program.row() if moves else ZERO for moves in self._moves]  # the last byte of its transfer
        self.ready = self._inputs()
        self.start = [ZERO] * n
        self._engines()
        self._dma()
        self._ends()
        self.shared: SharedChannel | None = None
        self.served: list[int] = []
        self.transfers = self._channel(latency, t.work.tolist(), rate)
        self._compile(rows)

    def __repr__(self) -> str:
        return f"Tape({len(self.graph)} tasks, {len(self.program)} rows, {len(self.decisions)} decisions)"

    def _decide(self, a: int, b: int, what: str, *, strict: bool = False) -> None:
        self.decisions.append((a, b, strict, what))

    def _inputs(self) -> list[int]:
        start, inputs = self.graph.input_start.tolist(), self.graph.inputs.tolist()
        return [
            self.program.latest(ZERO, *(self.end[source] for source in inputs[start[task] : start[task + 1]]))
            for task in range(len(self.graph))
        ]

    # Engines --------------------------------------------------------------------------------------------------------------

    def _engines(self) -> None:
        """In order of dispatch: what each task waited for, and who was there to be chosen."""
        order = [task for task, engine in enumerate(self.engine) if engine >= 0]
        order.sort(key=lambda task: (self._start[task], self.engine[task]))
        bound = self._bound(order)
        latest: dict[int, int] = {}  # engine -> position of the last task that it took
        count = 1 + max(self.engine, default=-1)
        free_choice = [-1] * count  # engine -> last position of a task that could run on any
        waiting = -1  # last position of such a task that had to wait
        gaps: list[tuple[int, int]] = []  # (position, engine): the engine had nothing to do before it took the task
        later = self._earliest_later(order)
        for position, task in enumerate(order):
            engine = self.engine[task]
            before = latest.get(engine)
            free = ZERO if before is None else self.end[order[before]]
            if before is not None:
                self._while_running(order, before, free_choice, waiting)
            waited = self._start[task] > self._ready[task]
            # If others were waiting when its engine became free, the task was ready at that very instant, and must be again.
            freed = before is not None and self._end[order[before]] == self._start[task]
            tied = freed and later[position + 1] < self._start[task]
            self.start[task] = free if waited else self.ready[task]
            if waited or tied:
                self._decide(self.ready[task], free, "a task waits for an engine")
            if not waited:
                self._decide(free, self.ready[task], "an engine waits for a task")
                if not tied:
                    gaps.append((position, engine))
            if position:
                self._decide(self.start[order[position - 1]], self.start[task], "order of starts")
            latest[engine] = position
            if not bound[position]:
                free_choice[engine] = position
                waiting = position if waited else waiting
        for position in latest.values():
            self._while_running(order, position, free_choice, waiting)
        self._ranks(order, bound)
        self._idle(order, bound, gaps)

    def _earliest_later(self, order: list[int]) -> list[int]:
        """For each position in order of dispatch, the earliest time at which one from there on was ready."""
        earliest = [max(self._ready, default=0) + 1]
        for task in reversed(order):
            earliest.append(min(earliest[-1], self._ready[task]))
        return earliest[::-1]

    def _bound(self, order: list[int]) -> list[bool]:
        """Whether each task, in order of dispatch, could run only on the engine of its chain."""
        if self.rules.chain is None:
            return [False] * len(order)
        seen: set[int] = set()
        bound = []
        for task in order:
            bound.append(self.rules.chain[task] in seen)
            seen.add(self.rules.chain[task])
        return bound

    def _while_running(self, order: list[int], here: int, free_choice: list[int], waiting: int) -> None:
        """While the task at `here` ran, others took higher engines, so this one was busy; or waited, so all were."""
        task = order[here]
        higher = max(free_choice[self.engine[task] + 1 :], default=-1)
        if higher > here:
            self._decide(self.start[order[higher]], self.end[task], "which engine is free", strict=True)
        if waiting > here:
            self._decide(self.start[order[waiting]], self.end[task], "which engine is free first")

    def _ranks(self, order: list[int], bound: list[bool]) -> None:
        """Whoever was taken before a task of lower rank was taken because that one was not ready yet."""
        keys = [(self.rules.rank[task], task) for task in order]
        everyone: list[int] = []  # positions whose keys fall
        by_engine: dict[int, list[int]] = {}
        for position, task in enumerate(order):
            mine = by_engine.setdefault(self.engine[task], [])
            for stack in (everyone, mine):
                while stack and keys[stack[-1]] < keys[position]:
                    stack.pop()
            stack = mine if bound[position] else everyone
            if stack:
                self._decide(self.start[order[stack[-1]]], self.ready[task], "which task goes first", strict=True)
            everyone.append(position)
            mine.append(position)

    def _idle(self, order: list[int], bound: list[bool], gaps: list[tuple[int, int]]) -> None:
        """While an engine was idle, no task that came later and could run on it was ready.

        That none was before the last such gap is enough: starts are in order.
        """
        engine_at = dict(gaps)
        last = -1
        last_on: dict[int, int] = {}
        for position, task in enumerate(order):
            gap = last_on.get(self.engine[task], -1) if bound[position] else last
            if gap >= 0:
                self._decide(self.start[order[gap]], self.ready[task], "an engine has nothing to do")
            if position in engine_at:
                last = last_on[engine_at[position]] = position

    # DMA, operands and the channel ----------------------------------------------------------------------------------------

    def _dma(self) -> None:
        """Private operands are issued in program order as soon as SRAM has room, all else when it is ready."""
        loads = [task for task, prefetch in enumerate(self._prefetch) if prefetch]
        for task, engine in enumerate(self.engine):
            if engine < 0 and not self._prefetch[task]:
                self.start[task] = self.ready[task]
        if self.rules.sram is None or not loads:
            return
        freed = self.rules.freed
        releases = sorted(freed, key=lambda task: (self._end[task], task))
        room: list[int] = []
        for before, task in zip([None, *releases], releases, strict=False):
            if before is not None:
                self._decide(self.end[before], self.end[task], "order in which SRAM is freed")
            room.append(freed[task] + (room[-1] if room else 0))
        admitted, used = ZERO, 0
        for task in loads:
            used += freed[int(self.graph.outputs[self.graph.output_start[task]])]
            if used > self.rules.sram:
                admitted = self.program.latest(admitted, self.end[releases[bisect_left(room, used - self.rules.sram)]])
            self.start[task] = admitted

    def _ends(self) -> None:
        program = self.program
        for task, end in enumerate(self.end):
            if not self._moves[task]:
                program.sum(self.start[task], COMPUTE, task, end)
            elif not self._computes[task]:
                program.sources[end] = (self.arrived[task],)
            elif self.rules.overlap:
                program.sources[end] = (self.arrived[task], program.sum(self.start[task], COMPUTE, task))
            else:
                program.sum(self.arrived[task], COMPUTE, task, end)

    def _channel(self, latency: int, work: list[int], rate: Rate) -> list[int]:
        """Transfers in order of arrival at the channel: each requester's queue lets them there one by one."""
        moving = [task for task, moves in enumerate(self._moves) if moves]
        queued = {task: self._start[task] + latency for task in moving}
        queued_row = {task: self.program.sum(self.start[task], LATENCY, 0) if latency else self.start[task] for task in moving}
        at, at_row = dict(queued), dict(queued_row)
        last: dict[int, int] = {}
        member = self.graph.ops.member[self.graph.op].tolist()
        for task in sorted(moving, key=lambda task: (queued[task], task)):
            dma = -1 - int(self._prefetch[task]) - 2 * (member[task] + 1)
            requester = self.engine[task] if self.engine[task] >= 0 else dma
            if requester in last:
                before = last[requester]
                self._decide(queued_row[before], queued_row[task], "order in a queue", strict=before > task)
                at[task] = max(queued[task], self._loaded[before])
                at_row[task] = self._follow(before, queued_row[task], queued[task])
            last[requester] = task
        order = sorted(moving, key=lambda task: (at[task], task))
        for a, b in pairwise(order):
            self._decide(at_row[a], at_row[b], "order of arrival at the channel", strict=a > b)
        if self.rules.shared:
            self.shared = SharedChannel(self.program, order, at, at_row, self._loaded, self.arrived, work, rate)
            for a, b in self.shared.together:
                self._decide(a, b, "order of instants at the shared channel")
                self._decide(b, a, "order of instants at the shared channel")
        else:
            self._serve(order, at_row)
        return order

    def _follow(self, before: int, queued_row: int, queued: int) -> int:
        """The row at which a transfer reaches the channel, behind the one before it in its queue."""
        gone = self.arrived[before]
        if not self.rules.shared:
            return self.program.latest(queued_row, gone)
        # An instant of a shared channel cannot be the maximum of itself and something: which one it is, is a decision.
        if queued > self._loaded[before]:
            self._decide(gone, queued_row, "order in a queue", strict=True)
            return queued_row
        self._decide(queued_row, gone, "order in a queue")
        return gone

    def _serve(self, order: list[int], at_row: dict[int, int]) -> None:
        """First come, first served: from the end of the one before, or from its arrival."""
        before = ZERO
        for task in order:
            start = self.program.latest(at_row[task], before)
            self.program.sum(start, TRANSFER, task, self.arrived[task])
            self.served.append(start)
            before = self.arrived[task]

    # Running --------------------------------------------------------------------------------------------------------------

    def _compile(self, rows: IntArray) -> None:
        """Put rows where they are computed, and keep the decisions that do not follow. rows: of the costs, for each task."""
        _, first, which = np.unique(rows, return_index=True, return_inverse=True)
        self._alike = first[which]
        self.program.compile(self._alike.tolist())
        place = self.program.index.tolist()
        wanted: dict[Comparison, str] = {}
        for a, b, strict, what in self.decisions:
            wanted.setdefault((place[a], place[b], strict), what)
        proven = implied(self.program, wanted)
        checked = [(comparison, what) for comparison, what in wanted.items() if comparison not in proven]
        self._names = [what for _, what in checked]
        self._checks = [
            (
                np.array([a for (a, _, s), _ in checked if s == strict], dtype=np.intp),
                np.array([b for (_, b, s), _ in checked if s == strict], dtype=np.intp),
                np.array([i for i, ((_, _, s), _) in enumerate(checked) if s == strict], dtype=np.intp),
                strict,
            )
            for strict in (False, True)
        ]
        at = self.program.index
        self._columns = at[self.ready], at[self.start], at[self._loads()], at[self.end]
        self._last = np.unique(at[self.end][np.diff(self.graph.output_start) == 0])  # whatever has an output ends before it
        self._grant_rows = at[self.served], at[[self.arrived[task] for task in self.transfers]]

    def _loads(self) -> list[int]:
        return [self.arrived[task] if moves else self.start[task] for task, moves in enumerate(self._moves)]

    def replay(self, costs: Costs, latency: int, rate: Rate) -> Lanes:
        """Times of the steps that take `costs`, on a channel of that latency (ps), which serves n at once at `rate(n)` each."""
        compute, work, rows = costs
        if (rows[self._alike] != rows).any():
            self._compile(self._alike * len(rows) + rows)  # tasks that cost the same in all steps seen so far
        transfer = _transfer(work, rate)
        failed = np.full(compute.shape[1], -1, dtype=np.int64)
        if self.shared is None:
            times = self.program.run((compute, transfer, latency), rows, lambda _number, _times: None)
            tasks = np.array(self.transfers, dtype=np.int64)
            grants = (tasks, times[self._grant_rows[0]], times[self._grant_rows[1]], work[rows[tasks]])
        else:
            service = self.shared.service(work[rows], rate)
            times = self.program.run((compute, transfer, latency), rows, service.instant)
            grants = service.grants()
            failed[service.failed] = len(self._names)
        self._verify(times, failed)
        return Lanes(times=times, columns=self._columns, length=times[self._last].max(axis=0), grants=grants, failed=failed)

    def _verify(self, times: IntArray, failed: IntArray) -> None:
        """Write into `failed` the first check of each lane that came out differently."""
        left, right = np.empty((2, AT_ONCE, times.shape[1]), dtype=np.int64)
        for a, b, index, strict in self._checks:
            for first in range(0, len(a), AT_ONCE):
                here = slice(first, first + AT_ONCE)
                n = len(a[here])
                np.take(times, a[here], axis=0, out=left[:n], mode="clip")
                np.take(times, b[here], axis=0, out=right[:n], mode="clip")
                wrong = left[:n] >= right[:n] if strict else left[:n] > right[:n]
                if wrong.any():
                    bad = np.flatnonzero(wrong.any(axis=0) & (failed < 0))
                    failed[bad] = index[here][wrong[:, bad].argmax(axis=0)]

    def why(self, decision: int) -> str:
        """What a lane decided differently."""
        return self._names[decision] if decision < len(self._names) else "order of instants at the shared channel"


def _transfer(work: IntArray, rate: Rate) -> IntArray:
    """How long transfers take that are served alone."""
    num, den = rate(1)
    return work if num == den else time_to_serve(work, num, den)
