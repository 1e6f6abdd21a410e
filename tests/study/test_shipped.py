"""Studies that ship: what the guide says of them holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sim.study.answers import Answers, read_answers
from sim.study.points import load, spread
from sim.study.shipped import studies
from sim.study.store import parts, read_part
from tests.study.conftest import swept

RATE, CHUNK = "workload.generate.arrivals.rate", "workload.prefill.chunk"


@pytest.mark.parametrize("name", studies())
def test_all_points_of_shipped_studies_can_be_planned(name: str) -> None:
    study = load(studies()[name])
    for point in spread(study, 3):
        study.plan(point)


def swept_answers(name: str, folder: Path) -> Answers:
    swept(load(studies()[name]), folder)
    return read_answers(folder)


@pytest.mark.slow
def test_bandwidth_first_then_four_engines(tmp_path: Path) -> None:
    answers = swept_answers("engines_and_bandwidth", tmp_path / "out")
    assert (len(answers.points), answers.skipped, len(answers.front())) == (39, 33, 22)
    effect = answers.effects("makespan_ps")[0]
    assert (effect.axes, round(effect.share, 2)) == (("hardware.memory.bandwidth",), 0.99)
    at_most = {point.values["hardware.engines.count"]: point.means["makespan_ps"] / 1e9 for point in answers.points
               if point.values["hardware.memory.bandwidth"] == 400 * 10**9}  # fmt: skip
    assert [round(at_most[engines], 1) for engines in (3, 4, 8)] == [9.6, 7.7, 7.0]


@pytest.mark.slow
def test_order_moves_latency_not_the_end(tmp_path: Path) -> None:
    answers = swept_answers("arbiter_scheduler_execution", tmp_path / "out")
    makespans, latencies = ([point.means[name] for point in answers.points] for name in ("makespan_ps", "tpot_mean_ps"))
    assert len(answers.points) == 27
    assert max(makespans) < 1.01 * min(makespans)
    best = answers.best("tpot_mean_ps", 1)[0]
    assert list(best.values.values()) == ["fifo", "earliest", "blocking"]
    assert round(best.means["tpot_mean_ps"] / 1e9) == 66
    assert 1.5 < max(latencies) / min(latencies) < 1.65


@pytest.mark.slow
def test_formats_before_batch(tmp_path: Path) -> None:
    answers = swept_answers("batch_context_format", tmp_path / "out")
    assert (len(answers.points), answers.skipped) == (16, 92)
    front = answers.front()
    assert {(p.values["hardware.preset"], p.values["mapping.formats.weights"]) for p in front} == {("b200", "int4")}
    assert {p.values["workload.sequences.0.context"] for p in front} == {512}
    assert [round(p.means["tokens_per_s_per_user"]) for p in (front[0], front[-1])] == [582, 428]
    assert round(front[-1].means["tokens_per_s"], -2) == 27_400


@pytest.mark.slow
def test_16_mib_are_enough(tmp_path: Path) -> None:
    answers = swept_answers("prefetch_and_sram", tmp_path / "out")
    takes = {(p.values["mapping.execution"], p.values["hardware.sram"]): p.means["makespan_ps"] for p in answers.points}
    least, enough = 8 * 2**20, answers.front()[0].values["hardware.sram"]
    assert abs(enough / 2**24 - 1) < 0.001
    assert min(takes.values()) == takes["prefetch", enough]
    assert takes["stream", least] == min(takes[execution, least] for execution in ("blocking", "stream", "prefetch"))


@pytest.mark.slow
def test_chosen_chips_are_smaller_than_random_ones(tmp_path: Path) -> None:
    """By margins that other releases of Optuna, which choose other chips, keep, too."""
    study = load(studies()["chip_by_optimization"])
    assert study.optimize is not None
    swept(study, tmp_path / "chosen")
    swept(replace(study, optimize=replace(study.optimize, sampler="random")), tmp_path / "random")
    chosen, random = (read_answers(tmp_path / name).points for name in ("chosen", "random"))
    assert len(chosen) <= len(random) == 480
    smallest = [min(p.means["area"] for p in each if p.means["makespan_ps"] <= 20e9) for each in (chosen, random)]
    assert smallest[0] < 0.9 * smallest[1]
    front = [p for p in read_answers(tmp_path / "chosen").front() if p.means["makespan_ps"] <= 20e9]
    assert {p.values["mapping.execution"] for p in front} <= {"prefetch", "stream"}
    assert max(p.values["hardware.engines.count"] for p in front) <= 8


@pytest.mark.slow
def test_chunks_of_512_sustain_more_and_smaller_ones_delay_the_first_token(tmp_path: Path) -> None:
    swept(load(studies()["highest_rate_and_chunk"]), tmp_path / "out")
    answers = read_answers(tmp_path / "out")
    means = {point.values[CHUNK]: point.means[RATE] / 1e6 for point in answers.points}
    assert 27 < means[8192] < means[2048] < means[512] < 35
    assert abs(means[128] - means[512]) < 1
    rows = [row for part in parts(tmp_path / "out") for row in read_part(part).to_pylist()]
    for seed in range(3):  # with the same requests the order is the same, though intervals over seeds overlap
        highest = [max(row[RATE] for row in rows if (row["seed"], row[CHUNK]) == (seed, chunk) and row["feasible"])
                   for chunk in (8192, 2048, 512)]  # fmt: skip
        assert highest == sorted(highest)
    failing = {chunk: min((row for row in rows if row[CHUNK] == chunk and row["seed"] == 0 and not row["feasible"]),
                          key=lambda row: row[RATE]) for chunk in means}  # fmt: skip
    assert failing[128]["ttft_p90_ps"] > 500 * 10**9
    assert failing[128]["tpot_p90_ps"] < 30 * 10**9
    assert failing[8192]["ttft_p90_ps"] < 500 * 10**9
    assert failing[8192]["tpot_p90_ps"] > 30 * 10**9
