"""Common ground of the groups of a trace: its tracks and strings, and the columns of the log that slices are made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sim.log import derived
from sim.log.tables import EventLog
from sim.render.trace.tracks import Role, Slices, Strings, Tracks, colors

Rows = npt.NDArray[np.int64]
Window = tuple[int, int] | None

WAIT_ENGINE = "engine wait"
WAIT_CHANNEL = "channel wait"
WAIT_INPUT = "input wait"
HOST = "host"
WAIT_SRAM = "SRAM wait"
WAIT_EITHER = "engine or SRAM wait"


class Canvas:
    """Tracks and strings of a trace, and columns of its log.

    window: ps. inside: bool [row], the tasks that overlap it. on_engine: bool [row], the tasks that an engine ran.
    """

    def __init__(self, log: EventLog, window: Window) -> None:
        self.log, self.window = log, window
        self.tracks, self.names, self.categories = Tracks(), Strings(), Strings()
        self.service, self.on_engine = derived.service(log), log.tasks.engine >= 0
        # A name belongs to a task of a graph: it is made once for each, not per event.
        self._names_of_forms = np.array(
            [self.names(graph.name(task)) for graph in log.graphs for task in range(len(graph))], dtype=np.int32
        )
        self.inside = np.ones(len(log.tasks), dtype=np.bool_)
        if window is not None:
            self.inside = (np.minimum(log.tasks.ready, log.tasks.start) < window[1]) & (log.tasks.end > window[0])

    def name_of(self, rows: Rows) -> npt.NDArray[np.int32]:
        """Names of tasks, as numbers of strings."""
        return np.asarray(self._names_of_forms[derived.form(self.log)[rows]])

    def start_waits(self, rows: Rows) -> npt.NDArray[np.int32]:
        """Names of waits from ready to start, as numbers of strings: of tasks on engines, and of transfers by a DMA."""
        either = WAIT_ENGINE if self.log.sram is None else WAIT_EITHER  # of a task that loads its own operands
        of_engine = np.where(self.log.tasks.work[rows] > 0, self.names(either), self.names(WAIT_ENGINE))
        return np.asarray(np.where(self.on_engine[rows], of_engine, self.names(WAIT_SRAM)), dtype=np.int32)

    def color_of(self, rows: Rows) -> npt.NDArray[np.int32]:
        """Colors of tasks: those of their steps."""
        return self.color_of_steps(np.asarray(self.log.tasks.step[rows]))

    def color_of_steps(self, steps: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Colors of steps: one for each. In batches, which do not overlap, one for decode and one for steps that prefill."""
        if self.log.batched is None:
            return colors(steps)
        return colors(np.where(derived.prefills(self.log)[steps], 1, 0))

    def phases(self, rows: Rows, track: Rows, depth: int) -> Iterator[Slices]:
        """Parts of tasks: the wait for the channel and, where they compute too, the load of their operands."""
        tasks = self.log.tasks
        moving = self.service.moves[rows]
        rows, track = rows[moving], track[moving]
        yield Slices.make(
            track=track, start=derived.issued(self.log)[rows], end=self.service.first[rows], row=rows,
            name=self.names(WAIT_CHANNEL), cause=derived.previous_on_channel(self.log)[rows],
            category=self.categories("wait"), depth=depth, role=Role.PHASE,
        )  # fmt: skip
        computes = tasks.compute[rows] > 0
        rows, track = rows[computes], track[computes]
        yield Slices.make(
            track=track, start=self.service.first[rows], end=self.service.last[rows], name=self.names("load"), row=rows,
            category=self.categories("memory"), depth=depth, role=Role.PHASE,
        )  # fmt: skip
