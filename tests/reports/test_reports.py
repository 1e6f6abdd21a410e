"""Every shipped scenario still gives its stored report, to the picosecond."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from sim.shipped import scenarios
from tests.reports import FOLDER, SAMPLE, stored, write_sample


@pytest.mark.parametrize("path", scenarios().values(), ids=list(scenarios()))
def test_report(path: Path) -> None:
    report = FOLDER / f"{path.stem}.json"
    assert report.exists(), "no stored report: run `make reports` and commit it"
    assert stored(path) == report.read_text(), "the report changed: if it should, run `make reports` and read the difference"


def test_no_report_is_left_over() -> None:
    assert {report.stem for report in FOLDER.glob("*.json")} == set(scenarios())


def test_the_sample_trace_is_what_is_written_today(tmp_path: Path) -> None:
    write_sample(tmp_path / SAMPLE.name)
    today = gzip.decompress((tmp_path / SAMPLE.name).read_bytes())
    assert today == gzip.decompress(SAMPLE.read_bytes()), "the trace changed: if it should, run `make reports` and look at it"
    assert SAMPLE.stat().st_size < 100_000
