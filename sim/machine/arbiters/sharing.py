"""Arbiters that serve all pending transfers at once, each at a share of the channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any

from sim.base.quantities import BANDWIDTH
from sim.machine.arbiters.contract import WHOLE, Arbiter, Plan, Ratio, Transfer
from sim.machine.arbiters.disciplines import Discipline, classes_of
from sim.machine.arbiters.options import at_least_one, expected
from sim.machine.arbiters.rules import RECORD, SHARE, max_min_of, rates


def water_fill(weights: Sequence[int], cap: Ratio, delivered: Ratio = WHOLE) -> tuple[list[int], int]:
    """Divide what a channel delivers in proportion to positive weights, none above `cap`: numerators, their denominator."""
    return _by_class(weights, lambda table, classes: max_min_of(table, 0, RECORD, classes, *cap, *delivered))


def _by_class(weights: Sequence[int], divide: Callable[[Any, int], int]) -> tuple[list[int], int]:
    """The share of each transfer, where those of equal weight are a class of the table that `divide` fills in."""
    counts = Counter(weights)
    table = [word for weight, count in counts.items() for word in (weight, count, 0)]
    denominator = divide(table, len(counts))
    share = {weight: table[i * RECORD + SHARE] for i, weight in enumerate(counts)}
    return [share[weight] for weight in weights], denominator


class ProcessorSharing(Arbiter):
    """Max-min fair sharing: equal shares, none above the cap of a requester's port."""

    work_conserving = True

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        self.cap = cap

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        return self.divide(pending, WHOLE)

    def divide(self, pending: Sequence[Transfer], delivered: Ratio) -> Plan:
        shares, denominator = water_fill([1] * len(pending), self.cap, delivered)
        return Plan(list(zip(pending, shares, strict=True)), denominator)

    def discipline(self) -> Discipline:
        return Discipline(kind="classes", cap=self.cap)


class Weighted(Arbiter):
    """Generalised processor sharing: shares in proportion to weights, none above the cap of a requester's port.

    weights: whole numbers by kind of transfer (`{kv_load: 3, weight_load: 1}`) or by number of sequence (`{0: 3}`, or a
    list); 1 for all others. Parekh and Gallager, 1993.
    """

    work_conserving = True

    def __init__(self, *, weights: Mapping[str, int] | Sequence[int] | str, cap: tuple[int, int] = (1, 1)) -> None:
        self.cap = cap
        table: Mapping[Any, Any] = {}
        if isinstance(weights, Mapping):
            table = weights
        elif isinstance(weights, Sequence) and not isinstance(weights, str):
            table = dict(enumerate(weights))
        numbered = [str(key).isdecimal() for key in table]
        if not table or any(numbered) != all(numbered):
            raise expected("weights", "whole numbers by kind of transfer, or by number of sequence", weights)
        self.by_sequence = numbered[0]
        self.weights = {str(key): at_least_one(f"weights.{key}", weight) for key, weight in table.items()}
        self.kinds = () if self.by_sequence else tuple(self.weights)
        self.numbers = tuple(map(int, self.weights)) if self.by_sequence else ()

    def weight(self, transfer: Transfer) -> int:
        """The weight that a transfer's share is in proportion to."""
        return self.weights.get(str(transfer.sequence) if self.by_sequence else transfer.kind, 1)

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        return self.divide(pending, WHOLE)

    def divide(self, pending: Sequence[Transfer], delivered: Ratio) -> Plan:
        shares, denominator = water_fill([self.weight(transfer) for transfer in pending], self.cap, delivered)
        return Plan(list(zip(pending, shares, strict=True)), denominator)

    def discipline(self) -> Discipline:
        weights, levels = classes_of(self.weights, 1)
        return Discipline(
            kind="classes", cap=self.cap, by="sequence" if self.by_sequence else "kind", weights=weights, levels=levels,
            other=weights.index(1),
        )  # fmt: skip


class Proportional(Arbiter):
    """Shares in proportion to demand: the aggressive stream wins, as real memory controllers tend to have it.

    demand: `outstanding` (what is left of a transfer: all that are pending tend to end together), or what each kind of
    transfer draws when it is alone (`{kv_load: 60 GB/s}`; the whole port for what is not named): all slow down by the same
    factor once their demands exceed the channel. Such demands are not work-conserving: a lone transfer leaves bandwidth.
    """

    work_conserving = True
    reads_remaining = True

    def __init__(
        self, *, bandwidth: int, demand: str | Mapping[str, str] = "outstanding", cap: tuple[int, int] = (1, 1)
    ) -> None:
        self.cap = cap
        self.bandwidth = bandwidth
        self.demand: dict[str, int] | None = None
        if demand == "outstanding":
            return
        if not isinstance(demand, Mapping) or not demand:
            raise expected("demand", "'outstanding' or bandwidths by kind of transfer", demand)
        self.work_conserving = self.reads_remaining = False
        self.demand = {}
        for kind, rate in demand.items():
            try:
                self.demand[kind] = BANDWIDTH.parse(rate)
            except ValueError as error:
                raise ValueError(f"demand.{kind}: {error}") from None
        self.kinds = tuple(self.demand)

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        plan = self.divide(pending, WHOLE)
        if plan is not None:
            return plan
        rate_of, otherwise = self.rates()
        weights = [rate_of.get(transfer.kind, otherwise) for transfer in pending]
        whole = self.bandwidth * self.cap[1]
        shares, denominator = _by_class(weights, lambda table, classes: rates(table, 0, RECORD, classes, whole))
        return Plan(list(zip(pending, shares, strict=True)), denominator)

    def divide(self, pending: Sequence[Transfer], delivered: Ratio) -> Plan | None:
        if self.demand is not None:
            return None
        # Shares in proportion to what remains keep that proportion while they hold, so asking at arrivals and
        # departures is exact unless a port is the limit.
        shares, denominator = water_fill([transfer.remaining for transfer in pending], self.cap, delivered)
        return Plan(list(zip(pending, shares, strict=True)), denominator)

    def rates(self) -> tuple[dict[str, int], int]:
        """Rates of a lone transfer by kind, and of all other kinds, in units of 1/den bytes/s, in which the cap is whole."""
        num, den = self.cap
        port = num * self.bandwidth
        return {kind: min(rate * den, port) for kind, rate in (self.demand or {}).items()}, min(self.bandwidth * den, port)

    def discipline(self) -> Discipline:
        if self.demand is None:
            return Discipline(kind="outstanding", cap=self.cap)
        rate_of, otherwise = self.rates()
        whole = self.bandwidth * self.cap[1]
        common = gcd(whole, otherwise, *rate_of.values())  # shares are reduced fractions in any case
        weights, levels = classes_of({name: rate // common for name, rate in rate_of.items()}, otherwise // common)
        return Discipline(
            kind="classes", cap=self.cap, weights=weights, levels=levels, other=weights.index(otherwise // common),
            whole=whole // common,
        )  # fmt: skip
