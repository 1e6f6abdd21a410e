"""Division of products that exceed 64 bits, against Python's integers."""

from __future__ import annotations

import random

from sim.base.integers import LARGEST, mul_div, mul_div_up


def test_products_are_divided_exactly_whatever_their_sizes():
    draw = random.Random(1)
    divided = 0
    while divided < 2_000:
        a, b, c = (draw.randrange(1, 2 ** draw.randrange(1, 63)) for _ in range(3))
        if -(-a * b // c) < LARGEST:
            assert mul_div(a, b, c) == a * b // c
            assert mul_div_up(a, b, c) == -(-a * b // c)
            divided += 1
