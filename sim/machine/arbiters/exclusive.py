"""Arbiters that serve one transfer at a time, at the speed of its port."""

from __future__ import annotations

from collections.abc import Sequence

from sim.base.quantities import SIZE
from sim.base.units import PS_PER_S, ceil_div
from sim.machine.arbiters.contract import Arbiter, Plan, Transfer
from sim.machine.arbiters.disciplines import Discipline
from sim.machine.arbiters.options import at_least_one, expected, switch
from sim.machine.arbiters.rules import NO_LIMIT, turn_is_over, turn_until


class Fifo(Arbiter):
    """First come, first served: the channel is exclusive, in order of arrival."""

    work_conserving = True

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        self.cap = cap

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        return Plan(((pending[0], self.cap[0]),), self.cap[1])

    def discipline(self) -> Discipline:
        return Discipline(kind="exclusive", cap=self.cap)


class Priority(Arbiter):
    """The most urgent class first, in order of arrival within a class; one transfer at a time.

    classes: `age` (each token is a class, the one whose step was released first is the most urgent), or a list of kinds of
    transfers from most to least urgent; a kind that is not listed comes after all that are.
    preemptive: whether an arrival takes the channel from a less urgent transfer, which later goes on where it was
    (pre-emptive resume), or waits for its end.
    """

    work_conserving = True

    def __init__(
        self, *, classes: str | Sequence[str] = "age", preemptive: bool = False, cap: tuple[int, int] = (1, 1)
    ) -> None:
        self.cap = cap
        self.preemptive = switch("preemptive", preemptive)
        self.level: dict[str, int] | None = None
        if classes == "age":
            return
        if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
            raise expected("classes", "'age' or a list of kinds of transfers, most urgent first", classes)
        self.level = {}
        for kind in classes:
            if not isinstance(kind, str) or not kind or kind in self.level:
                raise expected("classes", "each kind once, as a text", kind)
            self.level[kind] = len(self.level)
        self.kinds = tuple(self.level)

    def urgency(self, transfer: Transfer) -> int:
        """The class of a transfer; the lowest goes first."""
        return transfer.age if self.level is None else self.level.get(transfer.kind, len(self.level))

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        chosen = None
        if not self.preemptive:
            chosen = next((transfer for transfer in pending if transfer.in_service), None)
        if chosen is None:
            chosen = min(pending, key=self.urgency)  # the first of several: order of arrival
        return Plan(((chosen, self.cap[0]),), self.cap[1])

    def discipline(self) -> Discipline:
        if self.level is None:
            return Discipline(kind="exclusive", cap=self.cap, by="age", preemptive=self.preemptive)
        return Discipline(kind="exclusive", cap=self.cap, preemptive=self.preemptive, levels=self.level, other=len(self.level))


class RoundRobin(Arbiter):
    """Requesters take turns in order of their numbers, one burst at a time; a lone one goes on without turns.

    burst: size of a turn in bytes, such as `4 KiB`, or a bare number: picoseconds of the channel at full speed. What a
    transfer has left is its last turn. As bursts shrink this becomes processor sharing (Kleinrock, 1967).
    """

    work_conserving = True
    reads_remaining = True

    def __init__(self, *, bandwidth: int, burst: str | int = "64 KiB", cap: tuple[int, int] = (1, 1)) -> None:
        self.cap = cap
        if isinstance(burst, str):
            try:
                self.burst = ceil_div(SIZE.parse(burst) * PS_PER_S, bandwidth)
            except ValueError as error:
                raise ValueError(f"burst: {error}") from None
        else:
            self.burst = at_least_one("burst", burst)
        self._turn: Transfer | None = None
        self._from = 0  # work left of it when it got the channel
        self._until = NO_LIMIT  # its turn is over when no more than this is left; without a limit while it is alone

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        num, den = self.cap
        alone = len(pending) == 1
        turn, until = self._turn, self._until
        left = turn.remaining if turn is not None else 0
        if left and until == NO_LIMIT and not alone:  # others arrived during one of its bursts
            until = turn_until(self._from, left, self.burst)
        if turn is None or turn_is_over(left, until):
            last = turn.requester if turn is not None else -1
            turn = min(pending, key=lambda transfer: (transfer.requester <= last, transfer.requester))
            self._from = turn.remaining
            until = NO_LIMIT if alone else turn.remaining - self.burst
        self._turn, self._until = turn, until
        quantum = None if until == NO_LIMIT else ceil_div((turn.remaining - until) * den, num)
        return Plan(((turn, num),), den, quantum)

    def discipline(self) -> Discipline:
        return Discipline(kind="turns", cap=self.cap, burst=self.burst)
