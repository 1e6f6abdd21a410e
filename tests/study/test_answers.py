"""Answers: fronts against the definition, effects and knees against arithmetic, and the commands that show them."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.runs.run import read, run
from sim.study.answers import Answers, AxisInfo, PointOf, front, read_answers
from sim.study.page import data, render
from sim.study.points import load
from tests.study.conftest import Written, swept
from tests.tools.command import call


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_front_holds_the_points_that_no_other_one_dominates(points: list[tuple[int, int, int]]) -> None:
    def dominates(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert front(np.array(points, dtype=float).reshape(-1, 3)).tolist() == expected


def made(table: dict[tuple[int, ...], float], keys: str = "xy") -> Answers:
    """Answers of a study whose objective is given."""
    axes = {
        key: AxisInfo(key, None, {v: str(v) for v in sorted({at[i] for at in table})},
                      {v: n for n, v in enumerate(sorted({at[i] for at in table}))})
        for i, key in enumerate(keys)
    }  # fmt: skip
    points = [
        PointOf(number=n, seed=0, seeds=1, values=dict(zip(keys, at, strict=True)), means={"cost": y}, halves={}, feasible=True)
        for n, (at, y) in enumerate(table.items())
    ]
    return Answers(folder=Path("out"), manifest={}, axes=axes, objectives={"cost": "min"}, columns=["cost"], points=points,
                   runs=len(points), failed=0, skipped=0, errors=())  # fmt: skip


def test_effects_without_interaction_are_shares_of_the_variance() -> None:
    # cost = 3 x + 4 y over x, y in (-1, 1): variances 9 and 16, of 25
    answers = made({(x, y): 3 * x + 4 * y for x in (-1, 1) for y in (-1, 1)})
    shares = {each.axes: each.share for each in answers.effects("cost")}
    assert shares == pytest.approx({("y",): 16 / 25, ("x",): 9 / 25, ("x", "y"): 0})
    assert next(each.means for each in answers.effects("cost")) == {-1: -4, 1: 4}


def test_a_product_is_an_interaction_alone() -> None:
    answers = made({(x, y): x * y for x in (-1, 1) for y in (-1, 1)})
    assert {each.axes: each.share for each in answers.effects("cost")} == pytest.approx({("x",): 0, ("y",): 0, ("x", "y"): 1})


def test_the_knee_is_where_all_further_steps_bring_less_than_a_tenth() -> None:
    # 1/x over 1, 2, 4, 8, 16: gains of 1/2, 1/4, 1/8, 1/16 of 15/16; the step to 8 brings 13 %, that to 16 brings 7 %
    knee = made({(x,): 1 / x for x in (1, 2, 4, 8, 16)}, "x").knees("cost")[0]
    assert (knee.value, knee.gained) == (8, pytest.approx((7 / 8) / (15 / 16)))
    assert made({(x,): -x for x in (1, 2, 3, 4)}, "x").knees("cost") == []  # every step helps
    # small steps: of 40 along a line none brings a tenth, and yet only the last four bring less together
    line = made({(x,): float(-x) for x in range(41)}, "x").knees("cost")[0]
    assert (line.value, line.gained) == (37, pytest.approx(37 / 40))
    # with noise: 10 at 1, 1 at 2, and a little worse at 3; all of the gain is at 2
    best = made({(x,): y for x, y in ((1, 10.0), (2, 1.0), (3, 1.5))}, "x").knees("cost")[0]
    assert (best.value, best.gained) == (2, 1.0)


def test_means_and_intervals_are_those_of_the_seeds(written: Written, tmp_path: Path) -> None:
    text = """\
scenario:
  model: {config: llama-3.2-1b, layers: 1, scope: block}
  workload: {sequences: [{context: 4, tokens: 2}]}
  hardware: {engines: {count: 2}}
  mapping: {weights: resident}
  cost: {model: fixed, table: block_estimates, jitter: 0.2}
