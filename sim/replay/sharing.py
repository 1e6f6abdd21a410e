"""A channel that all pending transfers share equally, replayed: the recurrence of `sim.hardware.channel` on lanes.

It is no max-plus program, since who is in service sets the rate of all. So the instants at which the plan changes are replayed
one by one, in the recorded order; a lane in which another instant would come first, or two would coincide, fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.graph import IntArray
from sim.replay.program import ZERO, Program


@dataclass(slots=True)
class Instant:
    """row: its time. before: the time of the last one. Tasks in service until now, that arrive, that end.

    arrival_rows: if none ends, the rows that set its time.
    """

    row: int
    before: int
    active: list[int]
    arrivals: list[int]
    arrival_rows: list[int]
    departures: list[int]


class SharedChannel:
    """The instants of a recorded step.

    order: transfers in order of arrival at the channel, at times `at` and rows `at_row`. loaded, arrived: time and row of the
    end of each transfer.
    """

    def __init__(
        self, program: Program, order: list[int], at: dict[int, int], at_row: dict[int, int], loaded: list[int],
        arrived: list[int],
    ) -> None:  # fmt: skip
        self.program, self.order = program, order
        coming: dict[int, list[int]] = {}
        going: dict[int, list[int]] = {}
        for task in order:
            coming.setdefault(at[task], []).append(task)
            going.setdefault(loaded[task], []).append(task)
        active: list[int] = []
        before = ZERO
        self.instants: list[Instant] = []
        self.together: list[tuple[int, int]] = []  # rows that must be at the same time
        for time in sorted({*coming, *going}):
            arrivals, departures = coming.get(time, []), going.get(time, [])
            rows = [at_row[task] for task in arrivals]
            if departures:  # they set the time; what arrives with them may do so because they end: it is a decision
                row = program.row((before,))
                self.together += [(row, at) for at in rows]
                rows = []
            else:
                row = program.row((before, *rows))
            program.instant[row] = len(self.instants)
            self.instants.append(Instant(row, before, list(active), arrivals, rows, departures))
            for task in departures:
                active.remove(task)
                program.sources[arrived[task]] = (row,)
            active += arrivals
            before = row

    def service(self, work: IntArray, cap: tuple[int, int]) -> Service:
        """Serve lanes whose transfers take `work` [task, lane] at full speed. cap: largest share of one port."""
        return Service(self, work, cap)


class Service:
    """One run over lanes: the work that remains, who got what, and which lanes left the recorded order."""

    def __init__(self, channel: SharedChannel, work: IntArray, cap: tuple[int, int]) -> None:
        self.channel, self.cap = channel, cap
        self.remaining = work.copy()
        self.failed = np.zeros(work.shape[1], dtype=np.bool_)
        self._grants: list[tuple[list[int], IntArray, IntArray, IntArray]] = []

    def instant(self, number: int, times: IntArray) -> None:
        """Compute the time of an instant and deliver what was served until then."""
        instant, index = self.channel.instants[number], self.channel.program.index
        before, now = times[index[instant.before]], times[index[instant.row]]
        if instant.active:
            share, denominator = self._shares(len(instant.active))
            left = self.remaining[instant.active]
            first_end = before + -(-left.min(axis=0) * denominator // share)
        if instant.departures:
            now[:] = first_end
        else:
            now[:] = times[index[instant.arrival_rows[0]]]
            if instant.active:
                self.failed |= now >= first_end
        if number:
            self.failed |= now <= before
        for row in instant.arrival_rows:
            self.failed |= times[index[row]] != now
        if instant.active:
            self._deliver(instant, left, before, now, share, denominator)

    def _shares(self, active: int) -> tuple[int, int]:
        num, den = self.cap
        return (num, den) if active * num <= den else (1, active)

    def _deliver(self, instant: Instant, left: IntArray, before: IntArray, now: IntArray, share: int, denominator: int) -> None:
        elapsed = now - before
        each = elapsed * share // denominator
        got = np.minimum(each, left)
        over = elapsed * (share * len(left)) // denominator - got[:-1].sum(axis=0)
        got[-1] = np.minimum(over, left[-1])
        left = left - got
        self.remaining[instant.active] = left
        ends = np.array([task in instant.departures for task in instant.active])
        self.failed |= (left[ends] != 0).any(axis=0) | (left[~ends] == 0).any(axis=0)
        self._grants.append((instant.active, before.copy(), now.copy(), got))

    def grants(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """(tasks [grant], start, end, work [grant, lane]), in order of time."""
        if not self._grants:
            empty = np.zeros((0, len(self.failed)), dtype=np.int64)
            return np.zeros(0, dtype=np.int64), empty, empty, empty
        counts = [len(tasks) for tasks, _, _, _ in self._grants]
        tasks = np.array([task for tasks, _, _, _ in self._grants for task in tasks], dtype=np.int64)
        starts = np.repeat(np.stack([start for _, start, _, _ in self._grants]), counts, axis=0)
        ends = np.repeat(np.stack([end for _, _, end, _ in self._grants]), counts, axis=0)
        return tasks, starts, ends, np.concatenate([work for _, _, _, work in self._grants])
