"""A channel that all pending transfers share equally, replayed: the recurrence of `sim.hardware.channel` on lanes.

It is no max-plus program, since who is in service sets the rate of all. So the instants at which the plan changes are replayed
one by one, in the recorded order; a lane in which another instant would come first, or two would coincide, fails.
The rate of all is what the arbiter itself plans for so many transfers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.graph import IntArray
from sim.replay.program import ZERO, Program

Rate = Callable[[int], tuple[int, int]]  # share of each of n transfers in service: numerator, denominator
EXACT = 2**62  # products below this fit int64


@dataclass(slots=True)
class Instant:
    """row: its time. before: the time of the last one. Tasks in service until now, that arrive, that end.

    arrival_rows: the rows that set its time; if there are none, it is the first end of a transfer in service. What ends
    though an arrival sets the time had work left for less than a picosecond, and got it from what the floors left over.
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
    end of each transfer. work: of each, as recorded, at that rate.
    """

    def __init__(
        self, program: Program, order: list[int], at: dict[int, int], at_row: dict[int, int], loaded: list[int],
        arrived: list[int], work: list[int], rate: Rate,
    ) -> None:  # fmt: skip
        self.program, self.order = program, order
        coming: dict[int, list[int]] = {}
        going: dict[int, list[int]] = {}
        for task in order:
            coming.setdefault(at[task], []).append(task)
            going.setdefault(loaded[task], []).append(task)
        active: list[int] = []
        remaining = dict(enumerate(work))
        before, since = ZERO, 0
        self.instants: list[Instant] = []
        self.together: list[tuple[int, int]] = []  # rows that must be at the same time
        for time in sorted({*coming, *going}):
            arrivals, departures = coming.get(time, []), going.get(time, [])
            ended = {arrived[task] for task in departures}
            rows = [at_row[task] for task in arrivals if at_row[task] not in ended]
            if active:
                share, denominator = rate(len(active))
                first_end = since - (-min(remaining[task] for task in active) * denominator // share)
            # A departure sets the time, and what arrives then, too, is a decision; unless an arrival does, see `Instant`. If
            # others come in for those that end then, they are a second arrival at that instant: no tape holds that.
            if departures and (time == first_end or len(rows) < len(arrivals)):
                row = program.row((before,))
                self.together += [(row, at) for at in rows]
                rows = []
            else:
                row = program.row((before, *rows))
            program.instant[row] = len(self.instants)
            self.instants.append(Instant(row, before, list(active), arrivals, rows, departures))
            if active:
                left = (time - since) * share * len(active) // denominator
                for task in active[:-1]:
                    got = min((time - since) * share // denominator, remaining[task])
                    remaining[task] -= got
                    left -= got
                remaining[active[-1]] -= min(left, remaining[active[-1]])
            for task in departures:
                active.remove(task)
                program.sources[arrived[task]] = (row,)
            active += arrivals
            before, since = row, time

    def service(self, work: IntArray, rate: Rate) -> Service:
        """Serve lanes whose transfers take `work` [task, lane] at full speed, at that rate."""
        return Service(self, work, rate)


class Service:
    """One run over lanes: the work that remains, who got what, and which lanes left the recorded order."""

    def __init__(self, channel: SharedChannel, work: IntArray, rate: Rate) -> None:
        self.channel, self.rate = channel, rate
        self.remaining = work.copy()
        self.failed = np.zeros(work.shape[1], dtype=np.bool_)
        self._grants: list[tuple[list[int], IntArray, IntArray, IntArray]] = []

    def instant(self, number: int, times: IntArray) -> None:
        """Compute the time of an instant and deliver what was served until then."""
        instant, index = self.channel.instants[number], self.channel.program.index
        before, now = times[index[instant.before]], times[index[instant.row]]
        if instant.active:
            share, denominator = self.rate(len(instant.active))
            left = self.remaining[instant.active]
            first_end = before + time_to_serve(left.min(axis=0), share, denominator)
        if instant.arrival_rows:
            now[:] = times[index[instant.arrival_rows[0]]]
            if instant.active:
                self.failed |= now >= first_end
        else:
            now[:] = first_end
        if number:
            self.failed |= now <= before
        for row in instant.arrival_rows:
            self.failed |= times[index[row]] != now
        if instant.active:
            self._deliver(instant, left, before, now, share, denominator)

    def _deliver(self, instant: Instant, left: IntArray, before: IntArray, now: IntArray, share: int, denominator: int) -> None:
        elapsed = now - before
        got = np.minimum(served_in(elapsed, share, denominator), left)
        over = served_in(elapsed, share * len(left), denominator) - got[:-1].sum(axis=0)
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


def time_to_serve(work: IntArray, share: int, denominator: int) -> IntArray:
    """ceil(work * denominator / share), without a product that could overflow."""
    if int(work.max(initial=0)) < EXACT // denominator:
        return np.asarray(-(-work * denominator // share))
    whole, rest = np.divmod(work, share)
    return np.asarray(whole * denominator - (-rest * denominator // share))


def served_in(time: IntArray, share: int, denominator: int) -> IntArray:
    """floor(time * share / denominator), without a product that could overflow."""
    if int(time.max(initial=0)) < EXACT // share:
        return np.asarray(time * share // denominator)
    whole, rest = np.divmod(time, denominator)
    return np.asarray(whole * share + rest * share // denominator)
