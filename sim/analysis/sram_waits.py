"""Causes of waits for SRAM: what the machine does while the load of an operand waits for space.

A load that finds SRAM full waits for the channel while some channel serves: with more space it would wait there. While all
channels rest, every engine is busy and a further task is ready for one, it waits for an engine: SRAM holds operands that could
be used, and a load that came earlier would be used no earlier. What is left is due to SRAM itself: operands that are used
alone, or are in their latency, leave no space for those that would keep a channel or an engine busy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.analysis.channels import busy_runs
from sim.analysis.engines import clock
from sim.base.kernel import kernel, launch
from sim.log.columns import Ints, services_of, viewed
from sim.log.tables import EventLog


class Causes(NamedTuple):
    """Two clocks, int64 ps: one runs while some channel serves, the other while tasks queue for engines and channels rest.

    begin, before, of channels: [run], when each stretch begins; [run + 1], the clock then, and at the end. queue_begin,
    queue_before: the same of engines.
    """

    begin: Ints
    before: Ints
    queue_begin: Ints
    queue_before: Ints


@kernel
def served(c: Causes, since: int, until: int) -> int:
    """Picoseconds of [since, until) in which some channel served."""
    count = len(c.begin)
    return clock(c.begin, c.before, count, until) - clock(c.begin, c.before, count, since)


@kernel
def queued(c: Causes, since: int, until: int) -> int:
    """Picoseconds of [since, until) in which channels rested, all engines were busy, and a task was ready for one."""
    count = len(c.queue_begin)
    return clock(c.queue_begin, c.queue_before, count, until) - clock(c.queue_begin, c.queue_before, count, since)


def causes(log: EventLog, *, bounded_sram: bool, compiled: bool) -> Causes:
    """The clocks of a log. Without a bound on SRAM they are not needed, and never run."""
    if not bounded_sram:
        none, zero = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
        return Causes(none, zero, none, zero)
    runs = np.empty((2, len(log.services) + 1), dtype=np.int64)
    count = launch(busy_runs, compiled=compiled)(viewed(services_of(log), compiled=compiled), log.machine.memories, runs)
    return Causes(*_clock(*runs[:, :count]), *_clock(*_queues(log, runs[:, :count])))


def _clock(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    return np.ascontiguousarray(begin), np.concatenate([[0], np.cumsum(end - begin)])


def _queues(log: EventLog, runs: Ints) -> tuple[Ints, Ints]:
    """Begin and end of the stretches of the second clock. runs: [begin or end, run], those of the first one."""
    tasks = log.tasks
    # The clock rests while a channel serves, so only what is partly outside of those stretches is sorted.
    held = np.flatnonzero(tasks.engine >= 0)
    holds, waits = (
        each[_outside(begin[each], end[each], runs)]
        for begin, end, each in (
            (tasks.start, tasks.end, held),
            (tasks.ready, tasks.start, held[tasks.ready[held] < tasks.start[held]]),
        )
    )
    time, (busy, waiting, serving) = counts_over_time(
        (tasks.start[holds], tasks.end[holds]), (tasks.ready[waits], tasks.start[waits]), (runs[0], runs[1])
    )
    on = ((busy == log.engines) & (waiting > 0) & (serving == 0))[:-1] & (time[:-1] < time[1:])
    return time[:-1][on], time[1:][on]


def counts_over_time(*groups: tuple[Ints, Ints]) -> tuple[Ints, list[Ints]]:
    """All begins and ends [edge] of groups of intervals, in order of time, and how many of each group last after each of them.

    groups: begin, end [interval].
    """
    edges = [edge for number in (0, 1) for edge in (group[number] for group in groups)]  # all begins, then all ends
    time = np.concatenate(edges)
    order = np.argsort(time, kind="stable")
    counts = []
    for which in range(len(groups)):
        change = [np.full(len(edge), (1, -1)[i // len(groups)] if i % len(groups) == which else 0, dtype=np.int64)
                  for i, edge in enumerate(edges)]  # fmt: skip
        counts.append(np.cumsum(np.concatenate(change)[order]))
    return time[order], counts


def stretches(begin: Ints, before: Ints) -> tuple[Ints, Ints]:
    """Begin and end of the stretches of a clock of `Causes`."""
    return begin, begin + np.diff(before)


def _outside(begin: Ints, end: Ints, runs: Ints) -> npt.NDArray[np.bool_]:
    """Whether an interval is not within one run. runs: [begin or end, run]."""
    run = np.searchsorted(runs[0], begin, side="right") - 1
    return np.asarray(end > np.append(runs[1], -1)[run])
