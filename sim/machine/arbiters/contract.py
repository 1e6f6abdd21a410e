"""The contract between a memory channel and the arbiter that divides it.

`plan(pending)` gets the transfers that are at the channel, in order of arrival, and returns a `Plan`: shares of the
channel as integer fractions that sum to at most 1 and, if it wants, after how much time at this plan to be asked again. It
is asked at each arrival, at each departure and when that time is over. An arbiter must not change a transfer, must not look
at the clock, and must answer the same for the same question: it may keep state of its own, but only what follows from the
questions it was asked. Each channel of each run has an arbiter of its own. A work-conserving arbiter never leaves the
channel idle while a transfer is pending.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sim.base.errors import InputError

#: A fraction of a channel: numerator and denominator.
Ratio = tuple[int, int]

WHOLE: Ratio = (1, 1)

#: A place in program order: sequence, token, and number of the task in its step; of a batch, its loop and step instead.
Program = tuple[int, int, int]


@dataclass(slots=True, eq=False)
class Transfer:
    """One request to the channel.

    program: its task in program order. requester: the engine port or DMA queue that issued it; a requester has one transfer at
    a channel at a time.
    kind, sequence, token: of its task. work: picoseconds it takes at full channel speed; remaining: the part of it not yet
    served.
    order: number of its arrival at the channel. in_service: it had a share in the plan until now.
    age: number of the release of its step, smaller is older. moves: its byte classes, bits of `sim.mapping.tasks.CLASS_BIT`.
    path: numbers of the links that it crosses at once; empty if it goes to one channel.
    """

    program: Program
    requester: int
    kind: str
    sequence: int
    token: int
    work: int
    remaining: int
    order: int = 0
    in_service: bool = False
    age: int = 0
    moves: int = 0
    path: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"Transfer({self.kind} of token {self.sequence}.{self.token}, {self.remaining}/{self.work} ps left)"


class Plan(NamedTuple):
    """`shares[i]` = (transfer, numerator) over the common `denominator`; `quantum` in ps of time, or None."""

    shares: Sequence[tuple[Transfer, int]]
    denominator: int
    quantum: int | None = None


class PlanError(InputError):
    """A plan that breaks the contract: the arbiter, what was expected and what was found. The channel adds place and time."""


class Arbiter(Protocol):
    """Divides a channel among pending transfers; see the module for the contract.

    It is made with `cap`, with the options of the scenario, and with `bandwidth` (bytes/s of the channel) if it has a
    parameter of that name. An option that it cannot use is a ValueError that says what was expected and what was found.

    cap: the largest share that one requester's port can draw, as (numerator, denominator).
    work_conserving: it never leaves the channel idle. Each plan of a third party is checked for that, and for the cap.
    reads_remaining: its answers depend on `Transfer.remaining`. The channel then credits all work before it asks; else it
    does so only when the plan changes, which is cheaper and keeps intervals of service whole.
    kinds, numbers: kinds of transfers and numbers of sequences that its options name: those that do not exist are errors.
    An arbiter whose class also has `discipline()` (see `disciplines`) runs with the compiled executor, too.
    One that serves all pending transfers at once may also have `divide(pending, delivered)`: its plan where the channel
    delivers
    that share of its bandwidth, so that a port is the limit only of a share of what is delivered; or None. On a channel
    with an efficiency, the plan of any other shrinks by one factor (see `derated`).
    """

    cap: Ratio
    work_conserving: bool
    reads_remaining: bool = False
    kinds: Collection[str] = ()
    numbers: Collection[int] = ()

    def plan(self, pending: Sequence[Transfer]) -> Plan: ...
