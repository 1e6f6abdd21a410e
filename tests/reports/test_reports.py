"""Every shipped scenario still gives its stored report, to the picosecond, replayed and simulated."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sim.executors.reference import simulate
from sim.executors.setup import Setup
from sim.replay import run as replay
from sim.runner import op_graphs, prepare, read
from sim.shipped import scenarios
from tests.replay.test_replay import assert_same
from tests.reports import FOLDER, SAMPLE, run, stored, write_sample


@pytest.mark.parametrize("path", scenarios().values(), ids=list(scenarios()))
def test_report(path: Path) -> None:
    """The stored report is that of today, and nearly all steps that can be are replayed."""
    report = FOLDER / f"{path.stem}.json"
    assert report.exists(), "no stored report: run `make reports` and commit it"
    result = run(path.stem)
    assert stored(result) == report.read_text(), "the report changed: if it should, run `make reports` and read the difference"
    setup, replayed = prepare(result.scenario, *op_graphs(result.scenario)), result.timing.replayed
    if has_barriers(setup):
        assert replayed.replayed >= 0.9 * replayed.steps, replayed.reasons
    else:
        assert replayed.replayed == 0
        assert sum(replayed.reasons.values()) == replayed.steps


def has_barriers(setup: Setup) -> bool:
    one_loop = len(setup.sequences) == 1 or (setup.batching is not None and setup.batching.policy != "independent")
    return setup.dependency == "sampled" and one_loop


def by_size(path: Path) -> object:
    """Marked as slow if it has many tasks."""
    tasks = json.loads((FOLDER / f"{path.stem}.json").read_text())["tasks"]
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if tasks > 5_000 else [])


@pytest.mark.parametrize("path", [by_size(path) for path in scenarios().values()])
def test_replay_gives_the_log_of_the_simulation_to_the_bit(path: Path) -> None:
    scenario = read(path)
    setup = prepare(scenario, *op_graphs(scenario))
    if not has_barriers(setup):
        pytest.skip("no step of it can be replayed")
    assert_same(replay(setup)[0], simulate(setup))


def test_no_report_is_left_over() -> None:
    assert {report.stem for report in FOLDER.glob("*.json")} == set(scenarios())


def test_the_sample_trace_is_what_is_written_today(tmp_path: Path) -> None:
    write_sample(tmp_path / SAMPLE.name)
    today = gzip.decompress((tmp_path / SAMPLE.name).read_bytes())
    assert today == gzip.decompress(SAMPLE.read_bytes()), "the trace changed: if it should, run `make reports` and look at it"
    assert SAMPLE.stat().st_size < 100_000
