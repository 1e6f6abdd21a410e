"""The memory channel: a resource whose bandwidth an arbiter divides among outstanding transfers.

Work is counted in picoseconds at full channel speed. Time at a share p/q delivers floor(time * p / q) of it, and the last of
the shares takes what the floors leave over, so that the channel delivers exactly what it has. The end of a transfer rounds
up: none is faster than at full speed. The timer of a plan knows nothing of what floors will leave over; where these would
end the last transfer before it, 1 ps of work stays, so that transfers end at timers alone, before all else of an instant.

A requester (the port of an engine, the queue of a DMA) has one transfer at the channel at a time; others wait behind it in
order. Latency is pipelined: it delays a transfer before it reaches the channel, and occupies nothing.

Within an instant:

1. A transfer whose last byte has been delivered leaves, and the one behind it in its queue becomes the head.
2. In the phase `PLAN`, transfers that have arrived join the queues of their requesters, in program order.
3. Then new heads come to the channel, in program order: the order of arrival that arbiters see.
4. Then the arbiter plans. If the plan stays the same (and no quantum of it is over), the service goes on without a cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import simpy

from sim.base.units import ceil_div, format_time
from sim.executors.reference.instant import PLAN, Environment, Phase
from sim.machine.arbiters import Arbiter, Plan, Transfer
from sim.machine.arbiters.contract import PlanError, Program
from sim.machine.arbiters.paths import PathArbiter
from sim.machine.routes import ALL_CHANNELS, ROUTES, Route, stripe, unit_of

#: Called for each service interval: a transfer, start, end, and the work that was delivered to it.
Served = Callable[[Transfer, int, int, int], None]

#: The same, of one of several channels, whose number comes first.
ServedBy = Callable[[int, Transfer, int, int, int], None]

IDLE = Plan((), 1)


class Request(simpy.Event):
    """A request to a channel; the event happens when the last byte of the transfer has arrived."""

    def __init__(self, env: simpy.Environment, transfer: Transfer) -> None:
        super().__init__(env)
        self.transfer = transfer


def program_order(request: Request) -> Program:
    """Sort key of the requests of one instant."""
    return request.transfer.program


class Channel:
    """One memory channel.

    arbiter: divides it. served: called for each service interval. latency: ps before a transfer reaches it. name: for errors.
    """

    def __init__(
        self, env: Environment, arbiter: Arbiter, served: Served, *, latency: int = 0, name: str = "channel"
    ) -> None:  # fmt: skip
        if latency < 0:
            raise ValueError(f"latency: expected 0 or more, found {latency}")
        self.env = env
        self.arbiter = arbiter
        self.served = served
        self.latency, self.name = latency, name
        self.arrived: list[Request] = []  # in this instant
        self.heads: list[Request] = []  # of a queue since this instant
        self.queues: dict[object, deque[Request]] = {}  # by requester; the head is at the channel
        self.requests: dict[Transfer, Request] = {}  # at the channel
        self.pending: list[Transfer] = []  # the same, in order of arrival
        self.arrivals = 0
        self.plan = IDLE
        self.in_service: list[Transfer] = []  # those of the last plan that had any
        self.since = 0  # the time up to which work has been delivered
        self.timer: simpy.Event | None = None  # the next end of a transfer or of a quantum, unless the plan changes before
        self.phase = Phase(env, PLAN, self._plan)

    def __repr__(self) -> str:
        return f"Channel({len(self.pending)} pending, {sum(map(len, self.queues.values()))} outstanding)"

    def request(self, transfer: Transfer) -> Request:
        """Issue a transfer."""
        if transfer.work < 1:
            raise ValueError(f"{transfer}: expected at least 1 ps of work")
        request = Request(self.env, transfer)
        if self.latency:
            self.env.timeout(self.latency).callbacks.append(lambda _: self._arrive(request))
        else:
            self._arrive(request)
        return request

    def _port(self, transfer: Transfer) -> object:
        """The queue that a transfer waits in."""
        return transfer.requester

    def _arrive(self, request: Request) -> None:
        self.arrived.append(request)
        self.phase.call()

    def _plan(self) -> None:
        """Ask the arbiter for a plan, once all arrivals and departures of this instant are known."""
        self._admit()
        if self.arbiter.reads_remaining:
            self._deliver()
        plan = self._asked() if self.pending else IDLE
        if plan == self.plan and plan.quantum is None and not self.arbiter.reads_remaining:
            return
        self._deliver()
        for transfer in self.in_service:
            transfer.in_service = False
        self.in_service = [transfer for transfer, _ in plan.shares]
        for transfer in self.in_service:
            transfer.in_service = True
        self.plan, self.timer = plan, None
        if plan.shares:
            wait = min(ceil_div(transfer.remaining * plan.denominator, share) for transfer, share in plan.shares)
            self.timer = self.env.timeout(wait if plan.quantum is None else min(wait, plan.quantum))
            self.timer.callbacks.append(self._due)

    def _asked(self) -> Plan:
        """The plan of the arbiter for the pending transfers. Raises PlanError that says where and when."""
        try:
            return self.arbiter.plan(self.pending)
        except PlanError as error:
            raise PlanError(f"{error} ({self.name}, at {format_time(self.env.now)})") from error

    def _admit(self) -> None:
        """Queue the transfers that have arrived, and let new heads of queues come to the channel."""
        for request in sorted(self.arrived, key=program_order):
            queue = self.queues.setdefault(self._port(request.transfer), deque())
            queue.append(request)
            if len(queue) == 1:
                self.heads.append(request)
        for request in sorted(self.heads, key=program_order):
            transfer = request.transfer
            transfer.order = self.arrivals
            self.arrivals += 1
            self.requests[transfer] = request
            self.pending.append(transfer)
        self.arrived.clear()
        self.heads.clear()

    def _deliver(self, keep: int = 1) -> None:
        """Deliver the work of the time since the last delivery to the transfers in service; `keep` ps of each stay."""
        elapsed, start, self.since = self.env.now - self.since, self.since, self.env.now
        shares, denominator = self.plan.shares, self.plan.denominator
        if not elapsed or not shares:
            return
        left = elapsed * sum(share for _, share in shares) // denominator
        last = shares[-1][0]
        for transfer, share in shares:
            work = min(left if transfer is last else elapsed * share // denominator, transfer.remaining - keep)
            left -= work
            transfer.remaining -= work
            self.served(transfer, start, self.since, work)

    def _due(self, timer: simpy.Event) -> None:
        """End the transfers that have been served in full; the timer of the present plan has run out."""
        if timer is not self.timer:
            return  # the plan has changed since
        self._deliver(keep=0)
        for transfer, _ in self.plan.shares:
            if not transfer.remaining:
                self._end(self.requests.pop(transfer))
        self.plan = IDLE
        self.phase.call()

    def _end(self, request: Request) -> None:
        self.pending.remove(request.transfer)
        queue = self.queues[self._port(request.transfer)]
        queue.popleft()
        if queue:
            self.heads.append(queue[0])
        request.succeed()


class Links(Channel):
    """Links that are divided together, because transfers cross several of them at once: see `sim.machine.arbiters.paths`.

    A requester has one transfer at a time at the first link of a path. served: called for each link of the path, too.
    """

    def __init__(self, env: Environment, arbiter: PathArbiter, served: ServedBy, *, latency: int = 0) -> None:
        super().__init__(env, arbiter, served=lambda *_: None, latency=latency)
        self.paths, self.served_by = arbiter, served

    def _port(self, transfer: Transfer) -> tuple[int, int]:
        return transfer.requester, transfer.path[0]

    def _deliver(self, keep: int = 1) -> None:
        elapsed, start, self.since = self.env.now - self.since, self.since, self.env.now
        shares = self.plan.shares
        if not elapsed or not shares:
            return
        for (transfer, _), amount in zip(shares, self.paths.amounts(shares, elapsed), strict=True):
            work = min(amount, transfer.remaining - keep)
            transfer.remaining -= work
            for link in transfer.path:
                self.served_by(link, transfer, start, self.since, work)


class Channels:
    """All channels, and the route that chooses one of those of a device's memory, or all of them, for a transfer.

    channels: one for each unit (see `sim.executors.setup`). memories: how many of them, the first ones, are those of memories,
    of which each of so many devices has as many. To the others only transfers go that have bytes for them. tiers: links of each
    device to tiers; these have the last units.
    """

    def __init__(
        self, env: Environment, channels: Sequence[Channel], route: Route = "interleaved", *, memories: int | None = None,
        devices: int = 1, tiers: int = 0,
    ) -> None:  # fmt: skip
        memories = len(channels) if memories is None else memories
        if not memories or route not in ROUTES:
            raise ValueError(f"expected channels and a route of {', '.join(ROUTES)}, found {route!r}")
        self.env = env
        self.channels = channels
        self.devices = devices
        self.memory = memories // devices
        self.beside = len(channels) - devices * tiers
        self.route = ROUTES[route]

    def request(self, transfer: Transfer, device: int = 0) -> simpy.Event:
        """Issue a transfer of a device; the event happens when its last byte has arrived."""
        number = unit_of(
            self.route, transfer.sequence, transfer.moves, self.memory, device, self.devices, self.beside,
            bool(transfer.path),
        )  # fmt: skip
        if number != ALL_CHANNELS:
            return self.channels[number].request(transfer)
        parts: list[simpy.Event] = []
        for i, channel in enumerate(self.channels[device * self.memory : (device + 1) * self.memory]):
            if work := stripe(transfer.work, self.memory, i):
                parts.append(channel.request(replace(transfer, work=work, remaining=work)))
        return self.env.all_of(parts)
