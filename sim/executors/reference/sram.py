"""SRAM: a resource of bytes that loads wait for, the oldest request first.

A requester (the DMA of a loop) has one request at a time, so its operands come in program order. Requests of several are
considered in the order in which they were made: each gets its bytes as soon as they are free. One that does not fit lets
younger ones pass, but no requester passes the same request twice: its next ones wait until the older one is admitted. So a
request is passed by each other requester once at most, whatever its size; from then on SRAM only empties until it fits.

Within an instant, bytes that are given back come first, then the requests join the queue in order of their loops, then the
first that may be admitted gets its bytes. Its loop may ask for more in the same instant; that request joins the queue before
the next one is considered.
"""

from __future__ import annotations

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
        self.queue: dict[int, Request] = {}  # by age, the number of requests made before it; the oldest first
        self.made = 0  # requests so far
        self.admitted: dict[int, int] = {}  # loop -> age of its last request that was admitted
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
        for request in sorted(self.asked, key=lambda request: request.number):
            self.queue[self.made] = request
            self.made += 1
        self.asked.clear()
        age = self._next()
        if age is not None:
            request = self.queue.pop(age)
            self.free -= request.size
            self.admitted[request.number] = age
            request.admitted.succeed()
            self.phase.call()  # for the next one, once this loop has asked for more

    def _next(self) -> int | None:
        """Age of the oldest request that fits and whose loop has not passed the oldest of all yet; None if there is none."""
        oldest = next(iter(self.queue), 0)
        for age, request in self.queue.items():
            if request.size <= self.free and self.admitted.get(request.number, 0) <= oldest:
                return age
        return None
