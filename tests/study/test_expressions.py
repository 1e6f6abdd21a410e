"""Expressions: arithmetic that agrees with Python's, units, names, and nothing that could run as code."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.base.errors import InputError
from sim.study.expressions import Limit, parse

COLUMNS = ("hardware.engines.count", "hardware.memory.bandwidth", "makespan_ps", "tpot_p99_ps", "energy_per_token_fj", "a", "b")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 ** 2", 19.0),
        ("4 * count + 10", 26.0),
        ("hardware.engines.count - -1", 5.0),
        ("bandwidth / 10 GB/s", 5.0),  # 50 GB/s, in B/s, over 10^10
        ("makespan < 30 ms", True),  # 2 * 10^10 ps
        ("makespan / 1us", 20_000.0),
        ("p99 TPOT <= 5 ms and energy per token < 2 J", True),
        ("90 %", 0.9),
        ("min(a, b, 3)", 1.0),
        ("a if a > b else b", 2.0),
        ("sqrt(16) + log2(8)", 7.0),
        ("1 < a + 1 < 3", True),
        ("not a > b", True),
    ],
)
def test_values(text: str, value: object) -> None:
    row = {"hardware.engines.count": 4, "hardware.memory.bandwidth": 50 * 10**9, "makespan_ps": 2 * 10**10,
           "tpot_p99_ps": 5 * 10**9, "energy_per_token_fj": 10**15, "a": 1, "b": 2}  # fmt: skip
    found = parse(text, COLUMNS)(row)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "a.__class__", "(lambda: 1)()", "[x for x in (1,)]", "open('f')", "a[0]", "'x' * 9",
        "f'{a}'", "a := 3", "exec('1')", "min()", "max(a, key=b)", "a; b", "", "(1", "a" * 2000, "~1", "1 @ 2",
    ],
)  # fmt: skip
def test_only_arithmetic_on_columns_is_read(text: str) -> None:
    if text == "'x' * 9":  # a text is a value, but not a number
        assert parse(text, COLUMNS)({}) is None
        return
    with pytest.raises(InputError):
        parse(text, COLUMNS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sequences.0.count", 3.0),
        ("2 * sequences.0.count + workload.sequences.10.count / 0.5", 26.0),  # 2 x 3 + 10 / 0.5
        ("sequences.0.count<4", True),
    ],
)
def test_a_part_of_a_name_may_be_a_number(text: str, value: object) -> None:
    row = {"workload.sequences.0.count": 3, "workload.sequences.10.count": 10}
    assert parse(text, row)(row) == value


def test_names_that_could_be_two_columns_or_none_are_refused() -> None:
    with pytest.raises(InputError, match=r"'x\.count' or 'y\.count'|x\.count or y\.count"):
        parse("count", ["x.count", "y.count"])
    with pytest.raises(InputError, match="did you mean 'makespan'"):
        parse("makspan", COLUMNS)


@pytest.mark.parametrize("text", ["a / 0", "sqrt(-1)", "missing + 1", "10.0 ** 400", "(-1) ** 0.5"])
def test_what_has_no_value_is_none(text: str) -> None:
    assert parse(text, [*COLUMNS, "missing"])({"a": 1, "missing": None}) is None


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("makespan < 30 ms", Limit("makespan_ps", True, 3e10, True)),
        ("30 ms >= makespan", Limit("makespan_ps", True, 3e10, False)),
        ("a > 2 * 3", Limit("a", False, 6.0, True)),
        ("a > b", None),
        ("a + 1 > 2", None),
        ("a == 2", None),
    ],
)
def test_a_comparison_of_a_column_with_a_number_is_a_limit(text: str, limit: Limit | None) -> None:
    assert parse(text, COLUMNS).limit == limit


NUMBERS = st.floats(0.01, 100).map(lambda x: round(x, 2))
TREES = st.recursive(
    NUMBERS.map(repr) | st.sampled_from("ab"),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=8,
)


@given(TREES, NUMBERS, NUMBERS)
@settings(max_examples=60, deadline=None)
def test_arithmetic_is_that_of_python(text: str, a: float, b: float) -> None:
    found = parse(text, COLUMNS)({"a": a, "b": b})
    try:
        expected = eval(text, {"a": a, "b": b})
    except ZeroDivisionError:
        assert found is None
    else:
        assert found == expected if math.isfinite(expected) else found is None


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(InputError, match="expected numbers below 1e308, found one of 1329 bits"):
        parse(f"makespan + {10**400}", ["makespan"])
