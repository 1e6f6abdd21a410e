"""Every shipped scenario still gives its stored report, to the picosecond, replayed and simulated."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import sim
from sim.runner import op_graphs, prepare
from sim.shipped import scenarios
from sim.simulation import simulate
from tests.replay.test_replay import assert_same
from tests.reports import FOLDER, SAMPLE, stored, write_sample


@pytest.mark.parametrize("path", scenarios().values(), ids=list(scenarios()))
def test_report(path: Path) -> None:
    """The stored report is that of today; where steps are replayed, the plain simulation gives the same log, to the bit."""
    report = FOLDER / f"{path.stem}.json"
    assert report.exists(), "no stored report: run `make reports` and commit it"
    result = sim.run(path)
    assert stored(result) == report.read_text(), "the report changed: if it should, run `make reports` and read the difference"
    setup, replayed = prepare(result.scenario, *op_graphs(result.scenario)), result.timing.replayed
    one_loop = len(setup.sequences) == 1 or (setup.batching is not None and setup.batching.policy != "independent")
    if setup.dependency == "sampled" and one_loop:
        assert replayed.replayed >= 0.9 * replayed.steps, replayed.reasons
        assert_same(result.log, simulate(setup))
    else:
        assert replayed.replayed == 0
        assert sum(replayed.reasons.values()) == replayed.steps


def test_no_report_is_left_over() -> None:
    assert {report.stem for report in FOLDER.glob("*.json")} == set(scenarios())


def test_the_sample_trace_is_what_is_written_today(tmp_path: Path) -> None:
    write_sample(tmp_path / SAMPLE.name)
    today = gzip.decompress((tmp_path / SAMPLE.name).read_bytes())
    assert today == gzip.decompress(SAMPLE.read_bytes()), "the trace changed: if it should, run `make reports` and look at it"
    assert SAMPLE.stat().st_size < 100_000
