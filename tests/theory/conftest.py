"""`oracle` compares with theory; its comparisons are printed as a table after all tests."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest

from tests.theory.harness import Estimate

Oracle = Callable[[str, float | Fraction, "Estimate | int | Fraction"], None]


@pytest.fixture
def oracle(record_property) -> Oracle:
    """oracle(what, expected, measured): equal if measured is a number, within its confidence interval if an Estimate."""

    def compare(what: str, expected: float | Fraction, measured: Estimate | int | Fraction) -> None:
        mean = measured.mean if isinstance(measured, Estimate) else measured
        allowed = measured.half_width if isinstance(measured, Estimate) else 0
        record_property("theory", (what, float(expected), float(mean), float(allowed)))
        assert abs(mean - expected) <= allowed, f"{what}: expected {expected}, measured {mean} +- {allowed}"

    return compare


def pytest_terminal_summary(terminalreporter) -> None:
    rows = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        for name, value in getattr(report, "user_properties", ())
        if name == "theory"
    ]
    if not rows:
        return
    terminalreporter.section("theory")
    width = max(len(row[0]) for row in rows)
    terminalreporter.line(f"{'':{width}}  {'expected':>12}  {'measured':>12}  {'deviation':>10}  {'allowed':>9}")
    for what, expected, measured, allowed in rows:
        deviation = (measured - expected) / expected if expected else measured - expected
        bound = f"{allowed / abs(expected):.3%}" if allowed and expected else "exact"
        terminalreporter.line(f"{what:{width}}  {expected:12.6g}  {measured:12.6g}  {deviation:+10.3%}  {bound:>9}")
