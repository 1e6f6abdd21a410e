"""Routed arrivals: a router gives each request to one of several replicas when it arrives.

All replicas share a `Front`. It routes a request when the first of their loops takes its turn at or after the arrival, by what
has ended before: nothing else changes what a replica has to do meanwhile. Where steps end in the instant of the arrival, loops
take their turns in order of their numbers, and the request is routed once the first of them has ended its step.

Where some replicas prefill and others decode, these are two pools, each with a router of its own. Requests come to the first.
The second router chooses when the hand-over of a prompt begins (`sim.serving.movers.HandOver`), or where layers send what they
store, when the request arrives, and at the end of the hand-over they go there.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from sim.base.errors import InputError
from sim.serving.arrivals import Arrivals
from sim.serving.batching import Only, ResolvedBatching
from sim.serving.routers import ROUTERS, Router
from sim.serving.sequence import SequenceState
from sim.workload.requests import Request


@dataclass(slots=True)
class Outstanding:
    """Requests of a replica that have not ended, and tokens of their prompts. routed: requests that it was given so far."""

    requests: int = 0
    prompts: int = 0
    routed: int = 0


class Inbox:
    """The requests of one loop, as `Arrivals`. replica: its number in the pool."""

    def __init__(self, front: Front, pool: Pool, replica: int) -> None:
        self._front, self._pool, self._replica = front, pool, replica
        self.requests = front.arrivals.requests
        self.routed: deque[int] = deque()  # requests that have arrived and were not taken

    @property
    def times(self) -> dict[int, int]:
        """When each request comes (request -> ps)."""
        return self._front.arrivals.times

    @property
    def next(self) -> int | None:
        """The earliest time at which a request may be there: one that was routed here, or the next to be routed anywhere.

        None where they come when others have been handed over.
        """
        if self.routed:
            return self.times[self.routed[0]]
        return self._front.arrivals.next if self._pool is self._front.pool else None

    @property
    def more(self) -> bool:
        """Whether requests come whose time is not known yet."""
        return self._front.more

    def take(self, now: int) -> int | None:
        """Take a request that has come by now: its number, None if there is none."""
        self._front.route(now)
        return self.routed.popleft() if self.routed else None

    def state(self, number: int) -> SequenceState:
        """The state in which a request begins here."""
        return self._pool.handed.pop(number, None) or SequenceState.of(number, self.requests[number])

    def left(self, number: int, now: int) -> None:
        """Note that a request has nothing more to do here."""
        self._front.route(now - 1)  # those that came before were routed while it was there
        load = self._pool.loads[self._replica]
        load.requests -= 1
        load.prompts -= self.requests[number].prompt

    def ended(self, number: int, now: int) -> None:
        """Note that a request has ended."""
        self.left(number, now)
        self._front.ended += 1
        self._front.decoding.release(number)
        self._front.arrivals.ended(number, now)

    def receiver(self, number: int) -> int:
        """The replica, among all, that a prompt which is prefilled here will be handed over to."""
        return self._front.batching.prefilling + self._front.decoding.receiver(number)

    def hand_over(self, sequence: SequenceState, now: int) -> None:
        """Note that a prompt that was prefilled here has been handed over to the replicas that decode."""
        self.left(sequence.number, now)
        self._front.decoding.handed[sequence.number] = sequence.handed_over()
        self._front.decoding.give(sequence.number)


class Pool:
    """Replicas that do the same, and their router. loops: of each replica, which serve its requests in turn.

    handed: requests whose prompt was prefilled elsewhere, in the state in which they go on here. chosen: replicas of requests
    that have been routed and are not there yet.
    """

    def __init__(self, front: Front, router: Router, replicas: int, loops: int) -> None:
        self.loads = [Outstanding() for _ in range(replicas)]
        self.inboxes = [Inbox(front, self, replica) for replica in range(replicas) for _ in range(loops)]
        self.handed: dict[int, SequenceState] = {}
        self.chosen: dict[int, int] = {}
        self._front, self._router, self._loops = front, router, loops
        self._of_group: dict[int, int] = {}  # samples of one prompt -> their replica

    def give(self, number: int) -> None:
        """Give a request to the replica that was chosen for it, or is chosen now."""
        replica = self.receiver(number)
        del self.chosen[number]
        load = self.loads[replica]
        self.inboxes[replica * self._loops + load.routed % self._loops].routed.append(number)
        load.routed += 1

    def receiver(self, number: int) -> int:
        """The replica that was chosen for a request that is not there yet, or is chosen now."""
        return self.chosen[number] if number in self.chosen else self.choose(number)

    def release(self, number: int) -> None:
        """Note that a request will not come to the replica that may have been chosen for it: it has ended elsewhere."""
        replica = self.chosen.pop(number, None)
        if replica is not None:
            self.loads[replica].requests -= 1
            self.loads[replica].prompts -= self._front.arrivals.requests[number].prompt

    def choose(self, number: int) -> int:
        """Choose the replica of a request, which has it to do from now on."""
        request = self._front.arrivals.requests[number]
        replica = self._of_group.get(request.group)
        if replica is None:
            replica = self._chosen(number)
        if request.group >= 0:
            self._of_group[request.group] = replica
        load = self.loads[replica]
        load.requests, load.prompts = load.requests + 1, load.prompts + request.prompt
        self.chosen[number] = replica
        return replica

    def _chosen(self, number: int) -> int:
        """The replica that the router chooses. Raises InputError if there is no such one."""
        replica = self._router.choose(self._front.arrivals.requests[number], self.loads)
        if type(replica) is not int or not 0 <= replica < len(self.loads):
            raise InputError(f"router: expected a replica from 0 to {len(self.loads) - 1}, found {replica!r}")
        return replica


class Front:
    """All requests of a run, and the pools that serve them. pool: where they come to. decoding: where they decode, the same one
    if replicas do both. ended: requests that have.
    """

    def __init__(self, arrivals: Arrivals, batching: ResolvedBatching) -> None:
        self.arrivals, self.batching, self.ended = arrivals, batching, 0
        many = batching.prefilling or batching.replicas * max(1, batching.homes)
        self.pool = self.decoding = Pool(self, _router(batching), many, batching.loops)
        if batching.prefilling:
            self.decoding = Pool(self, _router(batching), batching.replicas - many, batching.loops)

    @property
    def more(self) -> bool:
        """Whether replicas will be given requests at times that are not known yet."""
        return self.arrivals.more or (self.pool is not self.decoding and self.ended < len(self.arrivals.requests))

    def route(self, now: int) -> None:
        """Route the requests that have come by now."""
        while (number := self.arrivals.take(now)) is not None:
            self.pool.give(number)
            if self.batching.by_layer and self.pool is not self.decoding:
                self.decoding.choose(number)


def routed(batching: ResolvedBatching, requests: Sequence[Request]) -> list[Only] | None:
    """The requests of each replica that has any; None unless that is known before a run: in an open loop, behind a router that
    looks at requests alone, where no replica hands over to others, or routes them to devices of its own.
    """
    if batching.replicas == 1 or batching.prefilling or batching.homes or not getattr(_router(batching), "static", False):
        return None
    front, of = Front(Arrivals(requests), batching), defaultdict[int, list[int]](list)
    latest = max(request.arrival for request in requests)
    while (number := front.arrivals.take(latest)) is not None:
        of[front.pool.choose(number)].append(number)
    return [Only(replica=replica, requests=tuple(of[replica])) for replica in sorted(of)]


def _router(batching: ResolvedBatching) -> Router:
    router: Router = ROUTERS.make(batching.router.name, batching.router.options)
    return router
