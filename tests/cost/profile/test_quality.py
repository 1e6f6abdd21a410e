"""Noise and spread of samples, by hand."""

from __future__ import annotations

import pytest

from sim.cost.profile import Samples
from sim.cost.profile.quality import noise, spread, warnings


def samples(*rounds: tuple[int, int]) -> Samples:
    """Two products, of 100 and of 200 columns, in each round."""
    durations = [duration for both in rounds for duration in both]
    return Samples(
        {"kind": ["matmul"] * len(durations), "n": [100, 200] * len(rounds), "round": [i // 2 for i in range(len(durations))],
         "duration": durations}
    )  # fmt: skip


def test_one_half_predicts_the_other():
    """Even rounds have medians 110 and 200, odd ones 100 and 250: errors of 10 % and of 20 %."""
    found = noise(samples((100, 190), (100, 250), (110, 200), (95, 260), (130, 210), (105, 240)))
    assert found is not None
    assert (found.samples, found.median, found.p90) == (2, 0.15, 0.19)


def test_spread_is_from_the_tenth_to_the_ninetieth_percentile():
    """1 to 11 about the median of 6: (10 - 2) / 6; 60 at all times: 0. The median of the two is half of the first."""
    assert spread(samples(*((i, 60) for i in range(1, 12)))) == pytest.approx(4 / 6, abs=1e-4)


def test_other_streams_beside_it_are_another_measurement():
    alone, beside = samples((100, 100), (100, 100)), samples((300, 300), (300, 300))
    beside.columns["streams"][:] = 2
    found = noise(Samples.concatenate([alone, beside]))
    assert found is not None
    assert (found.samples, found.p90) == (4, 0.0)


def test_warnings_say_what_was_noisy():
    still = samples((100, 200), (100, 200), (101, 202))
    assert list(warnings(still, load=0.1)) == []
    assert list(warnings(still, load=2.0)) == ["the machine was not idle: 2.0 other programs ran when the measurement began"]
    assert [text.partition(":")[0] for text in warnings(samples((100, 100), (160, 170)), load=0.0)] == [
        "the machine was noisy", "the machine was too noisy"
    ]  # fmt: skip
    assert list(warnings(samples((100, 200)), load=0.0)) == ["only one round: nothing is known about noise"]
