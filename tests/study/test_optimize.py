"""Optimization: the same trials whatever runs them or ends them, and fronts near that of all points."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sim.base.errors import InputError
from sim.study import optimize as optimization
from sim.study.answers import read_answers
from sim.study.expressions import parse
from sim.study.optimize import TRIALS, told
from sim.study.points import load
from sim.study.pool import Processes
from sim.study.store import FAILED, parts
from tests.study.conftest import Written, swept
from tests.study.test_sweep import rows, sweeping
from tests.tools.command import call
from tests.tools.full_disk import fill_disk

pytest.importorskip("optuna")

GRID = """\
extends: base.yaml
scenario: {hardware: {engines: {flops: 20 GFLOP/s, vector_flops: 2 GFLOP/s}}}
axes:
  hardware.engines.count: 1..12
  hardware.memory.bandwidth: 20..640 GB/s x12 log
columns: {area: 4 * engines.count + bandwidth / 10 GB/s}
objectives: {makespan: min, area: min}
"""
FEW = GRID + "optimize: {trials: 20, batch: 8}\n"
RANGES = """\
extends: base.yaml
scenario: {record: steps}
axes:
  hardware.memory.bandwidth: {from: 20 GB/s, to: 640 GB/s, scale: log}
  mapping.heads: [split, fused]
zip: [{hardware.engines.count: [1, 2], hardware.engines.flops: [2 TFLOP/s, 1 TFLOP/s]}]
constraints: [makespan < 2 ms]
objectives: {makespan: min, bandwidth: min}
optimize: {trials: 24, batch: 8, seed: 3, sampler: SAMPLER}
"""


def area_under(front: list[tuple[float, float]], corner: tuple[float, float]) -> float:
    """The area that two objectives, both to be small, dominate up to a corner: the hypervolume indicator."""
    inside = sorted(point for point in front if point[0] < corner[0] and point[1] < corner[1])
    steps = [*inside, (corner[0], 0.0)]
    return sum((b[0] - a[0]) * (corner[1] - min(p[1] for p in inside[: i + 1])) for i, (a, b) in enumerate(pairwise(steps)))


def test_the_area_under_a_staircase_is_that_of_its_rectangles() -> None:
    assert area_under([(1, 3), (2, 1), (2, 2)], (4, 4)) == 1 * 1 + 2 * 3


def test_a_part_of_all_points_has_nearly_the_whole_front(written: Written, tmp_path: Path) -> None:
    swept(load(written(GRID)), tmp_path / "every", exhaustive=True)
    counts = swept(load(written(GRID + "optimize: {trials: 64, batch: 16}\n", name="some.yaml")), tmp_path / "some")
    assert counts.done <= 60 < 144 / 2
    assert counts.failed == 0
    every, some = read_answers(tmp_path / "every"), read_answers(tmp_path / "some")
    key = ("hardware.engines.count", "hardware.memory.bandwidth")
    of_all = {tuple(p.values[k] for k in key): p.means for p in every.points}
    assert all(of_all[tuple(p.values[k] for k in key)] == p.means for p in some.points)  # a row is that of the grid
    assert len({tuple(p.values.items()) for p in some.points}) == len(some.points) == counts.done  # none is run again
    corner = tuple(max(p.means[name] for p in every.points) for name in every.objectives)
    whole, found = (
        area_under([(p.means["makespan_ps"], p.means["area"]) for p in answers.front()], corner)  # type: ignore[arg-type]
        for answers in (every, some)
    )
    assert 0.95 * whole < found <= whole


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3", "tpe", "random"])
def test_each_sampler_keeps_ranges_choices_and_constraints(written: Written, tmp_path: Path, sampler: str) -> None:
    study = load(written(RANGES.replace("SAMPLER", sampler)))
    swept(study, tmp_path / "out")
    assert told(tmp_path / "out") == 24
    found = rows(tmp_path / "out")
    assert {(row["hardware.engines.count"], row["hardware.engines.flops"] // 10**12) for row in found} <= {(1, 2), (2, 1)}
    assert {row["mapping.heads"] for row in found} <= {"split", "fused"}
    assert all(20 * 10**9 <= row["hardware.memory.bandwidth"] <= 640 * 10**9 for row in found)
    assert all(row["feasible"] == (row["makespan_ps"] < 2 * 10**9) for row in found)
    shown = call(["study", str(tmp_path / "out")]).stdout
    assert f"24 of 24 by {sampler}: {len(found)} points" in shown
    answers = read_answers(tmp_path / "out")
    best = answers.best("makespan_ps", 1)[0]
    again = call([*shlex.split(answers.command(best))[1:], "--no-trace", "--json"])
    assert json.loads(again.stdout)["makespan_ps"] == best.means["makespan_ps"]


def test_trials_do_not_depend_on_interruptions_or_their_number(written: Written, tmp_path: Path) -> None:
    study = load(written(FEW))
    swept(study, tmp_path / "here")
    whole = rows(tmp_path / "here")
    with pytest.raises(KeyboardInterrupt):
        swept(study, tmp_path / "cut", on_progress=_interrupt_after(11))
    assert 0 < len(rows(tmp_path / "cut")) < len(whole)
    swept(study, tmp_path / "cut")
    assert rows(tmp_path / "cut") == whole
    swept(load(written(FEW.replace("trials: 20", "trials: 5"))), tmp_path / "more")
    assert told(tmp_path / "more") == 5
    swept(study, tmp_path / "more")  # a changed number of trials goes on
    assert rows(tmp_path / "more") == whole
    swept(load(written(FEW.replace("batch: 8", "batch: 8, seed: 1"))), tmp_path / "other")
    assert rows(tmp_path / "other") != whole


def test_lost_rows_are_run_again_and_lost_trials_are_chosen_again(written: Written, tmp_path: Path) -> None:
    study = load(written(FEW))
    swept(study, tmp_path / "out")
    whole, trials = rows(tmp_path / "out"), (tmp_path / "out" / TRIALS).read_bytes()
    parts(tmp_path / "out")[0].unlink()
    assert swept(study, tmp_path / "out").done > 0
    assert rows(tmp_path / "out") == whole
    (tmp_path / "out" / TRIALS).unlink()
    assert swept(study, tmp_path / "out").done == 0
    for length in range(len(trials) - 1, 0, -len(trials) // 7):  # as if killed in the midst of a write
        (tmp_path / "out" / TRIALS).write_bytes(trials[:length])
        assert told(tmp_path / "out") < 20
        assert swept(study, tmp_path / "out").done == 0
        assert told(tmp_path / "out") == 20


def test_repeats_are_means_and_errors_are_trials_without_a_result(written: Written, tmp_path: Path) -> None:
    text = """\
