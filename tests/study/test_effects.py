"""Effects of axes and sensitivities, against laws whose effects are known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.study.effects import GROUPS, Change, grouped, parts, sensitivities
from sim.study.tables import change


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=15))
@settings(max_examples=30, deadline=None)
def test_means_of_a_sum_are_exact_whatever_is_missing(cells: set[tuple[int, int]]) -> None:
    """y = x^2 + 10 z: levels differ by 0, 1, 4, 9 and 0, 10, .., though plain means of the cells that are left would not."""
    points = sorted(cells)
    y = np.array([x * x + 10.0 * z for x, z in points])
    found = parts(y, {"x": [x for x, _ in points], "z": [z for _, z in points]})
    assert found is not None
    for key, law in (("x", lambda v: v * v), ("z", lambda v: 10 * v)):
        means = found.means[key]
        base = min(means)
        for level, mean in means.items():
            assert mean - means[base] == pytest.approx(law(level) - law(base), abs=1e-9)
    assert found.pairs.get(("x", "z"), 0) == pytest.approx(0, abs=1e-9)


def test_with_all_cells_fits_and_sums_of_squares_agree() -> None:
    points = list(product(range(4), range(3), range(2)))
    y = np.array([x + 3 * z * w for x, z, w in points])
    levels = {key: [point[i] for point in points] for i, key in enumerate("xzw")}
    whole = parts(y, levels)
    assert whole is not None
    assert sum([*whole.axes.values(), *whole.pairs.values()]) == pytest.approx(1)  # there is no effect of three
    fitted = parts(np.delete(y, 5), {key: [*of[:5], *of[6:]] for key, of in levels.items()})  # no longer complete
    assert fitted is not None
    for found, sums in ((fitted.axes, whole.axes), (fitted.pairs, whole.pairs)):
        assert found == pytest.approx(sums, abs=0.06)


def test_ranges_of_many_values_have_no_part_by_chance() -> None:
    """2,000 random points of y = 5 a + b: parts 25/26 and 1/26, less 1/36 of each within its 6 groups, and none of c."""
    random = np.random.default_rng(5)
    a, b, c = random.random((3, 2000))
    found = parts(5 * a + b, {"a": a.tolist(), "b": b.tolist(), "c": c.tolist()})
    assert found is not None
    assert found.axes == pytest.approx({"a": 25 / 26 * 35 / 36, "b": 1 / 26 * 35 / 36, "c": 0}, abs=0.03)
    assert max(found.pairs.values()) < 0.03
    assert len(found.means["a"]) == GROUPS


def test_groups_are_equally_large_and_hold_equal_values_together() -> None:
    values = [0.5] * 10 + [float(n) for n in range(50)]
    found = grouped(values)
    assert len({v for v, of in zip(found, values, strict=True) if of == 0.5}) == 1
    assert len(set(found)) <= GROUPS
    assert grouped([1, 2, 3] * 9) == [1, 2, 3] * 9
    assert grouped([str(n) for n in range(40)]) == [str(n) for n in range(40)]


def test_a_power_law_changes_by_its_exponent() -> None:
    """y = x^-1 z^0.5, twice for one of two kinds: -50 % and +41 % with twice the value, exactly."""
    points = [(x, z, kind) for x in (1, 2, 5) for z in (1.0, 3.0) for kind in ("a", "b")]
    y = np.array([z**0.5 / x * (2 if kind == "b" else 1) for x, z, kind in points])
    found = sensitivities(y, {"x": [p[0] for p in points], "z": [p[1] for p in points], "kind": [p[2] for p in points]})
    assert found.keys() == {"x", "z"}
    for key, expected in (("x", -0.5), ("z", 2**0.5 - 1)):
        assert (found[key].low, found[key].mean, found[key].high) == pytest.approx((expected,) * 3)


def test_an_interval_has_the_true_change_in_95_of_100_cases() -> None:
    random, hits = np.random.default_rng(1), 0
    x = [1.0, 2.0, 4.0, 8.0] * 3
    for _ in range(400):
        y = 2 ** (-0.5 * np.log2(x) + 0.1 * random.standard_normal(len(x)))
        found = sensitivities(y, {"x": x})["x"]
        hits += found.low <= 2**-0.5 - 1 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_axes_that_change_together_are_not_told_apart() -> None:
    x = [1, 2, 4, 8]
    assert sensitivities(np.array([8.0, 4, 2, 1.5]), {"x": x, "twice": [2 * v for v in x]}) == {}
    both = parts(np.array([8.0, 4, 2, 1.5]), {"x": x, "twice": [2 * v for v in x]})
    assert both is not None
    assert both.axes["x"] == both.axes["twice"] == pytest.approx(1)


def test_a_change_of_nothing_has_no_sign() -> None:
    assert change(Change(-0.003, -0.004, 0.004)) == "0% (0% to 0%)"
    assert change(Change(-0.052, -0.09, 0.01)) == "-5% (-9% to +1%)"
