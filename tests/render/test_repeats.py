"""Means over seeds and their intervals, against the t distribution and by hand."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.base.errors import InputError
from sim.cli import cli
from sim.runs.repeats import T_FROM, T, estimates, interval, repeat, student_t
from sim.runs.run import read

SCENARIO = """\
model: {graph: [{name: load, kind: kv_load, transfer: 1 ms}, {name: work, duration: 2 ms, inputs: [load]}]}
workload:
  generate: {count: 12, arrivals: {process: poisson, rate: 200/s}, tokens: {distribution: uniform, min: 1, max: 3}}
"""


def coverage(t: float, freedom: int) -> float:
    """The probability of [-t, t] under Student's t: its density integrated by Simpson's rule."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    n = 4000
    values = [scale * (1 + (t * i / n) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(n + 1)]
    return 2 * t / n / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))


@pytest.mark.parametrize(("freedom", "t"), [*enumerate(T, 1), *T_FROM])
def test_the_table(freedom: int, t: float) -> None:
    assert coverage(t, freedom) == pytest.approx(0.95, abs=2e-4)
    assert student_t(freedom) == t


def test_between_entries_the_interval_is_rather_too_wide() -> None:
    for freedom in (31, 39, 41, 77, 999, 5000):
        assert coverage(student_t(freedom), freedom) >= 0.95 - 5e-5


def test_by_hand() -> None:
    mean, half = interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2, rel=1e-12)  # s^2 = (2.25 + 0.25) * 2 / 3
    assert interval([7.0, 7.0]) == (7.0, 0.0)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draw = random.Random(5)
    hits = 0
    for _ in range(2000):
        mean, half = interval([draw.gauss(3, 2) for _ in range(6)])
        hits += abs(mean - 3) <= half
    assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_what_only_some_runs_have() -> None:
    found = estimates([{"a": ("ps", 1.0), "b": ("", 2.0)}, {"a": ("ps", 3.0)}])
    assert [(e.name, e.mean, e.values) for e in found] == [("a", 2.0, (1.0, 3.0))]


def test_each_run_has_its_own_seed(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    results = list(repeat(read(tmp_path / "s.yaml"), 3))
    assert [r.scenario.seed for r in results] == [0, 1, 2]
    assert len({r.makespan for r in results}) == 3
    with pytest.raises(InputError, match="expected 2 to 1000 repeats, found 1"):
        next(repeat(read(tmp_path / "s.yaml"), 1))


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    first, second = (CliRunner().invoke(cli, ["run", str(path), "--repeats", "3", "--json"]).output for _ in range(2))
    assert first == second
    data = json.loads(first)
    assert data["seeds"] == [0, 1, 2]
    alone = json.loads(CliRunner().invoke(cli, ["run", str(path), "--json", "--no-trace", "--set", "seed=1"]).output)
    values = {row["name"]: row["values"] for row in data["numbers"]}
    assert values["makespan"][1] == alone["makespan_ps"]
    assert values["end to end, p90"][1] == alone["requests"]["e2e_ps"]["p90"]
    text = CliRunner().invoke(cli, ["run", str(path), "--repeats", "2"]).output
    assert "2 runs, seeds 0 to 1" in text
    assert not list(tmp_path.glob("traces"))


def test_processes_give_the_same_results() -> None:
    """A program of its own, without `if __name__ == "__main__"`: a test run may have other threads, and then none is forked."""
    text = """
import os
import sim.executors as executors
import sim.runs.what_if as what_if
from sim.runs.repeats import measure, numbers, repeat
from sim.runs.run import read, run
from sim.scenario.shipped import scenarios

executors.MANY_BATCHED, executors.cores = 0, lambda: 2
small = ["model.layers=1", "model.scope=block", "mapping.heads=fused"]
scenario = read(scenarios()["batching_continuous"], small)
expected = [numbers(result) for result in repeat(scenario, 3)]
print(expected == list(measure(scenario, 3, numbers)))
print(all(pid != os.getpid() for pid in measure(scenario, 3, lambda result: os.getpid())))
result = run(scenario)
forked = what_if.what_if(result)
executors.can_fork = lambda: False
print(forked == what_if.what_if(result))
"""
    done = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True, timeout=300)
    forks = "True" if sys.platform == "linux" else "False"
    assert done.stdout.split() == ["True", forks, "True"], done.stderr
