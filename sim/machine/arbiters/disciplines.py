"""Arbiters as the compiled executor knows them: which discipline a channel follows, and the numbers it needs for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import gcd
from typing import Any, Literal

from sim.machine.arbiters.contract import Arbiter
from sim.machine.arbiters.derated import Derated, Efficiency
from sim.machine.arbiters.exclusive import Fifo, Priority, RoundRobin
from sim.machine.arbiters.sharing import ProcessorSharing, Proportional, Weighted
from sim.machine.arbiters.written import MOST_SHARES, KernelArbiter

#: Numbers that are multiplied stay below this, so that int64 holds the product.
MOST = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Discipline:
    """The division of a channel, in integers.

    kind: one at a time by urgency, one at a time in turns, all at once by class, all at once by what is left of each, or as a
    rule says. by: the field of a transfer that gives its urgency or class.
    levels: urgency or class by kind of transfer, or class by number of sequence; `other` for what is not named.
    cap: share of a lone transfer, at most. weights: of each class; with `whole` they are rates, which shrink where
    their sum exceeds it. efficiency: of the channel with n transfers in service, [n] from 0.
    rule, memory: of a `KernelArbiter`; reads: it reads what is left.
    """

    kind: Literal["exclusive", "turns", "classes", "outstanding", "rule"]
    cap: tuple[int, int]
    by: Literal["kind", "age", "sequence"] = "kind"
    preemptive: bool = False
    levels: Mapping[str, int] = field(default_factory=dict)
    other: int = 0
    burst: int = 0
    weights: tuple[int, ...] = (1,)
    whole: int = 0
    efficiency: tuple[Fraction, ...] = ()
    rule: Callable[[Any, int, Any, Any], int] | None = None
    memory: tuple[int, ...] = ()
    reads: bool = False

    def level(self, kind: str) -> int:
        """The urgency or class of a kind of transfer."""
        return self.levels.get(kind, self.other) if self.by == "kind" else 0

    @property
    def alone(self) -> Fraction:
        """The share of a transfer that is served alone."""
        cap = Fraction(*self.cap)
        return min(cap, self.efficiency[1]) if self.efficiency else cap


def discipline_of(arbiter: Arbiter, requesters: int) -> Discipline | None:
    """The discipline of an arbiter with so many requesters at most; None if it is not one of ours, or has too large numbers."""
    if isinstance(arbiter, Derated):
        plain = discipline_of(arbiter.arbiter, requesters)
        if plain is None:
            return None
        found = replace(plain, efficiency=_curve(arbiter.efficiency, requesters))
    else:
        plain = _plain(arbiter)
        if plain is None:
            return None
        found = plain
    return found if _fits(found, requesters) else None


def _plain(arbiter: Arbiter) -> Discipline | None:
    policy = type(arbiter)  # a subclass may do something else
    if isinstance(arbiter, KernelArbiter):
        return _written(arbiter)
    if policy is Fifo:
        return Discipline(kind="exclusive", cap=arbiter.cap)
    if policy is Priority and isinstance(arbiter, Priority):
        levels = arbiter.level
        return Discipline(
            kind="exclusive", cap=arbiter.cap, by="age" if levels is None else "kind", preemptive=arbiter.preemptive,
            levels=levels or {}, other=len(levels or {}),
        )  # fmt: skip
    if policy is RoundRobin and isinstance(arbiter, RoundRobin):
        return Discipline(kind="turns", cap=arbiter.cap, burst=arbiter.burst)
    if policy is ProcessorSharing:
        return Discipline(kind="classes", cap=arbiter.cap)
    if policy is Weighted and isinstance(arbiter, Weighted):
        weights, levels = _classes(arbiter.weights, 1)
        by: Literal["kind", "sequence"] = "sequence" if arbiter.by_sequence else "kind"
        return Discipline(kind="classes", cap=arbiter.cap, by=by, weights=weights, levels=levels, other=weights.index(1))
    if policy is Proportional and isinstance(arbiter, Proportional) and arbiter.demand is None:
        return Discipline(kind="outstanding", cap=arbiter.cap)
    if policy is Proportional and isinstance(arbiter, Proportional):
        rate_of, otherwise = arbiter.rates()
        whole = arbiter.bandwidth * arbiter.cap[1]
        common = gcd(whole, otherwise, *rate_of.values())  # shares are reduced fractions in any case
        rate_of, otherwise, whole = (
            {name: rate // common for name, rate in rate_of.items()},
            otherwise // common,
            whole // common,
        )
        weights, levels = _classes(rate_of, otherwise)
        return Discipline(
            kind="classes", cap=arbiter.cap, weights=weights, levels=levels, other=weights.index(otherwise), whole=whole
        )
    return None


def _written(arbiter: KernelArbiter) -> Discipline | None:
    if type(arbiter).plan is not KernelArbiter.plan:
        return None
    return Discipline(
        kind="rule", cap=arbiter.cap, levels={kind: i for i, kind in enumerate(arbiter.kinds)}, other=-1,
        rule=type(arbiter).rule, memory=tuple(arbiter.memory), reads=arbiter.reads_remaining,
    )  # fmt: skip


def _classes(weight_of: Mapping[str, int], otherwise: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """The distinct weights, the largest first, and the class of each name."""
    weights = tuple(sorted({*weight_of.values(), otherwise}, reverse=True))
    return weights, {name: weights.index(weight) for name, weight in weight_of.items()}


def _curve(efficiency: Efficiency, requesters: int) -> tuple[Fraction, ...]:
    """[n]: share of its bandwidth that the channel delivers to n transfers; constant beyond the last point."""
    last = min(efficiency.counts[-1], requesters)
    return (Fraction(1), *(efficiency.at(n) for n in range(1, last + 1)))


def _fits(found: Discipline, requesters: int) -> bool:
    """Whether no product of shares can exceed int64."""
    curve = max((max(e.numerator, e.denominator) for e in found.efficiency), default=1)
    if found.kind == "rule":
        return MOST_SHARES * curve < MOST
    if found.kind == "turns":
        return found.burst < MOST and found.cap[1] ** 2 * curve < MOST
    if found.kind == "exclusive":
        return found.cap[1] * curve < MOST
    if found.kind == "outstanding":  # what is left is checked as it comes
        return found.cap[1] ** 2 * curve < MOST
    total = requesters * max(found.weights)
    if found.whole:
        return max(total, found.whole) * curve < MOST
    return total * found.cap[1] ** 2 * curve < MOST
