"""Arbiters that the compiled executor supports."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sim.machine.arbiters import ARBITERS, Arbiter, Derated, Efficiency, Weighted
from sim.machine.arbiters.disciplines import discipline_of

OPTIONS = {
    "round_robin": {"bandwidth": 10**11}, "weighted": {"weights": {"kv_load": 3}}, "proportional": {"bandwidth": 10**11},
}  # fmt: skip


def made(name: str, factory: type[Arbiter]) -> Arbiter:
    return factory(cap=(1, 2), **OPTIONS.get(name, {}))  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ARBITERS.names())
def test_shipped_arbiters_have_a_discipline_and_subclasses_have_none(name: str) -> None:
    """A subclass may divide the channel differently, so it runs with the reference executor unless it has a discipline."""
    factory = ARBITERS.get(name)
    found = discipline_of(made(name, factory), requesters=4)
    assert found is not None
    assert found.cap == (1, 2)
    assert discipline_of(made(name, type("Own", (factory,), {})), requesters=4) is None


def test_a_subclass_may_give_its_own() -> None:
    class Heavier(Weighted):
        def discipline(self) -> object:
            return super().discipline()

    assert discipline_of(Heavier(weights=[5, 1, 5]), requesters=4) == discipline_of(Weighted(weights=[5, 1, 5]), requesters=4)


def test_the_discipline_of_a_derated_channel_contains_its_curve() -> None:
    """Up to the largest possible number of transfers; the share of a single one is the smaller of cap and curve."""
    arbiter = Derated(made("fifo", ARBITERS.get("fifo")), Efficiency({1: Fraction(1, 4), 3: Fraction(3, 4)}))
    found = discipline_of(arbiter, requesters=2)
    assert found is not None
    assert found.efficiency == (1, Fraction(1, 4), Fraction(1, 2))
    assert found.alone == Fraction(1, 4)


def test_numbers_that_int64_does_not_hold_are_left_to_the_reference() -> None:
    assert discipline_of(Weighted(weights=[2**60, 1]), requesters=4) is None
