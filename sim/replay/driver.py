"""Simulate a run, replaying what can be replayed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from tempfile import TemporaryFile
from typing import NamedTuple, cast

import numpy as np

from sim.batch import Shape
from sim.errors import SimulationError
from sim.eventlog import EventLog
from sim.graph import IntArray, StepLanes
from sim.hardware.arbiters import Arbiter, Derated, Fifo, Transfer, equal_shares
from sim.record import Progress
from sim.replay.ahead import Ahead
from sim.replay.block import Block, assemble
from sim.replay.sharing import Rate
from sim.replay.tape import Costs, Rules, Tape
from sim.requests import Request
from sim.scheduling import StepView
from sim.serving import Batch, Batcher, loops
from sim.simulation import Setup, lanes_of, side_by_side, simulate, simulate_in_parts, sram_use
from sim.tasks import TaskGraph

TIMES_AT_ONCE = 2**22  # of tasks, replayed at once: long vectors, for NumPy's overhead is per operation, in bounded memory
LANES = 1024  # at most
MAX_TAPES = 4096
PART = 2**20  # tasks in memory at a time, about, where a run goes to a file
FEW = 4  # lanes; a tape that serves fewer took longer to make than to simulate them
FREE = 8  # tapes that are made in any case: what they cost together is a fraction of a second


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


class _View:
    """A `StepView` of several steps, which spreads costs over all tasks only for schedulers that look at them."""

    age = 0

    def __init__(self, graph: TaskGraph, costs: Costs) -> None:
        self.graph, self._costs = graph, costs

    @property
    def compute(self) -> IntArray:
        return self._costs.compute[self._costs.rows]

    @property
    def work(self) -> IntArray:
        return self._costs.work[self._costs.rows]


@dataclass(slots=True, eq=False)
class _Known:
    """A tape, and the order of ranks that it rests on, if steps may differ in it."""

    tape: Tape
    order: IntArray | None


class Tapes:
    """Tapes that several runs share whose machines differ only in delays: bandwidth, latency, speed of engines, costs."""

    KEPT = 64  # of one kind; a tape takes a few megabytes

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, ...], list[_Known]] = {}

    def of(self, setup: Setup, rules: Rules) -> list[_Known]:
        """Those that may hold for a run, the last one made first; its decisions tell for which steps they do."""
        g = setup.graph
        structure = tuple(a.tobytes() for a in (g.inputs, g.input_start, g.engine, g.computes, g.moves, g.prefetch))
        key = (
            *structure, setup.engines, setup.scheduler.engines, rules.overlap, rules.delayed, rules.shared,
            rules.sram, tuple(rules.freed.items()), tuple(rules.chain or ()), tuple(rules.rank),
        )  # fmt: skip
        return self._known.setdefault(key, [])


def obstacle(setup: Setup) -> str | None:
    """Why no step of a run can be replayed; None if they can."""
    if setup.scheduler is not None:
        return "switched off"
    if setup.batching is not None and setup.sram is not None:
        return "operands of batched steps take room in a bounded SRAM that differs from step to step"
    if setup.dependency != "sampled":
        return "known tokens overlap: their steps are not separated by barriers"
    if min(len(setup.sequences), setup.concurrency or len(setup.sequences)) != 1 and not _one_loop(setup):
        return "several decode loops overlap: their steps are not separated by barriers"
    if setup.channels != 1:
        return "several channels: only one can be replayed"
    if type(_policy(setup.arbiter)) is not Fifo and equal_shares(setup.arbiter) is None:
        return "its arbiter: only fifo and processor_sharing can be replayed"
    return None


def _one_loop(setup: Setup) -> bool:
    """Whether one loop serves all sequences."""
    return setup.batching is not None and setup.batching.policy != "independent"


def _policy(arbiter: Arbiter) -> Arbiter:
    """The arbiter itself, whatever the efficiency of its channel."""
    return arbiter.arbiter if isinstance(arbiter, Derated) else arbiter


def _rate(arbiter: Arbiter) -> Rate:
    """The share that each of n transfers in service gets."""
    shared = equal_shares(arbiter)
    if shared is not None:
        return cache(shared.rate)
    ((_, share),), denominator, _ = arbiter.plan([Transfer((0, 0), 0, "", 0, 0, 1, 1)])
    return lambda _one: (share, denominator)


def run(
    setup: Setup, *, replay: bool = True, tapes: Tapes | None = None, progress: Progress | None = None
) -> tuple[EventLog, Replayed]:
    """Simulate a run. With `replay` the log is the same to the bit, and comes sooner; still sooner with the `tapes` of
    others like it.
    """
    reason = obstacle(setup) if replay else "switched off"
    report = Replayed()
    if reason is not None:
        log = simulate(setup, progress)
        report.steps = report.reasons[reason] = len(log.steps)
        return log, report
    timed = _Timed(setup, report, tapes or Tapes(), progress)
    blocks = list(timed.blocks())
    return assemble(setup, blocks, batches=timed.batches, arrival=timed.arrival()), report


class Part(NamedTuple):
    """Some steps of a run, with rows and steps numbered through all of it; `grants`: the place of each of its grants among all.
    The report, and when sequences came, are those of the run so far.
    """

    log: EventLog
    grants: IntArray
    report: Replayed


def stream(
    setup: Setup, folder: str | os.PathLike[str], *, replay: bool = True, tapes: Tapes | None = None,
    progress: Progress | None = None,
) -> Iterator[Part]:  # fmt: skip
    """The same run in parts, in order of the log; only one is in memory at a time.

    What can't be replayed (see `obstacle`) is kept in a file without a name in that folder until all steps have ended.
    """
    reason = obstacle(setup) if replay else "switched off"
    report = Replayed()
    if reason is not None:
        with TemporaryFile(dir=folder) as file:
            for log, grants in simulate_in_parts(setup, file, progress):
                report.steps = report.reasons[reason] = report.steps + len(log.steps)
                yield Part(log, grants, report)
        return
    timed = _Timed(setup, report, tapes or Tapes(), progress)
    step = row = granted = 0
    blocks = list[Block]()

    def part() -> Part:
        nonlocal step, row, granted
        log = assemble(setup, blocks.copy(), step, row, batches=timed.batches, arrival=timed.arrival())
        place = granted + np.arange(len(log.grants))
        step, row, granted = step + len(log.steps), row + len(log.tasks), granted + len(log.grants)
        blocks.clear()
        timed.batches.clear()
        return Part(log, place, report)

    for block in timed.blocks():
        blocks.append(block)
        if sum(block.lanes * len(block.graph) for block in blocks) >= PART:
            yield part()
    if blocks:
        yield part()


class _Timed:
    """The steps of a run that can be replayed, one block after another. batches: who took part in each so far."""

    def __init__(self, setup: Setup, report: Replayed, tapes: Tapes, progress: Progress | None) -> None:
        self.setup, self.report, self.tapes, self._progress = setup, report, tapes, progress
        self.batches: list[Batch] = []
        self._batcher: Batcher | None = None
        if setup.batching is not None:
            (self._batcher,) = loops(setup.batching, setup.sequences, concurrency=setup.concurrency, think=setup.think)

    def arrival(self) -> IntArray:
        """When each sequence came; 0 if it has not yet."""
        if self._batcher is None:
            return np.array([request.arrival for request in self.setup.sequences], dtype=np.int64)
        times = self._batcher.arrivals.times
        return np.array([times.get(number, 0) for number in range(len(self.setup.sequences))], dtype=np.int64)

    def blocks(self) -> Iterator[Block]:
        for block in self._batched(self._batcher) if self._batcher is not None else self._alone():
            if self._progress is not None:
                members = self.batches[-block.lanes :]
                tokens = sum(batch.emitted for batch in members) if self._batcher is not None else block.lanes
                self._progress(tokens, int(block.ends[-1]))
            yield block

    def _alone(self) -> Iterator[Block]:
        self.report.steps = sum(request.tokens for request in self.setup.sequences)
        return _Replay(self.setup, self.report, self.tapes).blocks()

    def _batched(self, batcher: Batcher) -> Iterator[Block]:
        """All that are known ahead and of one shape are lanes of a block."""
        setup, report = self.setup, self.report
        assert setup.graphs is not None
        ahead = Ahead(setup, batcher)
        replays: dict[Shape, _Replay] = {}
        reasons = Counter[str]()
        now, window = 0, FEW
        while True:
            planned = ahead.plan(now, window)
            if not planned:
                if batcher.arrivals.next is None:
                    break
                now = batcher.arrivals.next
                continue
            shape = planned[0].shape
            if shape not in replays:
                replays[shape] = _Replay(replace(setup, graph=setup.graphs(shape)), report, self.tapes)
            lanes = [lanes_of(0, report.steps + i, batch) for i, batch in enumerate(planned)]
            block = replays[shape].block(side_by_side(lanes))
            block.place(now)
            right = ahead.took(block.ends.tolist())
            most = min(LANES, TIMES_AT_ONCE // len(block.graph))
            window = min(most, 2 * window if right == len(planned) else max(FEW, 2 * right))
            block.cut(right)
            now = int(block.ends[-1])
            self.batches += planned[:right]
            reasons.update(block.reason[lane] or "one of a kind" for lane in block.simulated if lane < block.lanes)
            report.steps += right
            report.reasons = reasons.copy()
            report.replayed = report.steps - reasons.total()
            yield block


class _Replay:
    """Steps of one graph, some lanes at a time.

    Contexts grow from step to step, so a tape holds for neighbours: those used last are tried first, on about as many steps
    as they have served.
    """

    def __init__(self, setup: Setup, report: Replayed, tapes: Tapes) -> None:
        self.setup, self.report = setup, report
        ranks = setup.scheduler.ranks(StepView(setup.graph, 0, *np.zeros((2, len(setup.graph)), dtype=np.int64)))
        self.rules = Rules(
            overlap=setup.overlap, delayed=setup.latency > 0, shared=equal_shares(setup.arbiter) is not None,
            rank=ranks.tolist(), chain=setup.scheduler.chains(setup.graph), sram=setup.sram,
            freed={} if setup.sram is None else sram_use(setup),
        )  # fmt: skip
        self.rate = _rate(setup.arbiter)
        self.shared = tapes.of(setup, self.rules)
        self.tapes = list(self.shared)  # the one used last comes first
        self.window = LANES
        self.fewest = 1 if setup.batching is None else 2  # lanes that a tape is made for: one of a kind may stay so
        self.pause, self.pauses = 0, 1  # steps to simulate before the next tape is made, and how many after one that is no use

    def blocks(self) -> Iterator[Block]:
        setup, (request,) = self.setup, self.setup.sequences
        released = request.arrival
        size = max(1, min(LANES, TIMES_AT_ONCE // max(1, len(setup.graph))))
        for first in range(0, request.tokens, size):
            tokens = np.arange(first, min(first + size, request.tokens), dtype=np.int64)
            block = self.block(StepLanes(sequence=np.zeros_like(tokens), token=tokens, context=request.context + tokens))
            released = block.place(released)
            yield block

    def block(self, lanes: StepLanes) -> Block:
        """Some steps, timed."""
        block = Block(self.setup.graph, lanes, _costs(self.setup, lanes))
        self._fill(block)
        return block

    def _fill(self, block: Block) -> None:
        """Give each lane its times: from a tape that holds for it, or from the simulator."""
        ranks = self.setup.scheduler.ranks(cast("StepView", _View(self.setup.graph, block.costs)))
        todo = np.arange(block.lanes)
        while len(todo):
            here, later = todo[: self.window], todo[self.window :]
            left = self._replay_any(ranks, block, here)
            if len(left):
                left = self._simulate_one(ranks, block, left)
            served = len(here) - len(left)
            self.window = min(LANES, 4 * self.window if not len(left) else max(8, 2 * served))
            todo = np.concatenate([left, later])

    def _replay_any(self, ranks: IntArray, block: Block, todo: IntArray) -> IntArray:
        """Try the known tapes; returns the lanes for which none holds."""
        for known in self.tapes.copy():
            if not len(todo):
                break
            left = self._replay(known, ranks, block, todo)
            self.tapes.remove(known)
            if len(left) < len(todo):
                self.tapes.insert(0, known)  # else its time is over: contexts only grow
            todo = left
        return todo

    def _simulate_one(self, ranks: IntArray, block: Block, todo: IntArray) -> IntArray:
        """Simulate the first of some lanes, and if it may be worth it make a tape of it; returns the lanes still to do."""
        lane = int(todo[0])
        log = self._record(block, lane)
        if self.pause:
            self.pause -= 1
        elif self.report.tapes < MAX_TAPES and block.lanes >= self.fewest:
            known = self._tape(block, log, ranks, lane)
            left = self._replay(known, ranks, block, todo, fresh=True)
            served = len(todo) - len(left)
            self.pauses = 1 if served >= FEW or not len(left) or self.report.tapes < FREE else 2 * self.pauses
            self.pause = self.pauses - 1
            todo = left
            if lane not in left:
                self._keep(known)
                return left
            if known.tape.shared is None:
                raise SimulationError(f"{known.tape} does not reproduce the step it was made from: {block.reason[lane]}")
            # Rounding may end a shared transfer at an instant that is another's: no tape holds that.
        block.take_log(lane, log)
        self.report.reasons[block.reason[lane] or "no tape was made for it"] += 1
        return todo[1:] if todo[0] == lane else todo

    def _tape(self, block: Block, log: EventLog, ranks: IntArray, lane: int) -> _Known:
        rank = ranks if ranks.ndim == 1 else ranks[:, lane]
        order = None if ranks.ndim == 1 else np.lexsort((np.arange(len(rank)), rank))
        rules = replace(self.rules, rank=rank.tolist())
        return _Known(Tape(self.setup.graph, log, rules, self.setup.latency, self.rate, block.costs.rows), order)

    def _keep(self, known: _Known) -> None:
        self.report.tapes += 1
        self.tapes.insert(0, known)
        self.shared.insert(0, known)
        del self.shared[Tapes.KEPT :]

    def _replay(self, known: _Known, ranks: IntArray, block: Block, todo: IntArray, *, fresh: bool = False) -> IntArray:
        """Replay what is left; returns the lanes that took other decisions. fresh: nothing says more why than this tape."""
        tape, order = known.tape, known.order
        whole = len(todo) == block.lanes
        found = tape.replay(block.costs if whole else block.costs.of(todo), self.setup.latency, self.rate)
        held = found.failed < 0
        if order is not None:
            here = ranks[order][:, todo]
            inverted = order[1:] < order[:-1]
            held &= ~((here[1:] < here[:-1]) | ((here[1:] == here[:-1]) & inverted[:, None])).any(axis=0)
        for lane, decision in zip(todo[~held].tolist(), found.failed[~held].tolist(), strict=True):
            if fresh or not block.reason[lane]:
                block.reason[lane] = tape.why(decision) if decision >= 0 else "order of ranks"
        block.take_lanes(todo[held], found, held, tape.engine_column)
        self.report.replayed += int(held.sum())
        return todo[~held]

    def _record(self, block: Block, lane: int) -> EventLog:
        compute, work, rows = block.costs
        alone = Request(context=int(block.steps.context[lane]), tokens=1, arrival=0)
        given = _Given(compute[rows, lane], work[rows, lane])
        return simulate(replace(self.setup, sequences=[alone], costs=given, batching=None, concurrency=None))


def _costs(setup: Setup, lanes: StepLanes) -> Costs:
    """The costs of some steps, with one row for tasks that cost the same in all of them."""
    distinct = getattr(setup.costs, "distinct", None)
    if distinct is not None:
        compute, work, rows = distinct(setup.graph, lanes)
    else:
        compute, work = setup.costs.durations(setup.graph, lanes)
        rows = np.arange(len(setup.graph))
    samples = [0, len(lanes.context) // 2, -1]
    likely = np.concatenate([compute[:, samples], work[:, samples]], axis=1)
    _, first, which = np.unique(likely, axis=0, return_index=True, return_inverse=True)
    same = first[which]
    differ = ((compute[same] != compute) | (work[same] != work)).any(axis=1)
    same[differ] = np.flatnonzero(differ)
    kept, place = np.unique(same, return_inverse=True)
    return Costs(compute[kept], work[kept], place[rows])
