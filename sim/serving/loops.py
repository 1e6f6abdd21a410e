"""The loops of a run: those that serve requests, and beside them those that move KV caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sim.base.errors import SimulationError
from sim.serving.arrivals import Arrivals
from sim.serving.batch import Batch
from sim.serving.batcher import Batcher
from sim.serving.batching import ResolvedBatching
from sim.serving.lockstep import Lockstep
from sim.serving.movers import HandOver, Mover
from sim.serving.routed import Front
from sim.workload.requests import Request


def loops(
    batching: ResolvedBatching, requests: Sequence[Request], *, concurrency: int | None = None, think: int = 0
) -> list[Batcher]:
    """The loops of a run: one for all requests, or some that take them in turn, or some for each replica, or for each request
    one, or `concurrency` that serve one at a time; then those that move caches. Those of a replica alone have the numbers from
    `batching.first_loop` on.

    think: ps from the end of a request to the next, where `concurrency` limits them.
    """
    if batching.only is not None:
        mine, device = batching.only.requests, batching.only.replica * batching.devices
        return [Batcher(batching, Arrivals(requests, only=mine[i :: batching.loops]), device) for i in range(batching.loops)]
    if batching.replicas > 1 or batching.homes:
        return _of_replicas(batching, Front(Arrivals(requests, concurrency=concurrency, think=think), batching))
    if batching.settings.alone:
        if concurrency is None:
            return [Batcher(batching, Arrivals(requests, only=(number,))) for number in range(len(requests))]
        arrivals = Arrivals(requests, concurrency=concurrency, think=think)
        return [Batcher(batching, arrivals) for _ in range(min(concurrency, len(requests)))]
    count = batching.batches_of(len(requests))
    if count > 1:
        found = [Batcher(batching, Arrivals(requests, only=range(i, len(requests), count))) for i in range(count)]
    else:
        found = [Batcher(batching, Arrivals(requests, concurrency=concurrency, think=think))]
    return found + _movers(found)


def _of_replicas(batching: ResolvedBatching, front: Front) -> list[Batcher]:
    """The loops of all replicas; after these those that hand over what some have prefilled, each of their batchers in turn."""
    if batching.homes:
        return _of_devices(batching, front)
    inboxes = front.pool.inboxes if front.pool is front.decoding else [*front.pool.inboxes, *front.decoding.inboxes]
    prefilling = batching.prefilling * batching.loops
    found = [
        Batcher(batching, inbox, i // batching.loops * batching.devices, hands_over=i < prefilling)
        for i, inbox in enumerate(inboxes)
    ]
    for i in range(prefilling):  # micro-batches of a replica hand over in order of their ends
        found[i].prefilled = found[i // batching.loops * batching.loops].prefilled
    hand_overs = [
        HandOver(batching, of.arrivals, of.device, prefilled=of.prefilled)
        for of in found[: prefilling : batching.loops]
        for _ in range(batching.hand_overs)
    ]
    return [*found, *hand_overs, *_movers(found)]


def _of_devices(batching: ResolvedBatching, front: Front) -> list[Batcher]:
    """The loops of replicas whose devices have sequences of their own: requests are routed to devices, in order of replicas."""
    found = list[Batcher]()
    for replica in range(batching.replicas):
        first = replica * batching.homes * batching.loops
        inboxes = front.pool.inboxes[first : first + batching.homes * batching.loops]
        device = replica * batching.devices
        for loop in range(batching.loops):
            each = [Batcher(batching, inbox, device) for inbox in inboxes[loop :: batching.loops]]
            found.append(Lockstep(batching, inboxes[loop], device, of=each))
    return found


def _movers(batchers: Sequence[Batcher]) -> list[Batcher]:
    """A mover for each batcher whose moves are made beside its steps."""
    return [Mover(each.batching, each.arrivals, each.device, of=each) for each in batchers if each.batching.beside]


def stretches(batcher: Batcher, now: int) -> Iterator[tuple[Batch, int]]:
    """The steps of a loop whose requests have all come: the first of those in which its members decode on, and how many.

    To the batcher each step takes 1 ps, so that its times are numbers of steps. Raises SimulationError if requests wait and
    none can be served.
    """
    while (batch := batcher.next(now)) is not None:
        many = batcher.steps_ahead() + 1
        yield batch, many
        now += many
        batcher.ended(batch, now, many)
    if batcher.arrivals.next is not None:
        raise SimulationError(f"{len(batcher.waiting)} requests wait and none can be served")
