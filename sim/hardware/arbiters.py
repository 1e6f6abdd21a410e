"""Arbiters: who gets how much of the memory channel.

The contract. `plan(pending)` is told which transfers are at the channel, in order of arrival, and answers with a `Plan`:
shares of the channel as integer fractions that sum to at most 1 and, if it wants, after how much time at this plan to be
asked again. It is asked at each arrival, at each departure and when that time is over. An arbiter must not change a
transfer, must not look at the clock, and must answer the same for the same question: it may keep state of its own, but
only what follows from the questions it was asked. A work-conserving arbiter never leaves the channel idle while a
transfer is pending.

To add one: write such a class in a file of its own and register it as an entry point in the group `decode_sim.arbiters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sim.registry import Registry


@dataclass(slots=True, eq=False)
class Transfer:
    """One request to the channel.

    row: (step, task) in program order. order: number of its arrival at the channel. work: picoseconds it takes at full channel speed; remaining: what is left of it.
    requester: the engine port or DMA queue that issued it; a requester has one transfer at the channel at a time.
    kind, sequence, token: whose it is. in_service: it had a share in the plan until now.
    """

    row: tuple[int, int]
    requester: int
    kind: str
    sequence: int
    token: int
    work: int
    remaining: int
    order: int = 0
    in_service: bool = False

    def __repr__(self) -> str:
        return f"Transfer({self.kind} of token {self.sequence}.{self.token}, {self.remaining}/{self.work} ps left)"


class Plan(NamedTuple):
    """`shares[i]` = (transfer, numerator) over the common `denominator`; `quantum` in ps of time, or None."""

    shares: Sequence[tuple[Transfer, int]]
    denominator: int
    quantum: int | None = None


class Arbiter(Protocol):
    """Divides the channel among pending transfers; see the module for the contract.

    `cap` is the largest share that one requester's port can draw, as (numerator, denominator).
    """

    cap: tuple[int, int]
    work_conserving: bool

    def plan(self, pending: Sequence[Transfer]) -> Plan: ...


class Fifo:
    """First come, first served: the channel is exclusive, in order of arrival."""

    work_conserving = True

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        self.cap = cap

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        return Plan(((pending[0], self.cap[0]),), self.cap[1])


class ProcessorSharing:
    """Max-min fair sharing: equal shares, none above the cap of a requester's port."""

    work_conserving = True

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        self.cap = cap

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        num, den = self.cap
        n = len(pending)
        if n * num <= den:  # nobody reaches the fair share: the ports are the limit
            return Plan([(transfer, num) for transfer in pending], den)
        return Plan([(transfer, 1) for transfer in pending], n)


ARBITERS: Registry[type[Arbiter]] = Registry("arbiter", {"fifo": Fifo, "processor_sharing": ProcessorSharing})
