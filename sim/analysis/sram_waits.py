"""Causes of waits for SRAM: what a device does while the load of an operand waits for space.

A load that finds SRAM full waits for the channel while some channel of the device's memory serves: with more space it would
wait there. While all of them rest, every engine of the device is busy and a further task is ready for one, it waits for an
engine: SRAM holds operands that could be used, and a load that came earlier would be used no earlier. What is left is due to
SRAM itself: operands that are used alone, or are in their latency, leave no space for those that would keep a channel or an
engine busy.
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
    """Two clocks of each device, int64 ps: one runs while some channel of its memory serves, the other while tasks queue for
    its engines and these channels rest.

    begin, before, of channels: [run], when each stretch begins, device after device; [run + device], the clock then, and at the
    end of the device's. first: [device + 1], the first run of each device. queue_begin, queue_before, queue_first: the same of
    engines.
    """

    begin: Ints
    before: Ints
    first: Ints
    queue_begin: Ints
    queue_before: Ints
    queue_first: Ints


@kernel
def served(c: Causes, device: int, since: int, until: int) -> int:
    """Picoseconds of [since, until) in which some channel of the memory of a device served."""
    first, after = c.first[device], c.first[device + 1]
    begin, before = c.begin[first:after], c.before[first + device : after + device + 1]
    return clock(begin, before, after - first, until) - clock(begin, before, after - first, since)


@kernel
def queued(c: Causes, device: int, since: int, until: int) -> int:
    """Picoseconds of [since, until) in which channels rest, all engines of a device are busy, and a task is ready for one."""
    first, after = c.queue_first[device], c.queue_first[device + 1]
    begin, before = c.queue_begin[first:after], c.queue_before[first + device : after + device + 1]
    return clock(begin, before, after - first, until) - clock(begin, before, after - first, since)


def causes(log: EventLog, *, bounded_sram: bool, compiled: bool) -> Causes:
    """The clocks of a log. Without a bound on SRAM they are not needed, and never run."""
    devices = len(log.machine.devices)
    if not bounded_sram:
        begin, before, first = (np.zeros(size, dtype=np.int64) for size in (0, devices, devices + 1))
        return Causes(begin, before, first, begin, before, first)
    services, each = viewed(services_of(log), compiled=compiled), log.machine.memories // devices
    serving = []
    for device in range(devices):
        runs = np.empty((2, len(log.services) + 1), dtype=np.int64)
        count = launch(busy_runs, compiled=compiled)(services, device * each, (device + 1) * each, runs)
        serving.append(runs[:, :count].copy())
    queues = [_queues(log, device.engines, runs) for device, runs in zip(log.machine.devices, serving, strict=True)]
    return Causes(*_clocks(serving), *_clocks(queues))


def _clocks(runs: list[Ints]) -> tuple[Ints, Ints, Ints]:
    """When stretches begin, clocks, and the first stretch of each device. runs: of each device [begin or end, run]."""
    before = [np.concatenate([[0], np.cumsum(end - begin)]) for begin, end in runs]
    first = np.cumsum([0, *(each.shape[1] for each in runs)])
    return np.concatenate([begin for begin, _ in runs]), np.concatenate(before), first


def _queues(log: EventLog, engines: range, runs: Ints) -> Ints:
    """Stretches [begin or end, run] of the second clock of a device. runs: those of the first one."""
    tasks = log.tasks
    # The clock rests while a channel serves, so only what is partly outside of those stretches is sorted.
    held = np.flatnonzero((tasks.engine >= engines.start) & (tasks.engine < engines.stop))
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
    on = ((busy == len(engines)) & (waiting > 0) & (serving == 0))[:-1] & (time[:-1] < time[1:])
    return np.stack([time[:-1][on], time[1:][on]])


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


def stretches(begin: Ints, before: Ints, first: Ints, device: int) -> tuple[Ints, Ints]:
    """Begin and end of the stretches of a clock of a device, from the three columns of `Causes`."""
    mine = slice(first[device], first[device + 1])
    return begin[mine], begin[mine] + np.diff(before[mine.start + device : mine.stop + device + 1])


def _outside(begin: Ints, end: Ints, runs: Ints) -> npt.NDArray[np.bool_]:
    """Whether an interval is not within one run. runs: [begin or end, run]."""
    run = np.searchsorted(runs[0], begin, side="right") - 1
    return np.asarray(end > np.append(runs[1], -1)[run])
