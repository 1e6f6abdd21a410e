"""The memory channel: a SimPy resource whose bandwidth an arbiter divides among outstanding transfers.

Work is counted in picoseconds at full channel speed, an int64 that holds three months. Time at a share p/q delivers
floor(time * p / q) of it, and the last of the shares takes what the floors leave over, so that the channel delivers
exactly what it has. The end of a transfer rounds up: none is faster than at full speed.

A requester (the port of an engine, the queue of a DMA) has one transfer at the channel at a time; others wait behind it in
order. What arrives at the same instant is taken in program order. Latency is pipelined: it delays a transfer before it
reaches the channel, and occupies nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import simpy

from sim.hardware.arbiters import Arbiter, Plan, Transfer
from sim.hardware.instant import PLAN, Alarm, Environment
from sim.units import ceil_div

IDLE = Plan((), 1)


class Channel:
    """One memory channel.

    Every interval of constant service goes to `record(transfer, start, end, work)`.
    """

    def __init__(
        self, env: Environment, arbiter: Arbiter, *, latency: int = 0,
        record: Callable[..., None],
    ) -> None:  # fmt: skip
        if latency < 0:
            raise ValueError(f"latency: expected 0 or more, found {latency}")
        self.env = env
        self.arbiter = arbiter
        self.latency = latency
        self.record = record
        self.pending: list[Transfer] = []  # at the channel, in order of arrival
        self.queues: dict[int, deque[Transfer]] = {}  # per requester; its head is at the channel
        self.ended: dict[Transfer, Callable[[], Any]] = {}
        self.arrivals = 0
        self._arrived: list[Transfer] = []  # at this instant
        self._heads: list[Transfer] = []  # of a queue since this instant
        self._plan = IDLE
        self._served: list[Transfer] = []  # in service until now
        self._since = 0
        self._version = 0  # tells a timer that is still wanted from one that a new plan overtook
        self._planning = False
        self._plan_event = Alarm(env, self._replan, PLAN)

    def __repr__(self) -> str:
        return f"Channel({len(self.pending)} pending, {sum(map(len, self.queues.values()))} outstanding)"

    def request(self, transfer: Transfer, ended: Callable[[], Any]) -> None:
        """Issue a transfer; `ended` is called at the instant at which its last byte has arrived."""
        if transfer.work < 1:
            raise ValueError(f"{transfer}: expected at least 1 ps of work")
        self.ended[transfer] = ended
        if self.latency:
            simpy.Timeout(self.env, self.latency).callbacks.append(partial(self._arrive, transfer))
        else:
            self._arrive(transfer)

    def _arrive(self, transfer: Transfer, _event: object = None) -> None:
        self._arrived.append(transfer)
        self._replan_at_end_of_instant()

    def _admit(self) -> None:
        """Let those of this instant queue, and the new heads of queues to the channel: both in program order."""
        for transfer in sorted(self._arrived, key=_program_order):
            queue = self.queues.setdefault(transfer.requester, deque())
            queue.append(transfer)
            if len(queue) == 1:
                self._heads.append(transfer)
        for transfer in sorted(self._heads, key=_program_order):
            transfer.order = self.arrivals
            self.arrivals += 1
            self.pending.append(transfer)
        self._arrived.clear()
        self._heads.clear()

    def _replan_at_end_of_instant(self) -> None:
        if not self._planning:
            self._planning = True
            self._plan_event.set(0)

    def _replan(self, _event: object) -> None:
        """Ask the arbiter, once all arrivals and departures of this instant are known."""
        self._planning = False
        self._admit()
        informed = self.arbiter.reads_remaining
        if informed:
            self._deliver()
        plan = self.arbiter.plan(self.pending) if self.pending else IDLE
        if plan == self._plan and plan.quantum is None and not informed:
            return  # whoever was in service goes on as before
        self._deliver()
        for transfer in self._served:
            transfer.in_service = False
        self._served = [transfer for transfer, _ in plan.shares]
        for transfer in self._served:
            transfer.in_service = True
        self._plan = plan
        self._version += 1
        if plan.shares:
            wait = min(ceil_div(transfer.remaining * plan.denominator, share) for transfer, share in plan.shares)
            if plan.quantum is not None:
                wait = min(wait, plan.quantum)
            simpy.Timeout(self.env, wait).callbacks.append(partial(self._timer, self._version))

    def _timer(self, version: int, _event: object) -> None:
        if version != self._version:
            return
        self._deliver()
        finished = [transfer for transfer, _ in self._plan.shares if not transfer.remaining]
        self._plan = IDLE
        for transfer in finished:
            self.pending.remove(transfer)
        self._end(finished)

    def _end(self, finished: Sequence[Transfer]) -> None:
        """Let those go that have been served, in order of arrival, and those behind them come to the channel."""
        for transfer in finished:
            queue = self.queues[transfer.requester]
            queue.popleft()
            if queue:
                self._heads.append(queue[0])
        for transfer in finished:
            self.ended.pop(transfer)()
        self._replan_at_end_of_instant()

    def _deliver(self) -> None:
        """Credit the time since the last delivery to those in service."""
        now = self.env.now
        elapsed = now - self._since
        shares, denominator = self._plan.shares, self._plan.denominator
        if elapsed and shares:
            left = elapsed * sum(share for _, share in shares) // denominator
            last = len(shares) - 1
            for i, (transfer, share) in enumerate(shares):
                work = min(left if i == last else elapsed * share // denominator, transfer.remaining)
                left -= work
                transfer.remaining -= work
                self.record(transfer, self._since, now, work)
        self._since = now


def _program_order(transfer: Transfer) -> tuple[int, int]:
    return transfer.row
