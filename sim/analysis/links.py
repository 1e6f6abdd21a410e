"""What links of a critical path are, and which step another waited for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from sim.eventlog import EventLog


class Place(IntEnum):
    """Where the time of a link was spent."""

    ENGINE = 0
    CHANNEL = 1  # in service, alone or sharing
    LATENCY = 2
    WAIT = 3  # for something that left no trace in the log
    ARRIVAL = 4  # before the request came


class Cause(IntEnum):
    """Why a link did not begin earlier."""

    START = 0  # it began at 0
    INPUT = 1
    KV_ORDER = 2  # a store by an earlier token of the sequence
    ENGINE = 3  # the task before it on its engine
    CHANNEL = 4  # the transfer before it on the channel
    POLICY = 5  # a task elsewhere, which the scheduler waited for although an engine was idle
    SRAM = 6  # the task that made room
    STEP = 7  # the step before
    ARRIVAL = 8  # of the request
    ITSELF = 9  # the same task, one phase earlier


def equal(column: Sequence[int], value: int) -> range:
    """Where an ascending column has that value."""
    return range(bisect_left(column, value), bisect_right(column, value))


class Releases:
    """Looks up which step each waited for. arrivals: ps, per sequence."""

    def __init__(self, log: EventLog, arrivals: Sequence[int]) -> None:
        self._steps, self._arrivals = log.steps, arrivals
        order = np.argsort(log.steps.end, kind="stable")
        self._order, self._ends = order.tolist(), log.steps.end[order].tolist()

    def before(self, step: int) -> int | None:
        """The token before it, else whichever step made room for its sequence; None if it began with the arrival or at 0."""
        released, sequence = int(self._steps.released[step]), int(self._steps.sequence[step])
        ended = [self._order[i] for i in equal(self._ends, released)]
        own = [other for other in ended if self._steps.sequence[other] == sequence]
        if not own and released == self._arrivals[sequence]:
            return None
        return next(iter(own or ended), None)