axes: {hardware.engines.count: [1, 2]}
repeats: 3
"""
    swept(load(written(text)), tmp_path / "out")
    answers = read_answers(tmp_path / "out")
    point = answers.points[1]
    spans = [run(read(tmp_path / "out" / "base.yaml", [f"seed={seed}"])).makespan for seed in range(3)]
    assert len(set(spans)) == 3
    assert point.means["makespan_ps"] == pytest.approx(np.mean(spans))
    assert point.halves["makespan_ps"] == pytest.approx(4.303 * np.std(spans, ddof=1) / np.sqrt(3))  # Student's t, 2 degrees


@pytest.fixture
def folder(written: Written, tmp_path: Path) -> Path:
    study = written()
    swept(load(study), tmp_path / "out")
    return tmp_path / "out"


def test_the_command_of_a_point_runs_it_again(folder: Path) -> None:
    answers = read_answers(folder)
    best = answers.best("makespan_ps", 1)[0]
    command = shlex.split(answers.command(best))
    assert command[:2] == ["sim", "run"]
    status, out, error = call([*command[1:], "--no-trace", "--json"])
    assert status == 0, error
    assert json.loads(out)["makespan_ps"] == best.means["makespan_ps"]


def test_a_point_of_a_study_without_ops_runs_again_with_them(written: Written, tmp_path: Path) -> None:
    """The study keeps steps; its command, and that of its page, keep ops, and tables show what constraints are about."""
    study = load(written("extends: base.yaml\nscenario: {record: steps}\naxes: {hardware.memory.bandwidth: '50,100 GB/s'}\n"
                         "constraints: [mean TPOT < 1 s]\nobjectives: {makespan: min}\n"))  # fmt: skip
    swept(study, tmp_path / "out")
    answers = read_answers(tmp_path / "out")
    command = shlex.split(answers.command(answers.best("makespan_ps", 1)[0]))
    assert "record=all" in command
    assert data(answers)["again"] == [["record", "all"]]
    status, _, error = call([*command[1:], "-o", str(tmp_path / "one.pftrace")])
    assert status == 0, error
    assert (tmp_path / "one.pftrace").stat().st_size > 1000
    shown = call(["study", str(tmp_path / "out")]).stdout
    assert "TPOT, mean" in shown
    assert shown.splitlines()[-1] == answers.command(answers.best("makespan_ps", 1)[0])  # in one line, however long


def test_tables_csv_json_and_page_show_the_same(folder: Path) -> None:
    status, out, _ = call(["study", str(folder)])
    assert status == 0
    assert "Pareto front" in out
    status, out, _ = call(["study", str(folder), "--csv"])
    lines = list(csv.DictReader(io.StringIO(out)))
    answers = read_answers(folder)
    assert [float(line["makespan_ps"]) for line in lines] == [point.means["makespan_ps"] for point in answers.points]
    assert [float(line["area"]) for line in lines] == [4 * n + b for n in (1, 2, 4) for b in (5, 10)]
    status, out, _ = call(["study", str(folder), "--json"])
    found = json.loads(out)
    assert found == data(answers)
    assert sum(found["points"]["front"]) == len(answers.front()) > 0
    page = render(answers)
    assert page == render(read_answers(folder))  # the same bytes
    assert "http://" not in page.replace("http://www.w3.org", "").split("<script>")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "nowhere"], "nowhere: no such folder"),
        (["study", "."], "expected the folder of a study"),
        (["sweep", "two_tokens_4_engines"], "a scenario needs --over"),
        (["sweep", "two_tokens_4_engines", "--over", "hardware.engines.cuont=1..2", "--dry-run"], "did you mean 'count'"),
        (["sweep", "engines_and_bandwidth", "--repeats", "2"], "--repeats: expected only with --over"),
    ],
)
def test_wrong_commands_say_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, error = call(arguments)
    assert message in error + out


def test_an_axis_may_be_an_objective(written: Written, tmp_path: Path) -> None:
    study = load(written("extends: base.yaml\naxes: {hardware.memory.bandwidth: '50,100 GB/s'}\n"
                         "objectives: {makespan: min, bandwidth: min}\n"))  # fmt: skip
    swept(study, tmp_path / "out")
    answers = read_answers(tmp_path / "out")
    assert [point.values["hardware.memory.bandwidth"] for point in answers.front()] == [100 * 10**9, 50 * 10**9]
    assert [point.means["hardware.memory.bandwidth"] for point in answers.feasible] == [50 * 10**9, 100 * 10**9]
    shown = " ".join(call(["study", str(tmp_path / "out")]).stdout.split())
    assert "best by hardware.memory.bandwidth (min)" in shown
    assert "Pareto front: 2 of 2 points" in shown


def test_an_objective_that_no_run_has_is_named(written: Written, tmp_path: Path) -> None:
    """The base has no figures of energy, so that no run has joules."""
    study = load(written("extends: base.yaml\naxes: {hardware.memory.bandwidth: '50,100 GB/s'}\n"
                         "objectives: {makespan: min, energy per token: min}\n"))  # fmt: skip
    swept(study, tmp_path / "out")
    shown = " ".join(call(["study", str(tmp_path / "out")]).stdout.split())
    assert "no run has a value for energy per token, so no point is the best" in shown
