"""SRAM: a resource of bytes that loads wait for, first come, first served.

The head of the queue waits until it fits, and all behind it wait, too, even those that would fit (as in `simpy.Container`).
What differs is the order within an instant: bytes that are given back come first, then the requests join the queue in order
of their loops, then the head gets its bytes, if they fit. Its loop may ask for more in the same instant; that request
joins the queue before the next head is considered.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import simpy

from sim.executors.reference.instant import SRAM, Phase


class Request(NamedTuple):
    """A request of a loop. number: of the loop. size: bytes. admitted: the event that happens once it has them."""

    number: int
    size: int
    admitted: simpy.Event


class Sram:
    """SRAM of some bytes, of which loops request and give back parts."""

    def __init__(self, env: simpy.Environment, capacity: int) -> None:
        self.env = env
        self.free = capacity
        self.asked: list[Request] = []  # in this instant, not yet in the queue
        self.queue: deque[Request] = deque()
        self.phase = Phase(env, SRAM, self._act)

    def __repr__(self) -> str:
        return f"Sram({self.free} bytes free, {len(self.queue)} waiting)"

    def get(self, number: int, size: int) -> simpy.Event:
        """Request bytes for the loop of this number, which has no other request outstanding."""
        request = Request(number, size, self.env.event())
        self.asked.append(request)
        self.phase.call()
        return request.admitted

    def put(self, size: int) -> None:
        """Give bytes back."""
        self.free += size
        if self.queue:
            self.phase.call()

    def _act(self) -> None:
        self.queue.extend(sorted(self.asked, key=lambda request: request.number))
        self.asked.clear()
        if self.queue and self.queue[0].size <= self.free:
            request = self.queue.popleft()
            self.free -= request.size
            request.admitted.succeed()
            self.phase.call()  # for the next head, once this loop has asked for more
