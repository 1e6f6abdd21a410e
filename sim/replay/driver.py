"""Simulate a run, replaying what can be replayed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from sim.cost import StepLanes
from sim.errors import SimulationError
from sim.eventlog import EventLog, GrantTable, StepTable, TaskTable
from sim.graph import IntArray
from sim.hardware.arbiters import Fifo, ProcessorSharing
from sim.replay.tape import MAX_TASKS, Lanes, Rules, Tape
from sim.scheduling import StepView
from sim.simulation import Request, Setup, simulate, sram_use
from sim.tasks import TaskGraph

LANES = 256  # steps replayed at once: long vectors, and few enough that their times stay near the processor
MAX_TAPES = 32
FEW = 2  # a tape that serves fewer lanes than this was not worth making


@dataclass(slots=True)
class Replayed:
    """How a run came about: steps in all, those that were replayed, and why the others were not."""

    steps: int = 0
    replayed: int = 0
    tapes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class _Given:
    """A cost model that repeats what another has computed, for one step."""

    def __init__(self, compute: IntArray, work: IntArray) -> None:
        self.times = compute[:, None], work[:, None]

    def durations(self, _graph: TaskGraph, _steps: StepLanes) -> tuple[IntArray, IntArray]:
        return self.times


def obstacle(setup: Setup) -> str | None:
    """Why no step of a run can be replayed; None if they can."""
    if setup.dependency != "sampled":
        return "known tokens overlap: their steps are not separated by barriers"
    if len(setup.sequences) != 1:
        return "several decode loops overlap: their steps are not separated by barriers"
    if type(setup.arbiter) not in (Fifo, ProcessorSharing) or setup.channels != 1:
        return "only one channel with a fifo or processor_sharing arbiter can be replayed"
    if len(setup.graph) > MAX_TASKS:
        return f"steps of more than {MAX_TASKS:,} tasks are not replayed"
    return None


def run(setup: Setup, *, replay: bool = True) -> tuple[EventLog, Replayed]:
    """Simulate a run. With `replay` the log is the same to the bit, and comes sooner."""
    steps = sum(request.tokens for request in setup.sequences)
    reason = obstacle(setup) if replay else "switched off"
    if reason is not None:
        return simulate(setup), Replayed(steps=steps, reasons=Counter({reason: steps}))
    report = Replayed(steps=steps)
    return _Replay(setup, report).log(), report


class _Replay:
    """The steps of one sequence, some lanes at a time."""

    def __init__(self, setup: Setup, report: Replayed) -> None:
        self.setup, self.report = setup, report
        self.tapes: list[tuple[Tape, IntArray | None]] = []  # and the order of ranks, if lanes may differ in it
        self.worthless = 0
        self.freed = {} if setup.sram is None else sram_use(setup)

    def log(self) -> EventLog:
        request = self.setup.sequences[0]
        blocks = []
        released = request.arrival
        for first in range(0, request.tokens, LANES):
            tokens = np.arange(first, min(first + LANES, request.tokens), dtype=np.int64)
            lanes = StepLanes(sequence=np.zeros_like(tokens), token=tokens, context=request.context + tokens)
            block = _Block(self.setup.graph, lanes, *self.setup.costs.durations(self.setup.graph, lanes))
            self._fill(block)
            released = block.place(released)
            blocks.append(block)
        return _assemble(self.setup, blocks)

    def _fill(self, block: _Block) -> None:
        """Give each lane its times: from a tape that holds for it, or from the simulator."""
        ranks = self.setup.scheduler.ranks(StepView(self.setup.graph, 0, block.compute, block.work))
        todo = np.arange(block.lanes)
        for tape, order in self.tapes:
            todo = self._replay(tape, order, ranks, block, todo)
        while len(todo):
            lane = int(todo[0])
            log = self._record(block, lane)
            if len(self.tapes) < MAX_TAPES and self.worthless < FEW:
                rank = ranks if ranks.ndim == 1 else ranks[:, lane]
                tape = Tape(self.setup.graph, log, self._rules(rank))
                order = None if ranks.ndim == 1 else np.lexsort((np.arange(len(rank)), rank))
                left = self._replay(tape, order, ranks, block, todo)
                self.worthless = 0 if len(todo) - len(left) >= FEW or not len(left) else self.worthless + 1
                todo = left
                if lane not in left:
                    self.tapes.append((tape, order))
                    self.report.tapes += 1
                    continue
                if tape.shared is None:
                    raise SimulationError(f"{tape} does not reproduce the step it was made from: {block.reason[lane]}")
                # Rounding may end a shared transfer at an instant that is another's: no tape holds that.
            block.take_log(lane, log)
            self.report.reasons[block.reason[lane]] += 1
            todo = todo[1:]

    def _replay(self, tape: Tape, order: IntArray | None, ranks: IntArray, block: _Block, todo: IntArray) -> IntArray:
        """Replay what is left; returns the lanes that took other decisions."""
        if not len(todo):
            return todo
        whole = len(todo) == block.lanes
        times = tape.replay(*((c if whole else c[:, todo]) for c in (block.compute, block.work)))
        held = times.failed < 0
        if order is not None:
            here = ranks[order][:, todo]
            inverted = order[1:] < order[:-1]
            held &= ~((here[1:] < here[:-1]) | ((here[1:] == here[:-1]) & inverted[:, None])).any(axis=0)
        for lane, decision in zip(todo[~held].tolist(), times.failed[~held].tolist(), strict=True):
            block.reason[lane] = tape.why(decision) if decision >= 0 else "order of ranks"
        block.take_lanes(todo[held], times, held, tape.engine)
        self.report.replayed += int(held.sum())
        return todo[~held]

    def _record(self, block: _Block, lane: int) -> EventLog:
        costs = _Given(block.compute[:, lane].copy(), block.work[:, lane].copy())
        alone = Request(context=int(block.steps.context[lane]), tokens=1, arrival=0)
        return simulate(replace(self.setup, sequences=[alone], costs=costs))

    def _rules(self, rank: IntArray) -> Rules:
        setup = self.setup
        return Rules(
            overlap=setup.overlap, latency=setup.latency, shared=isinstance(setup.arbiter, ProcessorSharing),
            cap=setup.arbiter.cap, rank=rank.tolist(), chain=setup.scheduler.chains(setup.graph), sram=setup.sram,
            freed=self.freed,
        )  # fmt: skip


class _Block:
    """Some steps of a sequence: their costs, and their times as they become known, relative to their release at first."""

    def __init__(self, graph: TaskGraph, steps: StepLanes, compute: IntArray, work: IntArray) -> None:
        self.steps, self.compute, self.work = steps, compute, work
        self.lanes = len(steps.context)
        shape = (self.lanes, len(graph))
        self.times = [np.empty(shape, dtype=np.int64) for _ in range(4)]  # ready, start, loaded, end [lane, task]
        self.engine = np.empty(shape, dtype=np.int16)
        self.reason = [""] * self.lanes
        self.released = np.zeros(self.lanes, dtype=np.int64)
        self._grants: list[tuple[IntArray, IntArray, IntArray, IntArray, IntArray]] = []  # lane, task, start, end, work

    def take_lanes(self, lanes: IntArray, times: Lanes, held: IntArray, engine: list[int]) -> None:
        if not len(lanes):
            return
        everything = len(lanes) == self.lanes
        for column, places in zip(self.times, times.columns, strict=True):
            if everything:
                np.take(times.times, places, axis=1, out=column, mode="clip")
            else:
                column[lanes] = times.times[held][:, places]
        self.engine[lanes] = engine
        tasks, *grants = times.grants
        columns = [(rows if everything else rows[:, held]).T.ravel() for rows in grants]
        self._grants.append((np.repeat(lanes, len(tasks)), np.tile(tasks, len(lanes)), *columns))

    def take_log(self, lane: int, log: EventLog) -> None:
        t, g = log.tasks, log.grants
        for column, rows in zip(self.times, (t.ready, t.start, t.loaded, t.end), strict=True):
            column[lane] = rows
        self.engine[lane] = t.engine
        self._grants.append((np.full(len(g), lane), g.task, g.start, g.end, g.work))

    def place(self, released: int) -> int:
        """Put the steps one after another; returns when the last has ended."""
        lengths = self.times[3].max(axis=1, initial=0)
        self.ends = released + np.cumsum(lengths)
        self.released = self.ends - lengths
        for column in self.times:
            np.add(column, self.released[:, None], out=column)
        return int(self.ends[-1])

    def grants(self, first: int, tasks: int) -> list[IntArray]:
        """Rows, start, end, work of the grants, in order of time. first: row of the first task of the block."""
        lane, task, start, end, work = (np.concatenate(columns) for columns in zip(*self._grants, strict=True))
        if len(self._grants) > 1:
            order = np.argsort(lane, kind="stable")
            lane, task, start, end, work = (column[order] for column in (lane, task, start, end, work))
        return [first + lane * tasks + task, start + self.released[lane], end + self.released[lane], work]


def _assemble(setup: Setup, blocks: list[_Block]) -> EventLog:
    """One log from the blocks."""
    n = len(setup.graph)
    steps = sum(block.lanes for block in blocks)
    ready, start, loaded, end = (np.concatenate([block.times[i].ravel() for block in blocks]) for i in range(4))
    first = np.arange(steps, dtype=np.int64) * n
    at = np.cumsum([0, *(block.lanes * n for block in blocks)]).tolist()
    parts = [block.grants(row, n) for block, row in zip(blocks, at, strict=False)]
    grants = [np.concatenate(column) for column in zip(*parts, strict=True)]
    tasks = TaskTable(
        step=np.repeat(np.arange(steps, dtype=np.int32), n),
        task=np.tile(np.arange(n, dtype=np.int32), steps),
        engine=np.concatenate([block.engine.ravel() for block in blocks]),
        ready=ready, start=start, loaded=loaded, end=end,
        compute=np.concatenate([block.compute.T.ravel() for block in blocks]),
        work=np.concatenate([block.work.T.ravel() for block in blocks]),
    )  # fmt: skip
    table = StepTable(
        sequence=np.zeros(steps, dtype=np.int32),
        token=np.concatenate([block.steps.token for block in blocks]).astype(np.int32),
        context=np.concatenate([block.steps.context for block in blocks]),
        graph=np.zeros(steps, dtype=np.int32),
        first=first,
        released=np.concatenate([block.released for block in blocks]),
        end=np.concatenate([block.ends for block in blocks]),
    )
    return EventLog(
        graphs=(setup.graph,), tasks=tasks, steps=table, engines=setup.engines, channels=1, bandwidth=setup.bandwidth,
        grants=GrantTable(
            task=grants[0], channel=np.zeros(len(grants[0]), dtype=np.int16), start=grants[1], end=grants[2], work=grants[3]
        ),
    )  # fmt: skip
