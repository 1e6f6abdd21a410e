"""The columnar record of a run: what ran, where and when. Everything shown to a user is derived from it.

Times are int64 picoseconds; there is no Python object per event. A task row takes 58 bytes, a grant row 34. Columns that
follow from what is kept anyway may come later, when they are first read: a replayed run keeps each time once, in some
12 bytes a task, until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sim.tasks import TaskGraph

Column = npt.NDArray[np.integer]


class Table:
    """A table whose columns may be made on first use."""

    __slots__ = ("_later", "_rows")

    @classmethod
    def deferred(cls, rows: int, columns: Mapping[str, Callable[[], Column]]) -> Self:
        """A table of so many rows; each column is what its function returns, once it is wanted."""
        table = object.__new__(cls)
        object.__setattr__(table, "_later", dict(columns))
        object.__setattr__(table, "_rows", rows)
        return table

    def __getattr__(self, name: str) -> Any:
        """Only called while a column is not there yet."""
        if name in Table.__slots__ or name not in getattr(self, "_later", ()):
            raise AttributeError(f"{type(self).__name__} has no column {name!r}", name=name, obj=self)
        column = self._later[name]()
        object.__setattr__(self, name, column)
        del self._later[name]  # and with it what only this column was made from
        return column


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTable(Table):
    """One row per task, in order of step and, within a step, of the task graph.

    step: row of the step table; task: index in the step's task graph.
    engine: the engine that ran it, -1 for a transfer that a DMA issued.
    ready: all its inputs had ended (and its step was released).
    start: an engine took it; for a DMA transfer: it was issued, SRAM had room.
    loaded: its operands had arrived (equals `start` where it loads nothing). Under `blocking` it computes from then on.
    end: it had finished.
    compute: its time on an engine. work: its transfer at the full speed of one channel, without latency; over how many
    channels it is spread, the grants say.
    """

    step: npt.NDArray[np.int32]
    task: npt.NDArray[np.int32]
    engine: npt.NDArray[np.int16]
    ready: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    loaded: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    compute: npt.NDArray[np.int64]
    work: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return self._rows if hasattr(self, "_rows") else len(self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantTable:
    """One row for each interval in which a channel served one transfer at one rate, in order of `end`.

    task: row of the task table whose bytes moved. work: picoseconds of the channel's full bandwidth delivered in [start, end).
    """

    task: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int16]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    work: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """One row per decode step, in order of sequence and token.

    sequence, token: which. context: tokens in the KV cache when it starts. graph: index into `EventLog.graphs`.
    first: row of its first task. released: the first instant at which its tasks could run. end: its last task ended.
    """

    sequence: npt.NDArray[np.int32]
    token: npt.NDArray[np.int32]
    context: npt.NDArray[np.int64]
    graph: npt.NDArray[np.int32]
    first: npt.NDArray[np.int64]
    released: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A whole run. `engines` and `channels` count them; `bandwidth` is bytes/s of each channel."""

    graphs: tuple[TaskGraph, ...]
    tasks: TaskTable
    grants: GrantTable
    steps: StepTable
    engines: int
    channels: int
    bandwidth: int

    @property
    def makespan(self) -> int:
        """Picoseconds from 0 to the end of the last task."""
        return int(self.steps.end.max(initial=0))

    def rows(self, step: int) -> slice:
        """The rows of the task table that belong to a step."""
        first = int(self.steps.first[step])
        return slice(first, first + len(self.graphs[self.steps.graph[step]]))

    def bytes_moved(self) -> npt.NDArray[np.int64]:
        """Bytes through the channel, per row of the task table."""
        moved = np.zeros(len(self.tasks), dtype=np.int64)
        for number, graph in enumerate(self.graphs):
            steps = np.flatnonzero(self.steps.graph == number)
            tasks = np.flatnonzero(graph.moves)
            rows = self.steps.first[steps][:, None] + tasks
            moved[rows] = graph.bytes_moved(graph.ops.costs(self.steps.context[steps]), tasks).T
        return moved

    def name(self, row: int) -> str:
        """What to call the task of a row."""
        graph = self.graphs[int(self.steps.graph[self.tasks.step[row]])]
        return graph.name(int(self.tasks.task[row]))
