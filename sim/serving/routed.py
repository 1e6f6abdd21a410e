"""Routed arrivals: a router gives each request to one of several replicas when it arrives.

All replicas share a `Front`. It routes a request when the first of their loops takes its turn at or after the arrival, by what
has ended before: nothing else changes what a replica has to do meanwhile. Where steps end in the instant of the arrival, loops
take their turns in order of their numbers, and the request is routed once the first of them has ended its step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sim.base.errors import InputError
from sim.serving.arrivals import Arrivals
from sim.serving.batching import ResolvedBatching
from sim.serving.routers import ROUTERS, Router
from sim.workload.requests import Request


@dataclass(slots=True)
class Outstanding:
    """Requests of a replica that have not ended, and tokens of their prompts. routed: requests that it was given so far."""

    requests: int = 0
    prompts: int = 0
    routed: int = 0


class Inbox:
    """The requests of one loop, as `Arrivals`."""

    def __init__(self, front: Front, replica: int) -> None:
        self._front, self._replica = front, replica
        self.requests = front.requests
        self.routed: deque[int] = deque()  # requests that have arrived and were not taken

    @property
    def times(self) -> dict[int, int]:
        """When each request comes (request -> ps)."""
        return self._front.arrivals.times

    @property
    def next(self) -> int | None:
        """The earliest time at which a request may be there: one that was routed here, or the next to be routed anywhere."""
        return self.times[self.routed[0]] if self.routed else self._front.arrivals.next

    @property
    def more(self) -> bool:
        """Whether requests come whose time is not known yet."""
        return self._front.arrivals.more

    def take(self, now: int) -> int | None:
        """Take a request that has come by now: its number, None if there is none."""
        self._front.route(now)
        return self.routed.popleft() if self.routed else None

    def ended(self, number: int, now: int) -> None:
        """Note that a request has ended."""
        self._front.route(now - 1)  # those that came before were routed while it was there
        load, request = self._front.loads[self._replica], self.requests[number]
        load.requests -= 1
        load.prompts -= request.prompt
        self._front.arrivals.ended(number, now)


class Front:
    """All requests of a run, and the router that gives them to the replicas. loops: of each replica, which serve its requests
    in turn.
    """

    def __init__(self, arrivals: Arrivals, router: Router, replicas: int, loops: int) -> None:
        self.requests, self.arrivals = arrivals.requests, arrivals
        self.loads = [Outstanding() for _ in range(replicas)]
        self.inboxes = [Inbox(self, replica) for replica in range(replicas) for _ in range(loops)]
        self._router, self._loops = router, loops
        self._of_group: dict[int, int] = {}  # samples of one prompt -> their replica

    def route(self, now: int) -> None:
        """Route the requests that have come by now."""
        while (number := self.arrivals.take(now)) is not None:
            request = self.requests[number]
            replica = self._of_group.get(request.group)
            if replica is None:
                replica = self._chosen(request)
            if request.group >= 0:
                self._of_group[request.group] = replica
            load = self.loads[replica]
            self.inboxes[replica * self._loops + load.routed % self._loops].routed.append(number)
            load.requests, load.prompts, load.routed = load.requests + 1, load.prompts + request.prompt, load.routed + 1

    def _chosen(self, request: Request) -> int:
        """The replica that the router chooses. Raises InputError if there is no such one."""
        replica = self._router.choose(request, self.loads)
        if type(replica) is not int or not 0 <= replica < len(self.loads):
            raise InputError(f"router: expected a replica from 0 to {len(self.loads) - 1}, found {replica!r}")
        return replica


def inboxes(batching: ResolvedBatching, arrivals: Arrivals) -> list[Inbox]:
    """The requests of each loop of each replica, with a router of their own."""
    router: Router = ROUTERS.make(batching.router.name, batching.router.options)
    return Front(arrivals, router, batching.replicas, batching.loops).inboxes