extends: base.yaml
axes: {model.layers: [1, 99], hardware.engines.count: 1..4}
optimize: {trials: 8, batch: 8, sampler: random}
repeats: 2
"""
    study = load(written(text))
    counts = swept(study, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert counts.failed == sum(row["status"] == FAILED for row in found) > 0
    assert {row["seed"] for row in found} == {0, 1}
    assert swept(study, tmp_path / "out", again=[FAILED]).done == counts.failed
    assert rows(tmp_path / "out") == found


def test_how_much_a_constraint_is_missed_is_a_share_of_its_limit() -> None:
    makespan = parse("makespan < 10 ms", ["makespan_ps"])
    assert [makespan.missed({"makespan_ps": n * 10**9}) for n in (5, 15, 10)] == [-0.5, 0.5, 1e-9]
    assert parse("tokens > 10", ["tokens"]).missed({"tokens": 5}) == 0.5
    assert parse("tokens > 10", ["tokens"]).missed({}) == 1
    assert [parse("tokens + 1 > 10", ["tokens"]).missed({"tokens": n}) for n in (9, 10)] == [1, 0]


def test_a_full_disk_leaves_trials_to_go_on_with(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load(written(FEW))
    with monkeypatch.context() as full:
        fill_disk(full, "part-000001")
        with pytest.raises(OSError, match="No space left"):
            swept(study, tmp_path / "out")
    assert told(tmp_path / "out") == 8
    swept(study, tmp_path / "out")
    swept(study, tmp_path / "whole")
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_optuna_is_loaded_only_where_it_is_used(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(FEW)
    code = f"import sys; from sim.study.points import load; load(__import__('pathlib').Path({str(path)!r}))"
    code += "; import sim.cli, sim.study.sweep; print('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    monkeypatch.setattr(optimization, "import_module", _missing)
    with pytest.raises(InputError, match=r"optimize needs Optuna: pip install 'decode-sim\[optimize\]'"):
        swept(load(path), tmp_path / "out")


def _missing(name: str) -> Any:
    raise ImportError(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("trials: 20, ", ""), "optimize: the key 'trials' is missing"),
        (lambda t: t.replace("batch: 8", "sampler: best"), "optimize.sampler: "),
        (lambda t: t + "sample: {points: 4}\n", "expected either the key 'optimize' or the key 'sample'"),
        (lambda t: t + "find: smallest seed\n", "expected either the key 'optimize' or the key 'find'"),
    ],
)
def test_what_is_no_optimization_is_an_error(written: Written, change: Callable[[str], str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(written(change(FEW)))


def test_a_dry_run_says_how_many_trials_there_are(written: Written) -> None:
    shown = call(["sweep", str(written(FEW)), "--dry-run", "-j", "1"]).stdout
    assert "study: 20 trials of hardware.engines.count (12), hardware.memory.bandwidth (12)" in shown


@pytest.mark.slow
def test_trials_do_not_depend_on_processes(written: Written, tmp_path: Path) -> None:
    study = load(written(FEW))
    swept(study, tmp_path / "here")
    swept(study, tmp_path / "processes", Processes(2))
    assert rows(tmp_path / "processes") == rows(tmp_path / "here")


@pytest.mark.slow
def test_a_killed_optimization_goes_on_where_it_was(written: Written, tmp_path: Path) -> None:
    path, folder = written(GRID + "optimize: {trials: 400, batch: 16, sampler: random}\n"), tmp_path / "out"
    for trials in (1, 40):  # killed twice
        process = sweeping(path, folder, 2)
        end = time.monotonic() + 120
        while not parts(folder) or told(folder) < trials:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert told(folder) < 400, "it was to be killed in the middle"
    again = sweeping(path, folder, 2)
    _, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    swept(load(path), tmp_path / "whole")
    assert rows(folder) == rows(tmp_path / "whole")


def _interrupt_after(runs: int) -> Callable[[object], None]:
    def on_progress(counts: object) -> None:
        if counts.done >= runs:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    return on_progress
