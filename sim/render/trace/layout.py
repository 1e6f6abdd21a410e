"""From an event log to tracks: which slices and counters a trace shows, and where.

    Machine
      Engines     busy engines, ready queue (counters); engine n: what ran, with `channel wait` and `load` nested
      Memory      GB/s delivered, outstanding transfers (counters); for each channel lanes of transfers being served,
                  and below them lanes of transfers that queue
      critical path (if it is given)
      Requests    batch size, KV cache (counters), where there are several sequences
    Sequences
      sequence n
        token k   the chain of tasks that decided its end, as token > layer > op, with waiting as slices of its own
          ops     every task of the token, preceded by its wait for an engine, in as many lanes as run or wait at once

Where steps are batched, each sequence has one track with the part it took in each step, and the tracks of tokens are
those of steps, `Steps` > loop n > step k.

Tokens that do not overlap share a track (a thousand tokens of sampled decode are one line to scroll along); tokens that
do overlap get one each. A chain never overlaps itself, so that line can be read from left to right without a gap.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sim.analysis.series import Levels, batches, cached
from sim.log import derived
from sim.log.tables import EventLog
from sim.render.trace.requests import parts_taken
from sim.render.trace.tracks import Counter, Role, Slices, Strings, Times, Tracks, colours, lanes, steps_of, thin

Rows = npt.NDArray[np.int64]

WAIT_ENGINE = "engine wait"
WAIT_CHANNEL = "channel wait"
WAIT_INPUT = "input wait"
WAIT_SRAM = "SRAM wait"

#: Tracks that a viewer should expand on arrival, by name: all but the two that have a line for each of many things.
EXPANDED = r"^(?!ops$|.* queue$)"

Window = tuple[int, int] | None


class Layout:
    """The tracks of a log, built as its groups of slices are asked for: machine, then counters, then sequences.

    window: ps; keeps what overlaps it. critical: rows of the critical path in order; they get a track of their own.
    """

    def __init__(self, log: EventLog, window: Window = None, critical: Rows | None = None) -> None:
        self.log, self.window, self.critical = log, window, critical
        self.tracks, self.names, self.categories = Tracks(), Strings(), Strings()
        tasks = log.tasks

        # Names and layers are those of a task of a graph: made once for each, not per event.
        self._names_of_forms = np.array(
            [self.names(graph.name(task)) for graph in log.graphs for task in range(len(graph))], dtype=np.int32
        )
        self.form = derived.form(log)
        self.on_engine = tasks.engine >= 0
        self.service = derived.service(log)
        self.inside = np.ones(len(tasks), dtype=np.bool_)
        if window is not None:
            self.inside = (np.minimum(tasks.ready, tasks.start) < window[1]) & (tasks.end > window[0])
        self._machine = self.tracks.add("Machine", description="Engines and memory: who used what, and when.")

    def name_of(self, rows: Rows) -> npt.NDArray[np.int32]:
        return np.asarray(self._names_of_forms[self.form[rows]])

    def colour_of(self, rows: Rows) -> npt.NDArray[np.int32]:
        """One colour per token."""
        return colours(np.asarray(self.log.tasks.step[rows]))

    # Machine

    def machine(self) -> Slices:
        """Slices of the engines and of the memory channels."""
        groups = [*self._engines(), *self._memory()]
        if self.critical is not None:
            groups.append(self._critical_path(self.critical))
        if self._serves:
            group = self.tracks.add("Requests", self._machine, "What the machine serves at a time.")
            self._batch = self.tracks.add("batch size", group, "Sequences that the steps in progress take in.", "sequences")
            self._cache = self.tracks.add("KV cache", group, "Tokens in the KV cache of all sequences.", "tokens")
        return Slices.concatenate(groups).within(self.window)

    def _engines(self) -> Iterator[Slices]:
        log, tasks = self.log, self.log.tasks
        self._engine_group = self.tracks.add(
            "Engines", self._machine, "Compute engines. Colours tell tokens apart; gaps are idle time."
        )
        self._busy = self.tracks.add("busy engines", self._engine_group, "Engines that hold a task.", "engines")
        self._ready = self.tracks.add(
            "ready queue", self._engine_group, "Tasks whose inputs are there and that wait for an engine.", "tasks"
        )
        first = [
            self.tracks.add(
                f"engine {n}", self._engine_group, "What this engine ran; `load` is the time until its operands came."
            )
            for n in range(log.engines)
        ]
        rows = np.flatnonzero(self.on_engine & self.inside)
        track = np.array(first, dtype=np.int64)[tasks.engine[rows]] if len(rows) else rows
        yield Slices.make(
            track=track, start=tasks.start[rows], end=tasks.end[rows], name=self.name_of(rows), row=rows,
            category=self.categories("engine"), colour=self.colour_of(rows), role=Role.RUN,
        )  # fmt: skip
        yield from self._phases(rows, track, depth=1)

    def _phases(self, rows: Rows, track: Rows, depth: int) -> Iterator[Slices]:
        """The parts of tasks: the wait for the channel, and the load until their operands came, where they compute too."""
        tasks = self.log.tasks
        moving = self.service.moves[rows]
        rows, track = rows[moving], track[moving]
        yield Slices.make(
            track=track, start=tasks.start[rows], end=self.service.first[rows], name=self.names(WAIT_CHANNEL), row=rows,
            cause=derived.previous_on_channel(self.log)[rows], category=self.categories("wait"), depth=depth, role=Role.PHASE,
        )  # fmt: skip
        computes = tasks.compute[rows] > 0
        rows, track = rows[computes], track[computes]
        yield Slices.make(
            track=track, start=self.service.first[rows], end=self.service.last[rows], name=self.names("load"), row=rows,
            category=self.categories("memory"), depth=depth, role=Role.PHASE,
        )  # fmt: skip

    def _memory(self) -> Iterator[Slices]:
        log, tasks = self.log, self.log.tasks
        group = self.tracks.add("Memory", self._machine, "The memory channels that all engines share.")
        peak = f"{log.bandwidth / 1e9:.6g} GB/s"
        self._rates = [
            self.tracks.add(
                "GB/s delivered" if log.channels == 1 else f"GB/s delivered, channel {n}", group,
                f"Bytes that the channel delivers per second; its bandwidth is {peak}.", "GB/s",
            )
            for n in range(log.channels)
        ]  # fmt: skip
        self._outstanding = self.tracks.add(
            "outstanding transfers", group, "Transfers issued and not yet complete, served or queued.", "transfers"
        )
        rows = np.flatnonzero(self.service.moves & self.inside)
        channel = self.service.channel[rows]
        lane = lanes(channel, self.service.first[rows], self.service.last[rows])
        queued = rows[self.service.first[rows] > tasks.start[rows]]
        queue_lane = lanes(self.service.channel[queued], tasks.start[queued], self.service.first[queued])
        track, queue_track = np.zeros_like(rows), np.zeros_like(queued)
        for n in range(log.channels):
            title = "channel" if log.channels == 1 else f"channel {n}"
            mine, waiting = channel == n, self.service.channel[queued] == n
            served = self._lane_tracks(
                title,
                group,
                int(lane[mine].max(initial=-1)) + 1,
                "Transfers that the channel serves; several lanes are sharing it.",
            )
            queue = self._lane_tracks(
                f"{title} queue",
                group,
                int(queue_lane[waiting].max(initial=-1)) + 1,
                "Transfers that the channel does not serve yet.",
            )
            track[mine] = served[lane[mine]]
            queue_track[waiting] = queue[queue_lane[waiting]]
        yield Slices.make(
            track=track, start=self.service.first[rows], end=self.service.last[rows], name=self.name_of(rows), row=rows,
            category=self.categories("memory"), colour=self.colour_of(rows), role=Role.MOVE,
        )  # fmt: skip
        yield self._paused(rows, track)
        yield Slices.make(
            track=queue_track, start=tasks.start[queued], end=self.service.first[queued], name=self.name_of(queued), row=queued,
            cause=derived.previous_on_channel(self.log)[queued], category=self.categories("wait"),
            colour=self.colour_of(queued), role=Role.PHASE,
        )  # fmt: skip

    def _lane_tracks(self, title: str, parent: int, count: int, description: str) -> Rows:
        """Tracks for lanes: one alone stands under its parent, several get a group."""
        if count <= 1:
            return np.array([self.tracks.add(title, parent, description) for _ in range(count)], dtype=np.int64)
        group = self.tracks.add(title, parent, description)
        return np.array([self.tracks.add(f"lane {n}", group, description) for n in range(count)], dtype=np.int64)

    def _paused(self, rows: Rows, track: Rows) -> Slices:
        """Gaps in the service of a transfer: others had the channel (bursts, pre-emption)."""
        grants = self.log.grants
        order = np.lexsort((grants.start, grants.task))
        task, start, end = grants.task[order], grants.start[order], grants.end[order]
        gap = np.flatnonzero((task[1:] == task[:-1]) & (start[1:] > end[:-1]))
        gap = gap[self.inside[task[gap]]]
        track_of = np.zeros(len(self.log.tasks), dtype=np.int64)
        track_of[rows] = track
        return Slices.make(
            track=track_of[task[gap]], start=end[gap], end=start[gap + 1], name=self.names(WAIT_CHANNEL), row=task[gap],
            category=self.categories("wait"), depth=1, role=Role.PHASE,
        )  # fmt: skip

    def _critical_path(self, rows: Rows) -> Slices:
        """The path given, cut where a link starts before the one before it ended (a transfer queues meanwhile)."""
        track = self.tracks.add("critical path", self._machine, "The tasks that decided when the run ended.")
        tasks = self.log.tasks
        before = np.concatenate([[0], np.maximum.accumulate(tasks.end[rows])[:-1]]) if len(rows) else tasks.end[rows]
        return Slices.make(
            track=track, start=np.maximum(tasks.start[rows], before), end=tasks.end[rows], name=self.name_of(rows), row=rows,
            category=self.categories("critical path"), colour=self.colour_of(rows), role=Role.OP,
        )  # fmt: skip

    # Counters

    def counters(self) -> Iterator[Counter]:
        """Values over time. Each starts at 0 and is 0 again whenever nothing goes on."""
        tasks = self.log.tasks
        on = np.flatnonzero(self.on_engine)
        yield self._count(self._busy, tasks.start[on], tasks.end[on])
        yield self._count(self._ready, tasks.ready[on], tasks.start[on])
        for channel, track in enumerate(self._rates):
            yield self._clip(thin(self._rate(track, channel)))
        moving = np.flatnonzero(self.service.moves)
        yield self._count(self._outstanding, tasks.start[moving], self.service.last[moving])
        if self._serves:
            yield self._level(self._batch, batches(self.log))
            yield self._level(self._cache, cached(self.log))

    @property
    def _serves(self) -> bool:
        """Whether there is more than one sequence that decodes."""
        return self.log.batched is not None or len(self.log.arrival) > 1

    def _count(self, track: int, start: Times, end: Times) -> Counter:
        ones = np.ones(len(start), dtype=np.int64)
        time = np.concatenate([[0], start, end])
        time, value = steps_of(time, np.concatenate([[0], ones, -ones]))
        return self._clip(thin(Counter(track, time, value)))

    def _level(self, track: int, levels: Levels) -> Counter:
        time = np.concatenate([[0], levels.start, levels.end])
        time, value = steps_of(time, np.concatenate([[0], levels.value, -levels.value]))
        return self._clip(thin(Counter(track, time, value)))

    def _rate(self, track: int, channel: int) -> Counter:
        """GB/s: each grant delivers its work evenly over its interval."""
        grants = self.log.grants
        mine = np.flatnonzero((grants.channel == channel) & (grants.end > grants.start))
        start, end = grants.start[mine], grants.end[mine]
        share = grants.work[mine] / (end - start)
        time = np.concatenate([[0], start, end])
        _, open_ = steps_of(time, np.concatenate([[0], np.ones(len(mine)), -np.ones(len(mine))]))
        time, total = steps_of(time, np.concatenate([[0], share, -share]))
        # Sums of floats leave dust behind, so idle is 0 by count, and values keep nine digits.
        return Counter(
            track, time, np.where(open_ > 0.5, np.round(np.maximum(total, 0.0), 9), 0.0) * (self.log.bandwidth / 1e9)
        )

    def _clip(self, counter: Counter) -> Counter:
        """Keep the values of the window: those inside it, and the one it starts with, from there on."""
        if self.window is None:
            return counter
        first = max(int(np.searchsorted(counter.time, self.window[0], side="right")) - 1, 0)
        last = int(np.searchsorted(counter.time, self.window[1], side="right"))
        return Counter(counter.track, np.maximum(counter.time[first:last], self.window[0]), counter.value[first:last])

    # Sequences

    def sequences(self) -> Iterator[Slices]:
        """Slices of the tokens, one group per sequence."""
        steps = self.log.steps
        batched = self.log.batched is not None
        root = self.tracks.add("Sequences", description="Where the time of each token went.")
        if batched:
            yield parts_taken(self.log, self.names, self.categories, self.tracks, root).within(self.window)
            root = self.tracks.add("Steps", description="Where the time of each step went.")
        shown = np.flatnonzero(np.bincount(self.log.tasks.step[self.inside], minlength=len(steps)) > 0)
        for number in np.unique(steps.sequence[shown]):
            mine = shown[steps.sequence[shown] == number]
            if batched:
                parent = self.tracks.add(f"loop {number}", root, "A decode loop, step by step.")
            else:
                parent = self.tracks.add(f"sequence {number}", root, "One request, token by token.")
            yield self._sequence(mine, parent).within(self.window)

    def _sequence(self, steps: Rows, parent: int) -> Slices:
        log, table = self.log, self.log.steps
        lane = lanes(np.zeros_like(steps), table.released[steps], np.maximum(table.end[steps], table.released[steps] + 1))
        step_track = np.zeros(len(table), dtype=np.int64)
        pieces: list[Slices] = []
        word = "token" if log.batched is None else "step"
        for n in range(int(lane.max()) + 1):
            mine = steps[lane == n]
            title = (
                f"{word} {table.token[mine[0]]}"
                if len(mine) == 1
                else f"{word}s {table.token[mine[0]]}, {table.token[mine[1]]}, ..."
            )
            description = f"The chain of tasks that decided when the {word} ended: {word}, layer, op, and what it waited for."
            track = self.tracks.add(title, parent, description)
            step_track[mine] = track
            rows = np.concatenate([np.arange(log.rows(int(step)).start, log.rows(int(step)).stop) for step in mine])
            pieces += self._ops(rows[self.inside[rows]], track)
        pieces.append(
            Slices.make(
                track=step_track[steps], start=table.released[steps], end=table.end[steps], row=steps,
                name=np.array([self.names(f"{word} {token}") for token in table.token[steps]], dtype=np.int32),
                category=self.categories("token"), colour=colours(steps), role=Role.STEP,
            )
        )  # fmt: skip
        pieces += self._chain(steps, step_track)
        return Slices.concatenate(pieces)

    def _ops(self, rows: Rows, parent: int) -> Iterator[Slices]:
        """Every task in lanes: from when it was ready, or for a transfer by a DMA from when it was served."""
        tasks = self.log.tasks
        held = self.on_engine[rows]
        begin = np.where(held, tasks.ready[rows], self.service.first[rows])
        start = np.where(held, tasks.start[rows], self.service.first[rows])
        lane = lanes(np.zeros_like(rows), begin, tasks.end[rows])
        group = self.tracks.add("ops", parent, "All tasks of the token, each after its wait for an engine.")
        count = int(lane.max(initial=-1)) + 1
        track = np.array([self.tracks.add(f"lane {n}", group) for n in range(count)], dtype=np.int64)[lane]
        yield Slices.make(
            track=track, start=begin, end=start, name=self.names(WAIT_ENGINE), row=rows,
            cause=derived.previous_on_engine(self.log)[rows], category=self.categories("wait"), role=Role.PHASE,
        )  # fmt: skip
        yield Slices.make(
            track=track, start=start, end=tasks.end[rows], name=self.name_of(rows), row=rows,
            category=self.categories("op"), role=Role.OP,
        )  # fmt: skip

    def _chain(self, steps: Rows, step_track: Rows) -> Iterator[Slices]:
        """What decided the end of each token: layers around ops, with the waits before and inside them."""
        tasks = self.log.tasks
        found = derived.chains(self.log).of(steps)
        rows, track, begin = found.row, step_track[found.step], found.begin
        layer = derived.layer(self.log)[rows].astype(np.int64)
        change = np.append(True, (layer[1:] != layer[:-1]) | (found.step[1:] != found.step[:-1]))[: len(rows)]
        head = np.flatnonzero(change)
        tail = np.append(head[1:], len(rows)) - 1 if len(rows) else head
        inside = layer[head] >= 0
        head, tail = head[inside], tail[inside]
        yield Slices.make(
            track=track[head], start=begin[head], end=tasks.end[rows[tail]], depth=1,
            name=np.array([self.names(f"layer {n}") for n in layer[head]], dtype=np.int32),
            category=self.categories("layer"), role=Role.LAYER,
        )  # fmt: skip
        wait = self.categories("wait")
        yield Slices.make(
            track=track, start=begin, end=tasks.ready[rows], name=self.names(WAIT_INPUT), row=rows, cause=found.cause,
            depth=2, category=wait, role=Role.PHASE,
        )  # fmt: skip
        held = self.on_engine[rows]
        yield Slices.make(
            track=track, start=tasks.ready[rows], end=tasks.start[rows], row=rows, depth=2, category=wait, role=Role.PHASE,
            name=np.where(held, self.names(WAIT_ENGINE), self.names(WAIT_SRAM)),
            cause=np.where(held, derived.previous_on_engine(self.log)[rows], -1),
        )  # fmt: skip
        yield Slices.make(
            track=track, start=tasks.start[rows], end=tasks.end[rows], name=self.name_of(rows), row=rows, depth=2,
            category=self.categories("op"), role=Role.OP,
        )  # fmt: skip
        yield from self._phases(rows, track, depth=3)
