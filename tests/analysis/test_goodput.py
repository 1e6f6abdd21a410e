"""Goodput, by hand arithmetic, against percentiles, and in the outputs of a run."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.analysis.goodput import Slo, goodput
from sim.analysis.requests import Distribution, nearest_rank
from sim.base.errors import InputError
from sim.cli import cli
from sim.runs.run import read
from tests.analysis.test_requests import ARRIVAL, STEPS, S, Step, metrics


def test_by_hand() -> None:
    r = metrics(ARRIVAL, STEPS)  # TTFT 20 and 18, TPOT 10 and 0, end to end 40 and 18, in 40 ps
    found = goodput(r, Slo(ttft=19, tpot=10, percentile=50))
    assert (found.counted, found.met, found.each) == (2, 1, {"ttft": 1, "tpot": 2})
    assert (found.per_second, found.share, found.attained) == (S / 40, 0.5, True)
    assert not goodput(r, Slo(ttft=19, tpot=10, percentile=50.1)).attained
    assert goodput(r, Slo(e2e=40)).met == 2
    assert goodput(r, Slo(e2e=39)).met == 1


def test_all_limits_hold_for_the_same_request() -> None:
    steps: list[Step] = [(0, 10, [(0, 1, 1, 1)]), (10, 100, [(0, 2, 1, 1), (1, 1, 1, 1)]), (100, 110, [(1, 2, 1, 1)])]
    found = goodput(metrics([0, 0], steps), Slo(ttft=50, tpot=50))  # one meets the first limit, the other the second
    assert (found.each, found.met, found.per_second) == ({"ttft": 1, "tpot": 1}, 0, 0.0)


def test_one_token_has_no_tpot_and_meets_any() -> None:
    assert goodput(metrics([0], [(3, 9, [(0, 4, 1, 1)])]), Slo(tpot=0)).met == 1


def test_warm_up_is_left_out() -> None:
    steps: list[Step] = [(10 * k, 10 * k + 10, [(k, 1, 1, 1)]) for k in range(4)]  # end to end 10, 12, 10, 10
    found = goodput(metrics([0, 8, 20, 30], steps, warmup_requests=2), Slo(e2e=11))
    assert (found.counted, found.met, found.per_second) == (2, 2, 2 * S / 20)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 100), st.integers(1, 50))
def test_one_limit_is_attained_where_the_percentile_is_within_it(waits: list[int], percentile: int, limit: int) -> None:
    steps: list[Step] = [(100 * k, 100 * k + wait, [(k, 1, 1, 1)]) for k, wait in enumerate(waits)]
    r = metrics([100 * k for k in range(len(waits))], steps)
    found = goodput(r, Slo(ttft=limit, percentile=percentile))
    assert found.attained == (sorted(waits)[nearest_rank(percentile, len(waits))] <= limit)
    assert found.attained == (Fraction(found.met, len(waits)) >= Fraction(percentile, 100))
    if percentile in (50, 90, 99):
        assert found.attained == (getattr(Distribution.of(r.ttft), f"p{percentile}") <= limit)


SCENARIO = """\
model: {config: llama-3.2-1b, layers: 1, scope: block}
workload: {sequences: [{context: 100, tokens: 4, count: 2}, {context: 100, tokens: 4, arrival: 50 ms}]}
report: {slo: {ttft: 1300 us, e2e: 1 s, percentile: 90}}
"""


def ran(path: Path, text: str, *options: str) -> str:
    path.write_text(text)
    done = CliRunner().invoke(cli, ["run", str(path), "--no-trace", *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_summary_and_json_have_it(tmp_path: Path) -> None:
    data: dict[str, Any] = json.loads(ran(tmp_path / "a.yaml", SCENARIO, "--json"))["requests"]
    met = sum(each["ttft_ps"] <= 1_300_000_000 for each in data["each"])
    assert 0 < met < 3
    assert data["goodput"] == {
        "per_s": round(met * S / data["end_ps"], 6), "met": met, "share": round(met / 3, 6), "percentile": 90.0,
        "attained": False, "limits": {"ttft": {"limit_ps": 1_300_000_000, "met": met}, "e2e": {"limit_ps": S, "met": 3}},
    }  # fmt: skip
    shown = " ".join(ran(tmp_path / "a.yaml", SCENARIO).split())
    assert f"{met / 3:.1%} within TTFT 1.300 ms ({met / 3:.1%}), end to end 1.000 s (100.0%); not attained at 90 %" in shown
    assert "goodput" not in json.loads(ran(tmp_path / "a.yaml", SCENARIO.partition("report")[0], "--json"))["requests"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{percentile: 99}", "expected at least one of the keys 'ttft', 'tpot' and 'e2e'"),
        ("{ttft: 1 s, percentile: 0}", "expected a number above 0 to 100"),
        ("{itl: 1 s}", "itl"),
    ],
)
def test_what_is_no_objective_is_an_error(tmp_path: Path, written: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(SCENARIO.partition("report")[0] + f"report: {{slo: {written}}}\n")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read(path)
    assert f"{path}:3:" in str(error.value)
