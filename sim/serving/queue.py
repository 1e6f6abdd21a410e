"""Reasons why requests wait in the queue of a loop, from their arrival until the first step that they take part in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from itertools import pairwise

import numpy as np

from models.graph import IntArray

#: Start of a request that is in no step.
NEVER = np.iinfo(np.int64).max


class Reason(IntEnum):
    """Reasons to wait: for the end of a step; to be admitted; and, once admitted, to be in a step.

    Requests are admitted in order: all of them wait for what the first one lacks.
    """

    STEP = 0  # the end of the step in progress, after which a loop admits requests
    MAX_BATCH = 1  # as many sequences run as may
    POLICY = 2  # the batching policy admits none
    KV_BLOCKS = 3  # too few blocks of the KV cache are free
    MOVES = 4  # caches move to or from tiers: its own, or any where all wait for them
    MAX_TOKENS = 5  # steps have as many tokens as they may
    PROMPT = 6  # another sample computes the prompt


#: Reasons as one says them after "for".
TITLES = {
    Reason.STEP: "the step in progress", Reason.MAX_BATCH: "max_batch", Reason.POLICY: "the batching policy",
    Reason.KV_BLOCKS: "free KV blocks", Reason.MOVES: "moves of caches", Reason.MAX_TOKENS: "max_tokens",
    Reason.PROMPT: "another sample's prompt",
}  # fmt: skip


@dataclass(slots=True)
class Queue:
    """Record of the waits of a loop. Its stamps are the times at which the loop makes up steps, or numbers of these steps.

    joined, admitted: stamps of requests that waited to be admitted. causes: (stamp, reason) from which it holds for all that
    wait. held: the same for each request that was admitted and had to wait nevertheless, with the stamp of its first step last.
    first: None if stamps are times, else the stamp of the first step.
    """

    joined: dict[int, int] = field(default_factory=dict)
    admitted: dict[int, int] = field(default_factory=dict)
    causes: list[tuple[int, Reason]] = field(default_factory=list)
    held: dict[int, list[tuple[int, Reason]]] = field(default_factory=dict)
    first: int | None = None

    def admit(self, number: int, now: int) -> None:
        """Note that a request is admitted."""
        if self.joined.get(number) == now:
            del self.joined[number]
        elif number in self.joined:
            self.admitted.setdefault(number, now)

    def blocked(self, now: int, reason: Reason) -> None:
        """Note what those that wait are not admitted for."""
        if not self.causes or self.causes[-1][1] != reason:
            self.causes.append((now, reason))

    def hold(self, number: int, now: int, reason: Reason) -> None:
        """Note what a request that was admitted waits for."""
        held = self.held.setdefault(number, [])
        if not held or held[-1][1] != reason:
            held.append((now, reason))

    def begin(self, number: int, now: int) -> None:
        """Note that a request takes part in a step."""
        if number in self.held:
            self.hold(number, now, Reason.STEP)

    def waits(self, time: Callable[[int], int]) -> Iterator[tuple[int, Reason, int]]:
        """Each request with a reason and ps for which it waited for that, but for `STEP`. time: of a stamp, ps."""
        stamps = [stamp for stamp, _ in self.causes]
        for number, admitted in self.admitted.items():
            joined = self.joined[number]
            until = admitted
            for i in range(bisect_right(stamps, admitted) - 1, -1, -1):
                stamp, reason = self.causes[i]
                yield number, reason, time(until) - time(max(stamp, joined))
                until = max(stamp, joined)
                if stamp <= joined:
                    break
        for number, held in self.held.items():
            for (stamp, reason), (end, _) in pairwise(held):
                yield number, reason, time(end) - time(stamp)


def queue_times(queues: Iterable[Queue], arrival: IntArray, started: IntArray, released: IntArray) -> IntArray:
    """Picoseconds that each request waited in the queue, by `Reason`: int64 [request, reason], in all started - arrival.

    arrival, started: [request], ps; of its first step, NEVER where another replica serves it, which waited for nothing here.
    released: ps [step] of the only loop, where stamps are numbers of steps.
    """
    found = np.zeros((len(arrival), len(Reason)), dtype=np.int64)
    for queue in queues:
        for number, reason, wait in queue.waits(partial(_time, released, queue.first)):
            found[number, reason] += wait
    found[:, Reason.STEP] = 0
    found[:, Reason.STEP] = np.where(started == NEVER, 0, started - arrival - found.sum(axis=1))
    return found


def _time(released: IntArray, first: int | None, stamp: int) -> int:
    """The time of a stamp, ps."""
    return stamp if first is None else int(released[stamp - first])
