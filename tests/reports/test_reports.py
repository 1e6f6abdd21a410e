"""Every shipped scenario still gives its stored report, to the picosecond, whichever executor runs it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sim.executors import simulate
from sim.runs.plan import plan
from sim.runs.run import read
from sim.scenario.shipped import scenarios
from tests.executors import assert_same
from tests.reports import FOLDER, SAMPLE, run, stored, write_sample


@pytest.mark.parametrize("path", scenarios().values(), ids=list(scenarios()))
def test_report(path: Path) -> None:
    """The stored report is that of today."""
    report = FOLDER / f"{path.stem}.json"
    assert report.exists(), "no stored report: run `make reports` and commit it"
    result = run(path.stem)
    assert stored(result) == report.read_text(), "the report changed: if it should, run `make reports` and read the difference"


def by_size(path: Path) -> object:
    """Marked as slow if it has many tasks."""
    tasks = json.loads((FOLDER / f"{path.stem}.json").read_text())["tasks"]
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if tasks > 5_000 else [])


@pytest.mark.parametrize("path", [by_size(path) for path in scenarios().values()])
def test_both_executors_give_the_same_log_to_the_bit(path: Path) -> None:
    scenario = read(path)
    setup = plan(scenario).setup
    assert_same(simulate(setup, "compiled")[0], simulate(setup, "simpy")[0])


def test_no_report_is_left_over() -> None:
    assert {report.stem for report in FOLDER.glob("*.json")} == set(scenarios())


def test_the_sample_trace_is_what_is_written_today(tmp_path: Path) -> None:
    write_sample(tmp_path / SAMPLE.name)
    today = gzip.decompress((tmp_path / SAMPLE.name).read_bytes())
    assert today == gzip.decompress(SAMPLE.read_bytes()), "the trace changed: if it should, run `make reports` and look at it"
    assert SAMPLE.stat().st_size < 100_000
