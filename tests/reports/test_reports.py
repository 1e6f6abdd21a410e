"""Every shipped scenario still gives its stored report, to the picosecond."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.shipped import scenarios
from tests.reports import FOLDER, stored


@pytest.mark.parametrize("path", scenarios().values(), ids=list(scenarios()))
def test_report(path: Path) -> None:
    report = FOLDER / f"{path.stem}.json"
    assert report.exists(), "no stored report: run `make reports` and commit it"
    assert stored(path) == report.read_text(), "the report changed: if it should, run `make reports` and read the difference"


def test_no_report_is_left_over() -> None:
    assert {report.stem for report in FOLDER.glob("*.json")} == set(scenarios())
