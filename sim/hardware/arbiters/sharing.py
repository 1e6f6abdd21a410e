"""Arbiters that serve all pending transfers at once, each at a share of the channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

from sim.hardware.arbiters.contract import Arbiter, Plan, Transfer
from sim.hardware.arbiters.options import at_least_one, expected
from sim.quantities import BANDWIDTH


def water_fill(weights: Sequence[int], cap: tuple[int, int]) -> tuple[list[int], int]:
    """Divide a channel in proportion to positive weights, none above `cap`; what a capped one leaves goes to the others.

    Returns numerators and their denominator, exactly (Bertsekas and Gallager, Data Networks, 1992, section 6.5.2: max-min
    fairness with weights). With k at the cap num/den, the others share (den - k num)/den by weight.
    """
    num, den = cap
    capped, left = 0, sum(weights)
    heaviest_first = sorted(range(len(weights)), key=lambda i: -weights[i])
    for i in heaviest_first:
        if weights[i] * (den - capped * num) < num * left:
            break  # it stays below the cap, and so do all that are lighter
        capped, left = capped + 1, left - weights[i]
    if not left:
        return [num] * len(weights), den
    shares = [weight * (den - capped * num) for weight in weights]
    for i in heaviest_first[:capped]:
        shares[i] = num * left
    common = gcd(den * left, *shares)
    return [share // common for share in shares], den * left // common


class ProcessorSharing(Arbiter):
    """Max-min fair sharing: equal shares, none above the cap of a requester's port."""

    work_conserving = True

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        self.cap = cap

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        share, denominator = self.rate(len(pending))
        return Plan([(transfer, share) for transfer in pending], denominator)

    def rate(self, n: int) -> tuple[int, int]:
        """The share of each of n."""
        num, den = self.cap
        return (num, den) if n * num <= den else (1, n)  # if nobody reaches the fair share, the ports are the limit


class Weighted(Arbiter):
    """Generalised processor sharing: shares in proportion to weights, none above the cap of a requester's port.

    weights: whole numbers by kind of transfer (`{kv_load: 3, weight_load: 1}`) or by number of sequence (`{0: 3}`, or a
    list); 1 for what is not named. Parekh and Gallager, 1993.
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

    def weight(self, transfer: Transfer) -> int:
        """What a transfer's share is in proportion to."""
        return self.weights.get(str(transfer.sequence) if self.by_sequence else transfer.kind, 1)

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        shares, denominator = water_fill([self.weight(transfer) for transfer in pending], self.cap)
        return Plan(list(zip(pending, shares, strict=True)), denominator)


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
        if self.demand is None:
            # Shares in proportion to what remains keep that proportion while they hold, so asking at arrivals and
            # departures is exact unless a port is the limit.
            shares, denominator = water_fill([max(1, transfer.remaining) for transfer in pending], self.cap)
            return Plan(list(zip(pending, shares, strict=True)), denominator)
        num, den = self.cap
        port = num * self.bandwidth  # rates in units of 1/den bytes/s, so that the cap is whole
        rates = [min(self.demand.get(transfer.kind, self.bandwidth) * den, port) for transfer in pending]
        whole = max(sum(rates), self.bandwidth * den)
        common = gcd(whole, *rates)
        return Plan([(t, rate // common) for t, rate in zip(pending, rates, strict=True)], whole // common)
