"""Cost functions come out exact, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.costs import plan, powers, shape_text, solve, text
from models.graph import MONOMIALS

coefficient = st.integers(-(2**31), 2**31)
VARIANTS = [(False, False), (False, True), (True, False), (True, True)]
PIECES = [(0, None), (0, 4095), (4095, None), (0, 5), (5, None), (0, 1), (1, None), (0, 2), (2, 3), (2, 4)]


def values(chosen, polynomials):
    def at(points):
        rows = [[sum(c * v for c, v in zip(p, powers(x), strict=True)) for p in polynomials] for x in points]
        return np.array(rows, dtype=np.int64).reshape(len(points), len(polynomials))

    return at(chosen.solve), at(chosen.check)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("piece", PIECES)
@settings(max_examples=20)  # of each variant and piece
@given(data=st.data())
def test_any_polynomial_is_recovered_exactly(variant, piece, data):
    chosen = plan(*variant, *piece)
    low, high = piece
    assert all(low <= n and (high is None or n < high) for _, _, n in (*chosen.solve, *chosen.check))
    polynomial = [0] * len(MONOMIALS)
    for m in chosen.monomials:
        polynomial[m] = data.draw(coefficient)
    table, bad = solve(chosen, *values(chosen, [polynomial]))
    assert bad is None
    assert table.tolist() == [polynomial]


def test_a_row_that_is_no_polynomial_is_named():
    chosen = plan(True, True, 0, None)
    good = [1] * len(MONOMIALS)
    solved, checked = values(chosen, [good, good])
    solved[0, 1] += 1  # fractional coefficients
    assert solve(chosen, solved, checked)[1] == 1
    solved, checked = values(chosen, [good, good])
    checked[-1, 0] += 1  # a check that fails
    assert solve(chosen, solved, checked)[1] == 0


def terms(**parts: int) -> list[int]:
    by_name = {"one": (0, 0, 0), "q": (0, 1, 0), "n": (0, 0, 1), "b": (1, 0, 0), "bq": (1, 1, 0)}
    result = dict.fromkeys(MONOMIALS, 0)
    for name, value in parts.items():
        result[by_name[name]] = value
    return list(result.values())


def test_shapes_as_text():
    assert text(terms(one=32)) == "32"
    assert text(terms(one=0)) == "0"
    assert text(terms(b=1)) == "B"
    assert text(terms(b=8)) == "8*B"
    assert text(terms(n=1, q=1)) == "N+Q"
    assert text(terms(n=1, one=1)) == "N+1"
    assert text(terms(bq=1)) == "B*Q"
    assert shape_text([terms(n=1, one=1), terms(one=4096)], [4095]) == "min(N,4095)+1"
    assert shape_text([terms(n=1, q=1), terms(n=1, q=1)], [4095]) == "N+Q"
