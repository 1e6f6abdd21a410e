"""Disciplines: arbiters as numbers, for the compiled executor.

An arbiter whose class has a method `discipline(self) -> Discipline` is compiled; all others run with the reference executor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

from sim.machine.arbiters.contract import Arbiter
from sim.machine.arbiters.derated import Derated, Efficiency
from sim.machine.arbiters.written import MOST_SHARES, KernelArbiter

#: Numbers that are multiplied stay below this, so that int64 holds the product.
MOST = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Discipline:
    """The division of a channel, in integers.

    kind: one at a time by urgency, one at a time in turns, all at once by class, all at once by what is left of each, as a
    rule says, or as all links of a path allow (`sim.machine.arbiters.paths`). by: the field of a transfer that gives its
    urgency or class.
    levels: urgency or class by kind of transfer, or class by number of sequence; `other` for what is not named.
    cap: share of a lone transfer, at most. weights: of each class; with `whole` they are rates, which shrink where
    their sum exceeds it. efficiency: of the channel with n transfers in service, [n] from 0.
    one: with `paths`, which several links share, one at a time on each.
    rule, memory: of a `KernelArbiter`; reads: it reads what is left; conserves: it never leaves the channel idle.
    """

    kind: Literal["exclusive", "turns", "classes", "outstanding", "rule", "paths"]
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
    conserves: bool = False
    one: bool = False

    def level(self, kind: str) -> int:
        """The urgency or class of a kind of transfer."""
        return self.levels.get(kind, self.other) if self.by == "kind" else 0

    @property
    def alone(self) -> Fraction:
        """The share of a transfer that is served alone."""
        cap = Fraction(*self.cap)
        return min(cap, self.efficiency[1]) if self.efficiency else cap

    @property
    def curve(self) -> int:
        """The largest number in the fractions of the efficiency."""
        return max((max(each.as_integer_ratio()) for each in self.efficiency), default=1)

    @property
    def growth(self) -> int:
        """By how much numbers grow, at most, where weights are divided: denominators of cap and efficiency multiply."""
        return self.cap[1] * self.curve * max(self.cap[1], self.curve)


def discipline_of(arbiter: Arbiter, requesters: int) -> Discipline | None:
    """The discipline of an arbiter, None if it is a third party's or its numbers are too large. requesters: at most."""
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
    """The discipline of an arbiter as its own class gives it: a subclass that inherits one may divide the channel otherwise."""
    if isinstance(arbiter, KernelArbiter):
        return _by_rule(arbiter) if type(arbiter).plan is KernelArbiter.plan else None
    given = vars(type(arbiter)).get("discipline")
    found: Discipline | None = given(arbiter) if given is not None else None
    return found


def _by_rule(arbiter: KernelArbiter) -> Discipline:
    return Discipline(
        kind="rule", cap=arbiter.cap, levels={kind: i for i, kind in enumerate(arbiter.kinds)}, other=-1,
        rule=type(arbiter).rule, memory=tuple(arbiter.memory), reads=arbiter.reads_remaining,
        conserves=bool(arbiter.work_conserving),
    )  # fmt: skip


def classes_of(weight_of: Mapping[str, int], otherwise: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """The distinct weights, the largest first, and the class of each name. otherwise: weight of all other names."""
    weights = tuple(sorted({*weight_of.values(), otherwise}, reverse=True))
    return weights, {name: weights.index(weight) for name, weight in weight_of.items()}


def _curve(efficiency: Efficiency, requesters: int) -> tuple[Fraction, ...]:
    """[n]: share of its bandwidth that the channel delivers to n transfers; constant beyond the last point."""
    last = min(efficiency.counts[-1], requesters)
    return (Fraction(1), *(efficiency.at(n) for n in range(1, last + 1)))


def _fits(found: Discipline, requesters: int) -> bool:
    """Whether no product of shares can exceed int64."""
    curve = found.curve
    if found.kind == "rule":
        return MOST_SHARES * curve < MOST
    if found.kind == "turns":
        return found.burst < MOST and found.cap[1] ** 2 * curve < MOST
    if found.kind == "exclusive":
        return found.cap[1] * curve < MOST
    if found.kind == "outstanding":  # what is left is checked as it comes
        return found.growth < MOST
    total = requesters * max(found.weights)
    if found.whole:
        return max(total, found.whole) * curve < MOST
    return total * found.growth < MOST
