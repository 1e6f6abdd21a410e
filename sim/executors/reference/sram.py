"""SRAM: a resource of bytes of each device that loads wait for, the oldest request first.

A requester (the DMA of a loop on a device) has one request at a time, so its operands come in program order. Requests of
several are considered in the order in which they were made: each gets its bytes as soon as they are free. One that does not fit
lets younger ones pass, but no requester passes the same request twice: its next ones wait until the older one is admitted
(`sim.machine.sram`).

Within an instant, bytes that are given back come first, then the requests join the queues of their devices in order of their
loops, then on each device the first that may be admitted gets its bytes. Their loops may ask for more in the same instant;
these requests join the queues before the next ones are considered. So it makes no difference which device comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import simpy

from sim.executors.reference.instant import SRAM, Phase
from sim.machine.sram import may_be_admitted


class Request(NamedTuple):
    """A request of a loop on a device. number: of the loop. size: bytes. admitted: the event that happens once it has them."""

    device: int
    number: int
    size: int
    admitted: simpy.Event


class Sram:
    """SRAM of some bytes on each device, of which loops request and give back parts.

    free: bytes. queue: requests by age, the number of requests on the device that were made before, the oldest first; made: how
    many there were. admitted: loop -> age of its last request that was. All of these are [device].
    """

    def __init__(self, env: simpy.Environment, capacity: Sequence[int]) -> None:
        self.env = env
        self.free = list(capacity)
        self.asked: list[Request] = []  # in this instant, not yet in a queue
        self.queue: list[dict[int, Request]] = [{} for _ in capacity]
        self.made = [0] * len(capacity)
        self.admitted: list[dict[int, int]] = [{} for _ in capacity]
        self.phase = Phase(env, SRAM, self._act)

    def __repr__(self) -> str:
        return f"Sram({self.free} bytes free, {sum(map(len, self.queue))} waiting)"

    def get(self, device: int, number: int, size: int) -> simpy.Event:
        """Request bytes for the loop of this number, which has no other request outstanding on this device."""
        request = Request(device, number, size, self.env.event())
        self.asked.append(request)
        self.phase.call()
        return request.admitted

    def put(self, device: int, size: int) -> None:
        """Give bytes back."""
        self.free[device] += size
        if self.queue[device]:
            self.phase.call()

    def _act(self) -> None:
        for request in sorted(self.asked, key=lambda request: request.number):
            self.queue[request.device][self.made[request.device]] = request
            self.made[request.device] += 1
        self.asked.clear()
        for device in range(len(self.free)):
            age = self._next(device)
            if age is not None:
                request = self.queue[device].pop(age)
                self.free[device] -= request.size
                self.admitted[device][request.number] = age
                request.admitted.succeed()
                self.phase.call()  # for the next one, once this loop has asked for more

    def _next(self, device: int) -> int | None:
        """Age of the first request that may be admitted on a device; None if there is none."""
        queue, admitted = self.queue[device], self.admitted[device]
        oldest = next(iter(queue), 0)
        for age, request in queue.items():
            if may_be_admitted(request.size, self.free[device], admitted.get(request.number, 0), oldest):
                return age
        return None
