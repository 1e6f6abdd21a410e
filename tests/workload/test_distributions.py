"""Random numbers against their closed forms: moments and the Kolmogorov-Smirnov distance, within sampling error."""

from __future__ import annotations

import _pydecimal
import decimal
import math
import random
from collections.abc import Callable
from decimal import Decimal
from statistics import NormalDist

import pytest

from sim.base.distributions import QUANTILE, Stream, lognormal_parameters, rounded

N = 3000
Draw = Callable[[Stream], Decimal]
Cdf = Callable[[float], float]


def gamma_cdf(shape: float, x: float) -> float:
    """P(a, x) = x^a e^-x sum of x^n / Gamma(a + n + 1): Abramowitz and Stegun 6.5.29, and asymptotically 1."""
    if x > 100:
        return 1.0
    term = total = math.exp(shape * math.log(x) - x - math.lgamma(shape + 1)) if x else 0.0
    for n in range(1, 400):
        term *= x / (shape + n)
        total += term
    return min(total, 1.0)


NORMAL = NormalDist()
CASES: dict[str, tuple[Draw, Cdf, float, float]] = {  # draw, cumulative distribution, mean, variance
    "uniform": (lambda s: s.uniform(), lambda x: x, 1 / 2, 1 / 12),
    "exponential": (lambda s: s.exponential(), lambda x: 1 - math.exp(-x), 1, 1),
    "normal": (lambda s: s.normal(), NORMAL.cdf, 0, 1),
    "gamma 1/4": (lambda s: s.gamma(Decimal("0.25")), lambda x: gamma_cdf(0.25, x), 0.25, 0.25),
    "gamma 1": (lambda s: s.gamma(Decimal(1)), lambda x: 1 - math.exp(-x), 1, 1),
    "gamma 4": (lambda s: s.gamma(Decimal(4)), lambda x: gamma_cdf(4, x), 4, 4),
    "lognormal": (
        lambda s: s.lognormal(Decimal(3), Decimal("0.5")), lambda x: NORMAL.cdf((math.log(x) - 3) / 0.5),
        math.exp(3 + 0.125), math.exp(6 + 0.25) * (math.exp(0.25) - 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_moments_and_distance(name: str) -> None:
    draw, cdf, mean, variance = CASES[name]
    stream = Stream(7, name)
    sample = sorted(float(draw(stream)) for _ in range(N))
    assert abs(sum(sample) / N - mean) < 4 * math.sqrt(variance / N)
    squares = [(x - mean) ** 2 for x in sample]
    spread = math.sqrt(sum((q - variance) ** 2 for q in squares) / N / N)
    assert abs(sum(squares) / N - variance) < 4 * spread
    distance = max(max(cdf(x) - i / N, (i + 1) / N - cdf(x)) for i, x in enumerate(sample))
    assert distance < 1.95 / math.sqrt(N)  # Kolmogorov: exceeded by one sample in a thousand


def test_the_distance_distinguishes_two_distributions() -> None:
    stream = Stream(7, "gamma 4")
    sample = sorted(float(stream.gamma(Decimal(4))) for _ in range(N))
    distance = max(abs(gamma_cdf(4.3, x) - i / N) for i, x in enumerate(sample))
    assert distance > 1.95 / math.sqrt(N)


def test_whole_numbers_are_uniform() -> None:
    stream = Stream(7, "whole")
    counts = [0] * 6
    for _ in range(6000):
        counts[stream.whole(10, 15) - 10] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5  # chi-square, 5 degrees of freedom: 1 in 1000
    assert {Stream(seed, "x").whole(4, 4) for seed in range(9)} == {4}


def test_the_first_values_never_change() -> None:
    """Stored, so that a scenario means the same on every machine and with every version of Python."""
    stream = Stream(42, "arrivals")
    assert rounded(stream.uniform() * 10**15) == FIRST["uniform"]
    assert rounded(stream.exponential() * 10**15) == FIRST["exponential"]
    assert rounded(stream.normal() * 10**15) == FIRST["normal"]
    assert rounded(stream.gamma(Decimal("2.5")) * 10**15) == FIRST["gamma 2.5"]
    assert rounded(stream.gamma(Decimal("0.16")) * 10**15) == FIRST["gamma 0.16"]
    assert rounded(stream.lognormal(Decimal(2), Decimal("0.7")) * 10**15) == FIRST["lognormal"]
    assert stream.whole(1, 10**9) == FIRST["whole"]


FIRST = {
    "uniform": 562633327964535, "exponential": 570105981443020, "normal": 489441667545889, "gamma 2.5": 2227108946488397,
    "gamma 0.16": 12142297641, "lognormal": 12239643982491244, "whole": 398559405,
}  # fmt: skip


def test_another_implementation_of_decimal_agrees() -> None:
    """Python's decimal against the C one: both round correctly, so digits are equal, not close."""
    ours, other = (Context(prec=34) for Context in (decimal.Context, _pydecimal.Context))
    for k in range(1, 40):
        text = f"{k * k}.{k}7"
        for name in ("ln", "sqrt", "exp"):
            assert str(getattr(ours, name)(Decimal(text))) == str(getattr(other, name)(_pydecimal.Decimal(text)))


def test_the_source_is_the_mersenne_twister() -> None:
    """Its reference output for the seed 5489 of init_genrand cannot be reached from Python, that of init_by_array can."""
    reference = random.Random()
    reference.seed(0x123 | 0x234 << 32 | 0x345 << 64 | 0x456 << 96)
    assert [reference.getrandbits(32) for _ in range(3)] == [1067595299, 955945823, 477289528]  # mt19937ar.out


def test_streams_do_not_depend_on_each_other() -> None:
    assert Stream(0, "prompt").uniform() != Stream(0, "tokens").uniform()
    assert Stream(0, "prompt").uniform() != Stream(1, "prompt").uniform()
    assert Stream(0, "prompt").uniform() == Stream(0, "prompt").uniform()


@pytest.mark.parametrize(("name", "p"), [("p90", 0.9), ("p99", 0.99)])
def test_quantiles(name: str, p: float) -> None:
    assert abs(float(QUANTILE[name]) - NORMAL.inv_cdf(p)) < 1e-14


@pytest.mark.parametrize(("name", "p"), [("p90", 0.9), ("p99", 0.99)])
@pytest.mark.parametrize("middle", ["median", "mean"])
def test_a_lognormal_by_its_tail_has_that_tail(name: str, p: float, middle: str) -> None:
    given = {"median": None, "mean": None, middle: 500.0}
    mu, sigma = lognormal_parameters(**given, sigma=None, tail=(name, 900.0))
    assert math.exp(float(mu) + float(sigma) * NORMAL.inv_cdf(p)) == pytest.approx(900, rel=1e-12)
    found = math.exp(float(mu) + (float(sigma) ** 2 / 2 if middle == "mean" else 0))
    assert found == pytest.approx(500, rel=1e-12)


def test_a_lognormal_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least the median"):
        lognormal_parameters(median=10, mean=None, sigma=None, tail=("p90", 9))
    most = 10 * math.exp(NORMAL.inv_cdf(0.99) ** 2 / 2)
    lognormal_parameters(median=None, mean=10, sigma=None, tail=("p99", most * 0.999))
    with pytest.raises(ValueError, match=f"at most {most:.6g}"):
        lognormal_parameters(median=None, mean=10, sigma=None, tail=("p99", most * 1.001))


def test_halves_go_to_even() -> None:
    assert [rounded(Decimal(x)) for x in ("0.5", "1.5", "2.5", "-0.5")] == [0, 2, 2, 0]
