"""Links of a critical path: where their time was spent, and why they did not begin earlier."""

from __future__ import annotations

from enum import IntEnum


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
