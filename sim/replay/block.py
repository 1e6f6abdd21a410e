"""Some steps of a sequence, as they become known; and the event log that they make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sim.eventlog import Column, EventLog, GrantTable, StepTable, TaskTable
from sim.graph import IntArray, Members, StepLanes
from sim.record import member_table
from sim.replay.program import Rows
from sim.replay.tape import Costs, Lanes
from sim.serving import Batch
from sim.simulation import Setup
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

    def write(self, released: IntArray, out: Sequence[IntArray]) -> None:
        """The times into a column each, [lane of the block, task]."""
        for first in range(0, len(self.lanes), LANES_AT_ONCE):
            here = slice(first, first + LANES_AT_ONCE)
            lanes = self.lanes[here]
            by_lane = np.add(self.times[:, here].T, released[lanes, None], order="C")
            neighbours = slice(int(lanes[0]), int(lanes[-1]) + 1)
            for places, column in zip(self.places, out, strict=True):
                if len(lanes) < neighbours.stop - neighbours.start:
                    column[lanes] = by_lane[:, places]
                elif isinstance(places, slice):
                    column[neighbours] = by_lane[:, places]
                else:
                    np.take(by_lane, places, axis=1, out=column[neighbours], mode="clip")


class Block:
    """Costs and times of its steps. `reason`: why each step had to be simulated, as far as it is known."""

    def __init__(self, graph: TaskGraph, steps: StepLanes, costs: Costs) -> None:
        self.graph, self.steps, self.costs = graph, steps, costs
        self.lanes = len(steps.context)
        self.reason = [""] * self.lanes
        self.simulated: list[int] = []
        self.released = self.ends = self._lengths = np.zeros(self.lanes, dtype=np.int64)
        self._pieces: list[_Piece] = []
        self._grants: list[tuple[IntArray, IntArray, tuple[IntArray, ...]]] = []  # lanes, tasks, start, end, work

    def take_lanes(self, lanes: IntArray, found: Lanes, held: npt.NDArray[np.bool_], engine: npt.NDArray[np.int16]) -> None:
        """Those of the replayed lanes that held."""
        if not len(lanes):
            return
        every = bool(held.all())
        times, length = (found.times, found.length) if every else (found.times[:, held], found.length[held])
        self._pieces.append(_Piece(lanes, times, found.columns, engine))
        self._lengths[lanes] = length
        tasks, *grants = found.grants
        self._grants.append((lanes, tasks, tuple(rows if every else rows[:, held] for rows in grants)))

    def take_log(self, lane: int, log: EventLog) -> None:
        """A lane that was simulated on its own, released at 0."""
        self.simulated.append(lane)
        t, g, n = log.tasks, log.grants, len(log.tasks)
        times = np.concatenate([t.ready, t.start, t.loaded, t.end])[:, None]
        places = [slice(i * n, (i + 1) * n) for i in range(len(TIMES))]
        self._pieces.append(_Piece(np.array([lane]), times, places, t.engine))
        self._lengths[lane] = log.makespan
        self._grants.append((np.array([lane]), g.task, (g.start[:, None], g.end[:, None], g.work[:, None])))

    def cut(self, lanes: int) -> None:
        """Keep only so many of the first steps."""
        kept = np.arange(lanes)
        self.costs, self.steps, self.lanes = self.costs.of(kept), _first(self.steps, lanes), lanes
        self.released, self.ends, self._lengths = self.released[:lanes], self.ends[:lanes], self._lengths[:lanes]
        pieces = [(piece, piece.lanes < lanes) for piece in self._pieces]
        self._pieces = [_Piece(p.lanes[some], p.times[:, some], p.places, p.engine) for p, some in pieces if some.any()]
        grants = [(lanes_of < lanes, lanes_of, tasks, rows) for lanes_of, tasks, rows in self._grants]
        self._grants = [(of[some], tasks, tuple(r[:, some] for r in rows)) for some, of, tasks, rows in grants if some.any()]

    def place(self, released: int) -> int:
        """Put the steps one after another; returns when the last has ended."""
        self.ends = released + np.cumsum(self._lengths)
        self.released = self.ends - self._lengths
        return int(self.ends[-1])

    def times(self, out: Sequence[IntArray]) -> None:
        """All `TIMES` into a column each, [lane, task]; then they are gone from here."""
        for piece in self._pieces:
            piece.write(self.released, out)
            piece.times = np.empty((0, 0), dtype=np.int64)  # a part of the old ones would keep them all

    def engines(self, out: npt.NDArray[np.int16]) -> None:
        """The engine of each task into out [lane, task]."""
        for piece in self._pieces:
            out[piece.lanes] = piece.engine

    @property
    def granted(self) -> int:
        """How many grants there are."""
        return sum(len(lanes) * len(tasks) for lanes, tasks, _ in self._grants)

    def grants(self, first: int, out: IntArray) -> None:
        """Rows, start, end, work of the grants into a column each, in order of time; then they are gone from here.

        first: row of the first task of the block.
        """
        count = np.zeros(self.lanes, dtype=np.int64)
        for lanes, tasks, _ in self._grants:
            count[lanes] = len(tasks)
        begin = np.cumsum(count) - count
        for lanes, tasks, rows in self._grants:
            released = self.released[lanes, None]
            start, end, work = (each.T for each in rows)
            at = begin[lanes, None] + np.arange(len(tasks))
            by_lane = (first + lanes[:, None] * len(self.graph) + tasks, start + released, end + released, work)
            for values, column in zip(by_lane, out, strict=True):
                column[at] = values
        self._grants.clear()


def _first(steps: StepLanes, lanes: int) -> StepLanes:
    """The first of some steps."""
    members = steps.members
    if members is not None:
        columns = {name: getattr(members, name)[..., :lanes] for name in ("sequence", "context", "query", "loads", "logits")}
        members = Members(**columns)
    return StepLanes(sequence=steps.sequence[:lanes], token=steps.token[:lanes], context=steps.context[:lanes], members=members)


def assemble(
    setup: Setup, blocks: list[Block], step: int = 0, row: int = 0, *, batches: Sequence[Batch], arrival: IntArray
) -> EventLog:  # fmt: skip
    """One log from blocks that follow one another; `step` and `row` number the first step and its first task.

    batches: who took part in each step, if steps are batched. arrival: when each sequence came.
    """
    lanes, tasks = [block.lanes for block in blocks], [len(block.graph) for block in blocks]
    at = np.cumsum([0, *(n * k for n, k in zip(lanes, tasks, strict=True))]).tolist()
    where = [(slice(*bounds), (n, k)) for bounds, n, k in zip(pairwise(at), lanes, tasks, strict=True)]
    granted = np.cumsum([0, *(block.granted for block in blocks)]).tolist()
    grants = np.empty((4, granted[-1]), dtype=np.int64)
    for block, first, bounds in zip(blocks, at, pairwise(granted), strict=False):
        block.grants(row + first, grants[:, slice(*bounds)])
    costs = [block.costs for block in blocks]  # and not the blocks: they hold the times
    size = np.repeat(np.array(tasks, dtype=np.int64), lanes)
    graphs = {id(block.graph): block.graph for block in blocks}
    numbers = {key: number for number, key in enumerate(graphs)}

    def times() -> dict[str, Column]:
        columns = {name: np.empty(at[-1], dtype=np.int64) for name in TIMES}
        for block, (here, shape) in zip(blocks, where, strict=True):
            block.times([column[here].reshape(shape) for column in columns.values()])
        return {**columns}

    def tasks_of_steps() -> Column:
        out = np.empty(at[-1], dtype=np.int32)
        for here, (n, k) in where:
            out[here].reshape(n, k)[:] = np.arange(k)
        return out

    def engines() -> Column:
        out = np.empty(at[-1], dtype=np.int16)
        for block, (here, shape) in zip(blocks, where, strict=True):
            block.engines(out[here].reshape(shape))
        return out

    def durations() -> dict[str, Column]:
        columns: dict[str, Column] = {name: np.empty(at[-1], dtype=np.int64) for name in ("compute", "work")}
        for here, shape in where:
            *parts, rows = costs.pop(0)
            for part, column in zip(parts, columns.values(), strict=True):
                np.take(np.ascontiguousarray(part.T), rows, axis=1, out=column[here].reshape(shape), mode="clip")
        return columns

    table = TaskTable.deferred(
        at[-1],
        {
            "step": lambda: np.repeat(np.arange(step, step + len(size), dtype=np.int32), size),
            "task": tasks_of_steps,
            "engine": engines,
            **dict.fromkeys(TIMES, times),
            **dict.fromkeys(("compute", "work"), durations),
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
    return EventLog(
        graphs=tuple(graphs.values()), tasks=table, steps=steps, engines=setup.engines, channels=1, bandwidth=setup.bandwidth,
        arrival=arrival, batched=member_table(batches, step) if batches else None,
        grants=GrantTable(
            task=grants[0], channel=np.zeros(len(grants[0]), dtype=np.int16), start=grants[1], end=grants[2], work=grants[3]
        ),
    )  # fmt: skip
