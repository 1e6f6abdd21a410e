"""Studies that ship: what the guide says of them holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.study.answers import read_answers
from sim.study.points import load
from sim.study.shipped import studies
from sim.study.store import parts, read_part
from tests.study.conftest import swept

RATE, CHUNK = "workload.generate.arrivals.rate", "workload.prefill.chunk"


@pytest.mark.parametrize("name", studies())
def test_all_points_of_shipped_studies_can_be_planned(name: str) -> None:
    study = load(studies()[name])
    points = list(study.points())
    for point in (points[0], points[-1]):
        study.plan(point if study.find is None else study.at(point, study.find.first))


@pytest.mark.slow
def test_small_chunks_sustain_more_until_they_delay_the_first_token(tmp_path: Path) -> None:
    swept(load(studies()["highest_rate_and_chunk"]), tmp_path / "out")
    answers = read_answers(tmp_path / "out")
    means = {point.values[CHUNK]: point.means[RATE] / 1e6 for point in answers.points}
    assert 30 < means[8192] < means[2048] < means[512] < means[128] < 45
    rows = [row for part in parts(tmp_path / "out") for row in read_part(part).to_pylist()]
    for seed in range(3):  # with the same requests the order is the same, though intervals over seeds overlap
        highest = [max(row[RATE] for row in rows if (row["seed"], row[CHUNK]) == (seed, chunk) and row["feasible"])
                   for chunk in (8192, 2048, 512, 128)]  # fmt: skip
        assert highest == sorted(highest)
    failing = {chunk: min((row for row in rows if row[CHUNK] == chunk and row["seed"] == 0 and not row["feasible"]),
                          key=lambda row: row[RATE]) for chunk in means}  # fmt: skip
    assert failing[128]["ttft_p90_ps"] > 500 * 10**9
    assert failing[128]["tpot_p90_ps"] < 30 * 10**9
    assert failing[8192]["ttft_p90_ps"] < 500 * 10**9
    assert failing[8192]["tpot_p90_ps"] > 30 * 10**9
