"""Random numbers that are the same on every machine and with every version of Python.

`random.Random.getrandbits` is the only source: Python keeps the Mersenne Twister and its seeding as they are, its
distributions it does not. They are written here in decimal arithmetic of 34 digits, whose `ln`, `exp` and `sqrt` are correctly
rounded by definition (General Decimal Arithmetic 1.70), where those of C's libraries may differ in the last bit. What leaves
this module is rounded to whole picoseconds or tokens, half to even, of a number that is therefore the same everywhere.
"""

from __future__ import annotations

import decimal
import hashlib
import random
from decimal import Decimal

_CONTEXT = decimal.Context(prec=34, rounding=decimal.ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999)
_TWO_64 = Decimal(2**64)
_ONE_HALF, _ONE, _TWO, _THREE, _NINE = (Decimal(n) for n in ("0.5", "1", "2", "3", "9"))

#: Standard normal quantiles, by the name of the percentile: Phi(z) = p.
QUANTILE = {"p90": Decimal("1.2815515655446004"), "p99": Decimal("2.3263478740408411")}


class Stream:
    """The random numbers of one quantity. Streams of other names or seeds are independent of it, whatever they draw."""

    def __init__(self, seed: int, name: str) -> None:
        key = hashlib.sha256(f"{seed} {name}".encode()).digest()
        self._bits = random.Random(int.from_bytes(key, "big")).getrandbits

    def uniform(self) -> Decimal:
        """Uniform on the 2^64 midpoints (k + 1/2) / 2^64: above 0 and below 1."""
        with decimal.localcontext(_CONTEXT):
            return (self._bits(64) + _ONE_HALF) / _TWO_64

    def whole(self, low: int, high: int) -> int:
        """Uniform on the integers from `low` to `high`. Each has its probability to within 2^-64."""
        return low + ((self._bits(64) * (high - low + 1)) >> 64)

    def exponential(self) -> Decimal:
        """Mean 1, by inversion: -ln U."""
        with decimal.localcontext(_CONTEXT):
            return -self.uniform().ln()

    def normal(self) -> Decimal:
        """Mean 0 and variance 1, by the polar method; of each pair that it makes, the first.

        G. Marsaglia, T. A. Bray, "A convenient method for generating normal variables", SIAM Review 6 (1964).
        """
        with decimal.localcontext(_CONTEXT):
            while True:
                v, w = _TWO * self.uniform() - _ONE, _TWO * self.uniform() - _ONE
                square = v * v + w * w
                if square < _ONE:
                    return v * (-_TWO * square.ln() / square).sqrt()

    def gamma(self, shape: Decimal) -> Decimal:
        """Mean `shape` (> 0) and scale 1, by squeezed rejection of a cubed normal; below shape 1 by its boost U^(1/shape).

        G. Marsaglia, W. W. Tsang, "A simple method for generating gamma variables", ACM TOMS 26 (2000).
        """
        with decimal.localcontext(_CONTEXT):
            boost = self.uniform().ln() / shape if shape < _ONE else Decimal(0)
            d = (shape + _ONE if shape < _ONE else shape) - _ONE / _THREE
            c = _ONE / (_NINE * d).sqrt()
            while True:
                x = self.normal()
                v = (_ONE + c * x) ** 3
                if v > 0 and self.uniform().ln() < x * x / _TWO + d - d * v + d * v.ln():
                    return d * v * boost.exp()

    def lognormal(self, mu: Decimal, sigma: Decimal) -> Decimal:
        """exp(mu + sigma Z): its median is exp(mu), its mean exp(mu + sigma^2 / 2)."""
        with decimal.localcontext(_CONTEXT):
            return (mu + sigma * self.normal()).exp()


def exact(number: float) -> Decimal:
    """The decimal that a float is written as: 0.1 is one tenth."""
    return Decimal(repr(number))


def lognormal_parameters(
    *, median: float | None, mean: float | None, sigma: float | None, tail: tuple[str, float] | None
) -> tuple[Decimal, Decimal]:
    """(mu, sigma) of the lognormal of a median or a mean, and of a sigma or a tail such as ("p99", 2000).

    With a mean m and a percentile p: ln p - ln m = z sigma - sigma^2 / 2, of which the smaller root. Raises ValueError if no
    lognormal has them.
    """
    with decimal.localcontext(_CONTEXT):
        middle = exact(median if median is not None else mean or 0).ln()
        if sigma is not None:
            s = exact(sigma)
        else:
            assert tail is not None
            z, ratio = QUANTILE[tail[0]], exact(tail[1]).ln() - middle
            if ratio < 0:
                raise ValueError(
                    f"expected a {tail[0]} of at least the {'median' if median is not None else 'mean'}, found {tail[1]:g}"
                )
            if median is not None:
                s = ratio / z
            else:
                below = z * z - _TWO * ratio
                if below < 0:
                    most = (middle + z * z / _TWO).exp()
                    raise ValueError(f"expected a {tail[0]} of at most {most:.6g}: no lognormal of this mean has a larger one")
                s = z - below.sqrt()
        return (middle if median is not None else middle - s * s / _TWO), s


def rounded(number: Decimal) -> int:
    """To the nearest integer, half to even."""
    return int(number.to_integral_value(rounding=decimal.ROUND_HALF_EVEN))
