"""The rules of arbiters as arithmetic: shares as fractions, turns as multiples of bursts."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, gcd
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from sim.machine.arbiters import Derated, Efficiency, Plan
from sim.machine.arbiters.rules import (
    MANY,
    RECORD,
    SHARE,
    WEIGHT,
    derate,
    derated,
    max_min,
    max_min_of,
    rates,
    reduced,
    turn_until,
)

#: Classes of transfers: weight, number pending, numerator of the share of each.
CLASSES = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 4), st.integers(1, 60)), min_size=1, max_size=5).filter(
    lambda classes: any(many for _, many, _ in classes)
)


def table_of(classes: list[tuple[int, int, int]], at: int) -> list[int]:
    table = [-7] * at  # other words of the table, which must stay as they are
    for weight, many, share in classes:
        table += [0] * RECORD
        table[-RECORD + WEIGHT], table[-RECORD + MANY], table[-RECORD + SHARE] = weight, many, share
    return table


def shares(table: list[int], at: int, denominator: int) -> list[Fraction]:
    """Shares of the classes that have transfers."""
    records = range(at, len(table), RECORD)
    return [Fraction(table[i + SHARE], denominator) for i in records if table[i + MANY]]


def total(classes: list[tuple[int, int, int]], found: list[Fraction]) -> Fraction:
    return sum((many * share for many, share in zip((m for _, m, _ in classes if m), found, strict=True)), Fraction(0))


@given(CLASSES, st.integers(0, 5), st.integers(1, 4000))
def test_reduced_shares_are_the_same_fractions_in_lowest_terms(classes, at, denominator):
    table = table_of(classes, at)
    before = shares(table, at, denominator)
    after = reduced(table, at, RECORD, len(classes), denominator)
    assert shares(table, at, after) == before
    assert gcd(after, *(table[i + SHARE] for i in range(at, len(table), RECORD) if table[i + MANY])) == 1
    assert table[:at] == [-7] * at


@given(CLASSES, st.integers(0, 5), st.integers(1, 4000), st.integers(1, 30), st.integers(1, 30))
def test_derated_shares_sum_to_what_the_channel_delivers(classes, at, denominator, num, den):
    """Shares keep their ratios, and sum to the smaller of the requested sum and num/den."""
    table = table_of(classes, at)
    before = shares(table, at, denominator)
    after = shares(table, at, derate(table, at, RECORD, len(classes), denominator, num, den))
    wanted = total(classes, before)
    factor = min(Fraction(1), Fraction(num, den) / wanted)
    assert after == [factor * share for share in before]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 4000), st.integers(1, 30), st.integers(0, 30),
)  # fmt: skip
def test_a_derated_arbiter_and_the_table_of_kernels_have_the_same_shares(numerators, denominator, num, more):
    """The reference executor asks the arbiter, the compiled one derates a table, here of classes of one transfer each."""
    limit = Fraction(num, num + more)
    plan = Plan([(number, share) for number, share in enumerate(numerators)], denominator)  # type: ignore[misc]
    arbiter = SimpleNamespace(
        plan=lambda _: plan, cap=(1, 1), work_conserving=True, reads_remaining=False, kinds=(), numbers=()
    )
    found = Derated(arbiter, Efficiency({1: limit})).plan([])  # type: ignore[arg-type]
    table = table_of([(1, 1, share) for share in numerators], 0)
    after = derate(table, 0, RECORD, len(numerators), denominator, limit.numerator, limit.denominator)
    assert [Fraction(share, found.denominator) for _, share in found.shares] == shares(table, 0, after)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 30), st.integers(0, 30))
def test_what_is_wanted_shrinks_to_what_is_delivered(wanted, denominator, num, more):
    factor, slower = derated(wanted, denominator, num, num + more)
    assert Fraction(wanted * factor, slower) == min(Fraction(wanted, denominator), Fraction(num, num + more))
    assert (slower == denominator) == (Fraction(wanted, denominator) <= Fraction(num, num + more))


@given(CLASSES, st.integers(0, 5), st.integers(1, 200))
def test_rates_slow_down_together(classes, at, whole):
    table = table_of(classes, at)
    found = shares(table, at, rates(table, at, RECORD, len(classes), whole))
    wanted = sum(weight * many for weight, many, _ in classes)
    assert found == [Fraction(weight, max(wanted, whole)) for weight, many, _ in classes if many]


@given(CLASSES, st.integers(0, 5), st.integers(1, 20), st.integers(1, 20))
def test_max_min_shares_are_weights_times_one_level_up_to_the_cap(classes, at, num, den):
    """Max-min fairness: each gets min(cap, weight x level) at one level, and the channel is full or all are capped."""
    cap = min(Fraction(num, den), Fraction(1))
    table = table_of(classes, at)
    found = shares(table, at, max_min(table, at, RECORD, len(classes), cap.numerator, cap.denominator))
    weights = [weight for weight, many, _ in classes if many]
    levels = {share / weight for share, weight in zip(found, weights, strict=True) if share < cap}
    assert len(levels) <= 1
    if levels:
        (level,) = levels
        assert found == [min(cap, weight * level) for weight in weights]
        assert total(classes, found) == 1
    else:
        assert set(found) == {cap}
        assert total(classes, found) <= 1


@given(CLASSES, st.integers(0, 5), st.integers(1, 20), st.integers(1, 20), st.integers(1, 30), st.integers(0, 30))
def test_a_part_of_a_channel_is_divided_as_the_whole_is(classes, at, num, den, part, more):
    """Each gets min(cap, weight x level) at one level, and together all that is delivered, or all are capped."""
    cap, delivered = min(Fraction(num, den), Fraction(1)), Fraction(part, part + more)
    table = table_of(classes, at)
    denominator = max_min_of(table, at, RECORD, len(classes), *cap.as_integer_ratio(), part, part + more)
    found = shares(table, at, denominator)
    weights = [weight for weight, many, _ in classes if many]
    levels = {share / weight for share, weight in zip(found, weights, strict=True) if share < cap}
    if levels:
        (level,) = levels
        assert found == [min(cap, weight * level) for weight in weights]
        assert total(classes, found) == delivered
    else:
        assert set(found) == {cap}
        assert total(classes, found) <= delivered
    assert table[:at] == [-7] * at


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 5000))
def test_a_turn_ends_after_whole_bursts(began, done, burst):
    """With `began` left at its start: the first multiple of bursts, one at least, by which `left` has been served."""
    left = max(0, began - done)
    bursts, rest = divmod(began - turn_until(began, left, burst), burst)
    assert rest == 0
    assert bursts == max(1, ceil(Fraction(began - left, burst)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(40, 200), st.integers(1, 99), st.integers(1, 10**9))
def test_a_derated_plan_lasts_until_the_same_work_is_done(numerators, denominator, percent, quantum):
    """A quantum stands for the whole work that is done in it: at smaller shares, the time in which as much is done."""
    plan = Plan([(number, share) for number, share in enumerate(numerators)], denominator, quantum)  # type: ignore[misc]
    arbiter = SimpleNamespace(
        plan=lambda _: plan, cap=(1, 1), work_conserving=True, reads_remaining=False, kinds=(), numbers=()
    )
    limit = Fraction(percent, 100)
    found = Derated(arbiter, Efficiency({1: limit})).plan([])  # type: ignore[arg-type]
    wanted = Fraction(sum(numerators), denominator)
    factor = min(Fraction(1), limit / wanted)
    assert [Fraction(share, found.denominator) for _, share in found.shares] == [
        factor * Fraction(share, denominator) for share in numerators
    ]
    assert found.quantum == (quantum if factor == 1 else ceil(max(1, floor(quantum * wanted)) / limit))
