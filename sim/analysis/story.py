"""The story of one token: the tasks that decided when its step ended, in order of time, and behind which others they waited.

The tasks are the chain along which `sim.analysis.breakdown` splits the time of the step, so the parts of all links sum to the
token's row there. `behind` names what was in the way: for an engine, the task that it ran before; for the channel, the
transfers that it served meanwhile; for SRAM, the loads of operands that held it; for an input, the task of another token that
ended last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sim.analysis.parts import (
    COMPUTE,
    LINK,
    PART_COUNT,
    TRANSFER,
    WAIT_CHANNEL,
    WAIT_ENGINE,
    WAIT_INPUT,
    WAIT_LINK,
    WAIT_POLICY,
    WAIT_SRAM,
    alone,
    on_link,
    service,
)
from sim.analysis.rules import Rules
from sim.analysis.sram import AllUses, all_uses
from sim.analysis.sram_waits import causes, queued, served
from sim.log import derived
from sim.log.columns import is_large, tasks_of
from sim.log.tables import EventLog
from sim.machine.machine import PATHS

Times = npt.NDArray[np.int64]
NONE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One task of a story. row: of the task table. begin: ps, the end of the task before, or the release of the step.

    parts: ps, by `sim.analysis.parts`; they sum to end - begin. source: row of the task of another token that it waited for,
    -1 if none. engine: row of the task that its engine ran before, -1 if none. channel: transfers that channels served while it
    waited for one, (row, ps at full speed), the largest first. sram: loads whose operands held SRAM while it waited for space,
    those of the most bytes for the longest time first.
    """

    row: int
    begin: int
    parts: tuple[int, ...]
    source: int
    engine: int
    channel: tuple[tuple[int, int], ...]
    sram: tuple[int, ...] = ()

    @property
    def waited(self) -> int:
        """Picoseconds of all waits."""
        return sum(self.parts) - self.parts[COMPUTE] - self.parts[TRANSFER] - self.parts[LINK]


class Stories:
    """Stories of the steps of a log."""

    def __init__(self, log: EventLog, rules: Rules) -> None:
        self._log, self._rules = log, rules
        self._chains = derived.chains(log)
        self._waited_for = causes(log, bounded_sram=rules.sram is not None, compiled=is_large(log))
        self._busy = [_all_busy(log, device.engines) for device in log.machine.devices]
        self._tasks = tasks_of(log)

    @cached_property
    def _uses(self) -> AllUses:
        return all_uses(self._log)

    def of(self, step: int) -> tuple[Link, ...]:
        """The story of a step, in order of time. step: row of the step table."""
        log = self._log
        chain = self._chains.of(np.array([step]))
        released, end = log.steps.released[step], log.steps.end[step]
        meanwhile = np.flatnonzero((log.services.end > released) & (log.services.start < end))
        return tuple(
            self._link(row, begin, source, meanwhile)
            for row, begin, source in zip(chain.row.tolist(), chain.begin.tolist(), chain.cause.tolist(), strict=True)
        )

    def _link(self, row: int, begin: int, source: int, meanwhile: Times) -> Link:
        parts = self._parts(row, begin)
        before, others = NONE, tuple[tuple[int, int], ...]()
        if parts[WAIT_ENGINE] and self._log.tasks.engine[row] >= 0:
            before = int(derived.previous_on_engine(self._log)[row])
        if parts[WAIT_CHANNEL] or parts[WAIT_LINK]:
            others = self._served_others(row, meanwhile)
        held = self._held_sram(row) if parts[WAIT_SRAM] else ()
        return Link(row=row, begin=begin, parts=tuple(map(int, parts)), source=source, engine=before, channel=others, sram=held)

    def _parts(self, row: int, begin: int) -> list[int]:
        """Parts of [begin, end] of a task, as `sim.analysis.breakdown` defines them."""
        t, rules = self._log.tasks, self._rules
        ready, start, loaded, end = (int(column[row]) for column in (t.ready, t.start, t.loaded, t.end))
        work, compute, held = int(t.work[row]), int(t.compute[row]), bool(t.engine[row] >= 0)
        parts = [0] * PART_COUNT
        parts[COMPUTE], moved = service(
            held, start, loaded, end, compute, alone(self._tasks, row, rules.latencies, rules.stripes),
            int(t.launched[row]), rules.execution == "stream",
        )  # fmt: skip
        link = on_link(self._tasks, row)
        parts[LINK if link else TRANSFER] = moved
        parts[WAIT_LINK if link else WAIT_CHANNEL] = end - start - parts[COMPUTE] - moved
        parts[WAIT_INPUT] = max(0, ready - begin)
        if held:
            device = int(t.engine[row]) // self._log.machine.engines_each
            parts[WAIT_ENGINE] = self._busy[device].within(ready, start)
            parts[WAIT_SRAM if rules.waits_for_sram and work > 0 else WAIT_POLICY] = start - ready - parts[WAIT_ENGINE]
        elif start > ready:
            device = self._device(row)
            by_channel = served(self._waited_for, device, ready, start)
            parts[WAIT_ENGINE] = queued(self._waited_for, device, ready, start)
            parts[WAIT_CHANNEL] += by_channel
            parts[WAIT_SRAM] = start - ready - by_channel - parts[WAIT_ENGINE]
        return parts

    def _served_others(self, row: int, meanwhile: Times) -> tuple[tuple[int, int], ...]:
        """Other transfers that channels served from when the task could be issued to its last byte, the largest first."""
        log, s = self._log, self._log.services
        since = log.tasks.ready[row] if log.tasks.engine[row] < 0 else derived.issued(log)[row]
        until = derived.service(log).last[row]
        same = np.isin(s.channel[meanwhile], self._channels_of(row))
        mine = meanwhile[same & (s.start[meanwhile] < until) & (s.end[meanwhile] > since) & (s.task[meanwhile] != row)]
        span = np.minimum(s.end[mine], until) - np.maximum(s.start[mine], since)
        work = s.work[mine] * (span / (s.end[mine] - s.start[mine]))
        rows, place = np.unique(s.task[mine], return_inverse=True)
        total = np.bincount(place, weights=work, minlength=len(rows))
        return tuple((int(rows[i]), round(total[i])) for i in np.argsort(-total, kind="stable"))

    def _held_sram(self, row: int) -> tuple[int, ...]:
        """Loads whose operands were in SRAM while a load waited for space, by bytes times picoseconds, the largest first."""
        loads, device, begin, end, size = self._uses
        ready, start = self._log.tasks.ready[row], self._log.tasks.start[row]
        meanwhile = np.flatnonzero((begin < start) & (end > ready) & (device == self._device(row)))
        span = np.minimum(end[meanwhile], start) - np.maximum(begin[meanwhile], ready)
        return tuple(loads[meanwhile[np.argsort(-span * size[meanwhile].astype(np.float64), kind="stable")]].tolist())

    def _device(self, row: int) -> int:
        """The device of a task."""
        return int(derived.device(self._log)[row])

    def _channels_of(self, row: int) -> list[int]:
        """The channels that the transfer of a task shares with others: memory or links of its device."""
        log, kind = self._log, PATHS[on_link(self._tasks, row)]
        step = int(log.tasks.step[row])
        graph, task, device = log.graphs[log.steps.graph[step]], log.tasks.task[row], self._device(row)
        if crossed := log.machine.crossed(device, int(graph.to[task])):
            return list(crossed)
        return [
            number for number, channel in enumerate(log.machine.channels) if channel.device == device and channel.kind == kind
        ]


