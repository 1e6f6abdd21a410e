"""Counters of a trace: values over time, from intervals in which something goes on."""

from __future__ import annotations

import numpy as np

from sim.analysis.series import Levels
from sim.log.tables import EventLog
from sim.render.trace.tracks import Counter, Times, steps_of, thin


def number(track: int, start: Times, end: Times) -> Counter:
    """How many of the intervals [start, end) are open."""
    return level(track, Levels(start=start, end=end, value=np.ones(len(start), dtype=np.int64)))


def level(track: int, levels: Levels) -> Counter:
    """Sum of the values of the intervals that are open."""
    time = np.concatenate([[0], levels.start, levels.end])
    time, value = steps_of(time, np.concatenate([[0], levels.value, -levels.value]))
    return thin(Counter(track, time, value))


def rate_unit(log: EventLog, channel: int) -> tuple[str, float]:
    """Unit of a channel's rate, and bytes per second in it: TB/s where the channel has one or more."""
    bandwidth = log.machine.channels[channel].bandwidth or log.bandwidth
    return ("TB/s", 1e12) if bandwidth >= 1e12 else ("GB/s", 1e9)


def rate(track: int, log: EventLog, channel: int) -> Counter:
    """Rate of a channel, in its `rate_unit`: each service interval delivers its work evenly."""
    services = log.services
    mine = np.flatnonzero((services.channel == channel) & (services.end > services.start))
    start, end = services.start[mine], services.end[mine]
    share = services.work[mine] / (end - start)
    time = np.concatenate([[0], start, end])
    _, open_ = steps_of(time, np.concatenate([[0], np.ones(len(mine)), -np.ones(len(mine))]))
    time, total = steps_of(time, np.concatenate([[0], share, -share]))
    # Sums of floats leave dust behind, so idle is 0 by count, and values keep nine digits.
    whole = (log.machine.channels[channel].bandwidth or log.bandwidth) / rate_unit(log, channel)[1]
    value = np.where(open_ > 0.5, np.round(np.maximum(total, 0.0), 9), 0.0) * whole
    return thin(Counter(track, time, value))


def clip(counter: Counter, window: tuple[int, int] | None) -> Counter:
    """The values of a window (ps): those inside it, and from its begin on the value that it begins with."""
    if window is None:
        return counter
    first = max(int(np.searchsorted(counter.time, window[0], side="right")) - 1, 0)
    last = int(np.searchsorted(counter.time, window[1], side="right"))
    return Counter(counter.track, np.maximum(counter.time[first:last], window[0]), counter.value[first:last])
