"""Summaries on narrow terminals: no number is parted from its unit, none is cut, and no line ends in blanks."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from sim.render import terminal
from sim.render.narrow import Fitted, show
from sim.runs.result import Result
from sim.runs.run import run
from sim.scenario.shipped import scenarios


@pytest.fixture(scope="module")
def served() -> Result:
    return run(scenarios()["batching_continuous"])


def printed(result: Result, width: int, *, verbose: bool = False) -> list[str]:
    file = io.StringIO()
    terminal.show(result, Console(file=file, width=width, markup=False, emoji=False), verbose=verbose)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_numbers_stay_with_their_units(served: Result, width: int) -> None:
    lines = printed(served, width)
    assert max(map(len, lines)) <= width
    for line in lines:
        assert line == line.rstrip()
        assert "…" not in line
        assert not re.match(r"\s+(?:us|ms|ns|s|kB|MB|GB|TB/s|tokens/s)\b", line), line


def test_tables_leave_out_columns(served: Result) -> None:
    wide, narrow = ("\n".join(printed(served, width)) for width in (80, 45))
    assert all(name in wide for name in ("p50", "p90", "p99", "on channel"))
    assert "p50" in narrow
    assert "p99" in narrow
    assert "p90" not in narrow


def test_a_table_by_hand() -> None:
    table = Fitted(("op", "a", "b"), [("x", "1.000 ms", "2.000 ms")], drop=("a",))
    found = []
    for width in (22, 14):
        file = io.StringIO()
        show(Console(file=file, width=width), table)
        found.append(file.getvalue())
    assert found == ["op         a         b\nx   1.000 ms  2.000 ms\n", "op         b\nx   2.000 ms\n"]


def test_what_matters_comes_first(served: Result) -> None:
    lines = printed(served, 100, verbose=True)
    at = {name: next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("TTFT", "makespan", "checks")}
    assert at["TTFT"] < at["makespan"] < at["checks"]
    assert not any(line.startswith(("checks", "executor")) for line in printed(served, 100))


def test_how_far_above_the_bound() -> None:
    assert terminal.above(0.123) == "12.3% above"
    assert terminal.above(88.61) == "90x the least"