@dataclass(frozen=True, slots=True)
class _Clock:
    """Stretches of time in which all engines of a device were busy. before: ps of them before each."""

    begin: Times
    end: Times
    before: Times

    def at(self, time: int) -> int:
        """Picoseconds of all stretches before a time."""
        i = int(np.searchsorted(self.begin, time, side="right")) - 1
        return 0 if i < 0 else int(self.before[i]) + min(time, int(self.end[i])) - int(self.begin[i])

    def within(self, since: int, until: int) -> int:
        """Picoseconds of all stretches within [since, until)."""
        return self.at(until) - self.at(since)


def _all_busy(log: EventLog, engines: range) -> _Clock:
    held = np.flatnonzero((log.tasks.engine >= engines.start) & (log.tasks.engine < engines.stop))
    time = np.concatenate([log.tasks.start[held], log.tasks.end[held]])
    order = np.argsort(time, kind="stable")
    busy = np.cumsum(np.where(order < len(held), 1, -1))[:-1]
    time = time[order]
    full = (busy == len(engines)) & (time[:-1] < time[1:])
    begin, end = time[:-1][full], time[1:][full]
    return _Clock(begin, end, np.cumsum(end - begin) - (end - begin))


def step_of(log: EventLog, sequence: int, token: int) -> int | None:
    """Row of the step in which a sequence got an output token, both from 0; None if it did not."""
    if log.batched is None:
        found = np.flatnonzero((log.steps.sequence == sequence) & (log.steps.token == token))
        return int(found[0]) if len(found) else None
    members = members_of(log, sequence)
    after = np.flatnonzero(np.cumsum(log.members.emitted[members]) > token)
    return int(log.members.step[members[after[0]]]) if len(after) else None


def members_of(log: EventLog, sequence: int) -> Times:
    """Rows of the member table of a sequence, in order of time."""
    mine = np.flatnonzero(log.members.sequence == sequence)
    return np.asarray(mine[np.argsort(log.steps.released[log.members.step[mine]], kind="stable")])
