"""Some steps of a sequence, as they become known; and the event log that they make up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.eventlog import Column, EventLog, GrantTable, StepTable, TaskTable
from sim.graph import IntArray, Members, StepLanes
from sim.replay.program import Rows
from sim.replay.tape import Costs, Lanes
from sim.serving import Batch
from sim.simulation import Setup, member_table
from sim.tasks import TaskGraph

TIMES = ("ready", "start", "loaded", "end")
LANES_AT_ONCE = 64  # transposed at once: short enough a walk through memory


@dataclass(slots=True)
class _Piece:
    """Lanes of a block whose times come from one tape or one log: times [place, lane], relative to the release of each."""

    lanes: IntArray
    times: IntArray
    places: Sequence[Rows | slice]  # of each of `TIMES`
    engine: npt.NDArray[np.int16]
    by_lane: IntArray | None = None  # absolute, made when the first column is wanted; then `times` are gone

    def write(self, column: int, released: IntArray, out: IntArray) -> None:
        """The times of a column into out [lane of the block, task]."""
        if self.by_lane is None:
            self.by_lane = np.empty(self.times.shape[::-1], dtype=np.int64)
            for first in range(0, len(self.lanes), LANES_AT_ONCE):
                here = slice(first, first + LANES_AT_ONCE)
                self.by_lane[here] = self.times[:, here].T
                self.by_lane[here] += released[self.lanes[here], None]
            self.times = self.times[:0]
        places = self.places[column]
        if isinstance(places, slice):
            out[self.lanes] = self.by_lane[:, places]
        elif len(self.lanes) == len(out):
            np.take(self.by_lane, places, axis=1, out=out, mode="clip")
        else:
            out[self.lanes] = np.take(self.by_lane, places, axis=1)


class Block:
    """Costs and times of its steps. `reason`: why each step had to be simulated, as far as it is known."""

    def __init__(self, graph: TaskGraph, steps: StepLanes, costs: Costs) -> None:
        self.graph, self.steps, self.costs = graph, steps, costs
        self.lanes = len(steps.context)
        self.reason = [""] * self.lanes
        self.simulated: list[int] = []
        self.released = self.ends = self._lengths = np.zeros(self.lanes, dtype=np.int64)
        self._pieces: list[_Piece] = []
        self._grants: list[tuple[IntArray, IntArray, IntArray, IntArray, IntArray]] = []  # lane, task, start, end, work

    def take_lanes(self, lanes: IntArray, found: Lanes, held: npt.NDArray[np.bool_], engine: npt.NDArray[np.int16]) -> None:
        """Those of the replayed lanes that held."""
        if not len(lanes):
            return
        every = bool(held.all())
        times, length = (found.times, found.length) if every else (found.times[:, held], found.length[held])
        self._pieces.append(_Piece(lanes, times, found.columns, engine))
        self._lengths[lanes] = length
        tasks, *grants = found.grants
        start, end, work = ((rows if every else rows[:, held]).T.ravel() for rows in grants)
        self._grants.append((np.repeat(lanes, len(tasks)), np.tile(tasks, len(lanes)), start, end, work))

    def take_log(self, lane: int, log: EventLog) -> None:
        """A lane that was simulated on its own, released at 0."""
        self.simulated.append(lane)
        t, g, n = log.tasks, log.grants, len(log.tasks)
        times = np.concatenate([t.ready, t.start, t.loaded, t.end])[:, None]
        places = [slice(i * n, (i + 1) * n) for i in range(len(TIMES))]
        self._pieces.append(_Piece(np.array([lane]), times, places, t.engine))
        self._lengths[lane] = log.makespan
        self._grants.append((np.full(len(g), lane), g.task, g.start, g.end, g.work))

    def cut(self, lanes: int) -> None:
        """Keep only so many of the first steps."""
        kept = np.arange(lanes)
        self.costs, self.steps, self.lanes = self.costs.of(kept), _first(self.steps, lanes), lanes
        self.released, self.ends, self._lengths = self.released[:lanes], self.ends[:lanes], self._lengths[:lanes]
        pieces = [(piece, piece.lanes < lanes) for piece in self._pieces]
        self._pieces = [_Piece(p.lanes[some], p.times[:, some], p.places, p.engine) for p, some in pieces if some.any()]
        self._grants = [tuple(column[g[0] < lanes] for column in g) for g in self._grants]  # type: ignore[misc]

    def place(self, released: int) -> int:
        """Put the steps one after another; returns when the last has ended."""
        self.ends = released + np.cumsum(self._lengths)
        self.released = self.ends - self._lengths
        return int(self.ends[-1])

    def times(self, column: int, out: IntArray) -> None:
        """One of `TIMES` into out [lane, task]."""
        for piece in self._pieces:
            piece.write(column, self.released, out)

    def engines(self, out: npt.NDArray[np.int16]) -> None:
        """The engine of each task into out [lane, task]."""
        for piece in self._pieces:
            out[piece.lanes] = piece.engine

    def grants(self, first: int) -> list[IntArray]:
        """Rows, start, end, work of the grants, in order of time. first: row of the first task of the block."""
        lane, task, start, end, work = (np.concatenate(columns) for columns in zip(*self._grants, strict=True))
        if len(self._grants) > 1:
            order = np.argsort(lane, kind="stable")
            lane, task, start, end, work = (column[order] for column in (lane, task, start, end, work))
        self._grants.clear()
        return [first + lane * len(self.graph) + task, start + self.released[lane], end + self.released[lane], work]


def _first(steps: StepLanes, lanes: int) -> StepLanes:
    """The first of some steps."""
    members = steps.members
    if members is not None:
        columns = {name: getattr(members, name)[..., :lanes] for name in ("sequence", "context", "query", "loads", "logits")}
        members = Members(**columns)
    return StepLanes(sequence=steps.sequence[:lanes], token=steps.token[:lanes], context=steps.context[:lanes], members=members)


def assemble(
    setup: Setup, blocks: list[Block], step: int = 0, row: int = 0, *, batches: Sequence[Batch] | None = None,
    arrival: IntArray | None = None,
) -> EventLog:  # fmt: skip
    """One log from blocks that follow one another; `step` and `row` number the first step and its first task.

    batches: who took part in each step, where steps are batched; then `arrival` says when each sequence came.
    """
    lanes, tasks = [block.lanes for block in blocks], [len(block.graph) for block in blocks]
    at = np.cumsum([0, *(n * k for n, k in zip(lanes, tasks, strict=True))]).tolist()
    where = [(slice(*bounds), (n, k)) for bounds, n, k in zip(pairwise(at), lanes, tasks, strict=True)]
    parts = [block.grants(row + first) for block, first in zip(blocks, at, strict=False)]
    grants = [np.concatenate(column) for column in zip(*parts, strict=True)]
    costs = [block.costs for block in blocks]  # and not the blocks: they hold the times
    size = np.repeat(np.array(tasks, dtype=np.int64), lanes)
    graphs = {id(block.graph): block.graph for block in blocks}
    numbers = {key: number for number, key in enumerate(graphs)}

    def filled(write: Callable[[Block, Any], None], dtype: type[np.integer]) -> Column:
        out: Column = np.empty(at[-1], dtype=dtype)
        for block, (here, shape) in zip(blocks, where, strict=True):
            write(block, out[here].reshape(shape))
        return out

    def spread(part: int) -> Column:
        out = np.empty(at[-1], dtype=np.int64)
        for each, (here, shape) in zip(costs, where, strict=True):
            np.take(np.ascontiguousarray(each[part].T), each.rows, axis=1, out=out[here].reshape(shape), mode="clip")
        return out

    table = TaskTable.deferred(
        at[-1],
        {
            "step": lambda: np.repeat(np.arange(step, step + len(size), dtype=np.int32), size),
            "task": lambda: np.concatenate([np.tile(np.arange(k, dtype=np.int32), n) for _, (n, k) in where]),
            "engine": partial(filled, Block.engines, np.int16),
            **{name: partial(filled, partial(_times, i), np.int64) for i, name in enumerate(TIMES)},
            "compute": partial(spread, 0),
            "work": partial(spread, 1),
        },
    )
    steps = StepTable(
        sequence=np.zeros(len(size), dtype=np.int32),
        token=np.concatenate([block.steps.token for block in blocks]).astype(np.int32),
        context=np.concatenate([block.steps.context for block in blocks]),
        graph=np.repeat(np.array([numbers[id(block.graph)] for block in blocks], dtype=np.int32), lanes),
        first=row + np.cumsum(size) - size,
        released=np.concatenate([block.released for block in blocks]),
        end=np.concatenate([block.ends for block in blocks]),
    )
    came = np.array([request.arrival for request in setup.sequences], dtype=np.int64) if arrival is None else arrival
    return EventLog(
        graphs=tuple(graphs.values()), tasks=table, steps=steps, engines=setup.engines, channels=1, bandwidth=setup.bandwidth,
        arrival=came, batched=None if batches is None else member_table(batches),
        grants=GrantTable(
            task=grants[0], channel=np.zeros(len(grants[0]), dtype=np.int16), start=grants[1], end=grants[2], work=grants[3]
        ),
    )  # fmt: skip


def _times(column: int, block: Block, out: IntArray) -> None:
    block.times(column, out)
