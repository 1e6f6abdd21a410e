"""Quantities: exact, with units kept apart, and errors that say what was expected."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.base.errors import InputError
from sim.base.quantities import (
    BANDWIDTH,
    DURATION,
    ENERGY_PER_BYTE,
    ENERGY_PER_FLOP,
    FLOP_RATE,
    MAXIMUM,
    POWER,
    SIZE,
    Dimension,
)

DIMENSIONS = (DURATION, SIZE, BANDWIDTH, FLOP_RATE, ENERGY_PER_FLOP, ENERGY_PER_BYTE, POWER)


@pytest.mark.parametrize(
    ("dimension", "text", "value"),
    [
        (DURATION, "300 us", 300_000_000),
        (DURATION, "0.1 us", 100_000),  # 0.1e-6 * 1e12 is 99999.99999999999 in floats
        (DURATION, "1.1 us", 1_100_000),
        (DURATION, "12.2ms", 12_200_000_000),
        (DURATION, "1e-3 s", 10**9),
        (DURATION, "5 µs", 5_000_000),  # micro sign
        (DURATION, "5 μs", 5_000_000),  # Greek mu
        (DURATION, "0 us", 0),
        (DURATION, "0", 0),
        (DURATION, 0, 0),
        (DURATION, "1000000 s", MAXIMUM),
        (SIZE, "8 MiB", 8 * 2**20),
        (SIZE, "8 MB", 8 * 10**6),
        (SIZE, "1 KiB", 1024),
        (SIZE, "1 kB", 1000),
        (SIZE, "1.5 GiB", 3 * 2**29),
        (BANDWIDTH, "100 GB/s", 100 * 10**9),
        (BANDWIDTH, "100 GiB/s", 100 * 2**30),
        (BANDWIDTH, "33.333333333 GB/s", 33_333_333_333),
        (FLOP_RATE, "2 TFLOP/s", 2 * 10**12),
        (FLOP_RATE, "26 TOP/s", 26 * 10**12),
        (ENERGY_PER_FLOP, "0.76 pJ/FLOP", 760),
        (ENERGY_PER_FLOP, "76 fJ/OP", 76),
        (ENERGY_PER_BYTE, "82 pJ/B", 82_000),
        (ENERGY_PER_BYTE, "7.25 pJ/bit", 58_000),
        (ENERGY_PER_BYTE, "0", 0),
        (POWER, "0.5 W", 500),
        (POWER, "1.4 kW", 1_400_000),
    ],
)
def test_value(dimension: Dimension, text: object, value: int) -> None:
    assert dimension.parse(text) == value


@pytest.mark.parametrize(
    ("dimension", "text", "message"),
    [
        (BANDWIDTH, 100, "expected a bandwidth with its unit, such as '100 GB/s', found the bare number 100"),
        (BANDWIDTH, 0, "expected a bandwidth with its unit, such as '100 GB/s', found the bare number 0"),
        (BANDWIDTH, "100", "found the bare number '100'"),
        (BANDWIDTH, float("nan"), "found the bare number .nan"),
        (BANDWIDTH, float("-inf"), "found the bare number -.inf"),
        (BANDWIDTH, True, "found true"),
        (DURATION, False, "found false"),
        (BANDWIDTH, None, "found null"),
        (BANDWIDTH, ["100 GB/s"], "found a list"),
        (BANDWIDTH, "0 GB/s", "expected a bandwidth above zero, found '0 GB/s'"),
        (BANDWIDTH, "-5 GB/s", "expected a bandwidth that is not negative, found '-5 GB/s'"),
        (BANDWIDTH, "nan GB/s", "expected a bandwidth that is finite"),
        (BANDWIDTH, "inf", "expected a bandwidth that is finite"),
        (BANDWIDTH, "1e19 B/s", "expected a bandwidth of at most 1000 PB/s, found '1e19 B/s'"),
        (BANDWIDTH, "1e999999999 B/s", "expected a bandwidth of at most 1000 PB/s"),
        (BANDWIDTH, "1e-999999999 B/s", "expected a whole number of B/s"),
        (DURATION, "1000001 s", "expected a duration of at most 1000000 s"),
        (DURATION, "0.5 ps", "expected a whole number of ps, found '0.5 ps'"),
        (SIZE, "1.3 B", "expected a whole number of B"),
        (SIZE, "0.0001 kB", "expected a whole number of B"),
        (FLOP_RATE, "1.0001 kFLOP/s", "expected a whole number of FLOP/s"),
        (BANDWIDTH, "100 GBps", "unknown unit 'GBps' (did you mean 'GB/s'?)"),
        (BANDWIDTH, "100 Gb/s", "unknown unit 'Gb/s' (did you mean 'GB/s'?)"),  # bits
        (BANDWIDTH, "100 GB", "unknown unit 'GB' (did you mean 'GB/s'?)"),
        (DURATION, "5 sec", "unknown unit 'sec' (did you mean 's'?)"),
        (FLOP_RATE, "2 TFLOPS", "unknown unit 'TFLOPS' (did you mean 'TFLOP/s'?)"),
        (DURATION, "1_000 us", "unknown unit '_000 us'; expected"),
        (DURATION, "1,5 us", "unknown unit ',5 us' (did you mean 'us'?)"),
        (DURATION, "", "expected a duration with its unit, such as '300 us', found ''"),
        (DURATION, "\u0661 us", "expected a duration with its unit"),  # an Arabic digit
        (DURATION, "9" * 1000 + " us", "expected a duration with its unit"),
    ],
)
def test_error(dimension: Dimension, text: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        dimension.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dimension", "text", "value"),
    [
        (SIZE, "3.81 GiB", 4_090_956_349),  # 3.81 * 2^30 = 4,090,956,349.44, as an engine logs the size of its KV cache
        (BANDWIDTH, "871.8 GiB/s", 936_088_122_163),  # 871.8 * 2^30 = 936,088,122,163.2
        (SIZE, "1.5 KiB", 1536),
        (SIZE, "1.0006 kB", 1001),
    ],
)
def test_sizes_and_bandwidths_are_rounded_to_the_byte(dimension: Dimension, text: str, value: int) -> None:
    assert dimension.parse(text) == value


@given(st.sampled_from(DIMENSIONS), st.integers(1, MAXIMUM))
def test_format_reads_back(dimension: Dimension, value: int) -> None:
    text = dimension.format(value)
    assert dimension.parse(text) == value
    assert re.search(dimension.pattern(), text)


@given(st.sampled_from(DIMENSIONS), st.data(), st.decimals(0, 10**6, places=4))
def test_every_unit_is_exact(dimension: Dimension, data: st.DataObject, number: object) -> None:
    unit = data.draw(st.sampled_from(list(dimension.units)))
    exact = Fraction(str(number)) * dimension.units[unit]
    rounds = dimension in (SIZE, BANDWIDTH) and dimension.units[unit] > 1 and 1 <= exact <= MAXIMUM
    if rounds:
        assert abs(dimension.parse(f"{number} {unit}") - exact) <= Fraction(1, 2)
    elif exact.denominator == 1 and (0 < exact <= MAXIMUM or (exact == 0 and dimension.zero)):
        assert dimension.parse(f"{number} {unit}") == exact
    else:
        with pytest.raises(InputError):
            dimension.parse(f"{number} {unit}")


@given(st.sampled_from(DIMENSIONS), st.text() | st.from_regex(r"[-+]?[0-9.e]{0,9} ?[a-zA-Z/µ]{0,5}", fullmatch=True))
def test_any_text_is_a_quantity_or_an_input_error(dimension: Dimension, text: str) -> None:
    try:
        value = dimension.parse(text)
    except InputError as error:
        is_one_line(error)
    else:
        assert 0 <= value <= MAXIMUM
        assert re.search(dimension.pattern(), text)  # the schema never refuses what the check accepts


def is_one_line(error: InputError) -> None:
    assert len(str(error).splitlines()) == 1


def test_units_are_powers_of_ten_and_of_two() -> None:
    for base, units in (("B", SIZE.units), ("B/s", BANDWIDTH.units)):
        for power, prefix in enumerate(("", "k", "M", "G", "T", "P")):
            assert units[prefix + base] == 1000**power
        for power, prefix in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi")):
            assert units[prefix + base] == 1024**power
    assert [DURATION.units[u] for u in ("ps", "ns", "us", "ms", "s")] == [1, 10**3, 10**6, 10**9, 10**12]


@pytest.mark.parametrize("text", ["1e99999999999999999999 s", "1e-99999999999999999999 s"])
def test_an_exponent_of_absurd_length(text):
    with pytest.raises(ValueError, match="expected a duration"):
        DURATION.parse(text)
