"""Proofs: bounds that no run is below, and a front that is the same with all points run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.runs.plan import plan
from sim.runs.run import read, run
from sim.scenario import from_dict
from sim.study.answers import read_answers
from sim.study.points import load, over
from sim.study.pool import Processes
from sim.study.proofs import Proofs, generations, lower_bound
from sim.study.store import parts
from tests.study.conftest import Written, swept
from tests.study.test_sweep import rows

GRID = """\
extends: base.yaml
scenario: {hardware: {engines: {flops: 20 GFLOP/s, vector_flops: 2 GFLOP/s}}}
axes:
  hardware.engines.count: 1..6
  hardware.memory.bandwidth: 20..320 GB/s x6 log
columns: {area: 4 * engines.count + bandwidth / 10 GB/s}
objectives: {makespan: min, area: min}
"""


@pytest.mark.parametrize(
    "name",
    ["two_tokens_4_engines", "two_sequences_fifo", "parallel", "multi_head", "llama_1b_context_256", "engines_per_channel"],
)
def test_no_run_is_below_its_bound(name: str) -> None:
    scenario = read(f"scenarios/{name}.yaml", ["record=steps"])
    made = plan(scenario)
    low = lower_bound(made.setup, made.rules)
    assert low is not None
    result = run(scenario)
    assert 0 < low <= result.bounds.lower <= result.makespan
    assert result.requests.tokens_per_second <= sum(request.tokens for request in made.setup.sequences) * 10**12 / low
    assert result.requests.end == result.makespan  # which makes it a bound of tokens/s: the last token ends the run
    if name == "two_sequences_fifo":  # one channel: all of its work
        assert low == max(result.bounds.compute, result.bounds.memory)


def test_a_link_delivers_all_of_its_bandwidth() -> None:
    """The LM head, 128,256 x 2,048 numbers of 2 bytes, comes over the link of 54 GB/s for each token: that bounds the run.

    A memory that delivers half of its bandwidth does not slow that link, nor does the link share the work of the memory.
    """
    offloads = {
        "model": {"config": "llama-3.2-1b", "layers": 1},
        "workload": {"sequences": [{"context": 64, "tokens": 2}]},
        "hardware": {
            "preset": "generic-npu", "memory": {"efficiency": {"1": 0.5}},
            "host": {"link": {"bandwidth": "54 GB/s", "latency": 0}},
        },
        "mapping": {"offload": {"weights": ["lm_head"]}},
    }  # fmt: skip
    result = run(from_dict(offloads))
    low = lower_bound(result.plan.setup, result.plan.rules)
    assert low is not None
    assert low <= result.bounds.lower <= result.makespan
    assert abs(low - 2 * 128256 * 2048 * 2 * 10**12 / (54 * 10**9)) < 2 * 2048  # each transfer rounds up


def test_a_link_between_devices_has_the_bound_of_its_own_work() -> None:
    devices = {"count": 2, "link": {"bandwidth": "1 MB/s", "latency": 0}}
    split = {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "workload": {"sequences": [{"context": 64, "tokens": 2}]},
        "hardware": {"engines": {"count": 1}, "devices": devices},
    }
    for parallel in ({"tensor": 2}, {"tensor": 2, "fold": False}):
        result = run(from_dict(split | {"mapping": {"parallel": parallel}}))
        assert lower_bound(result.plan.setup, result.plan.rules) == result.bounds.link <= result.makespan


def test_batches_have_no_bound_before_a_run() -> None:
    made = plan(read("scenarios/batch_8.yaml"))
    assert lower_bound(made.setup, made.rules) is None


def test_generations_are_all_points_once(written: Written) -> None:
    study = load(written(GRID))
    taken = [point.number for generation in generations(study) for point in generation]
    assert sorted(taken) == list(range(36))
    assert taken[:3] == [0, 16, 32]


def test_the_front_is_that_of_all_points(written: Written, tmp_path: Path) -> None:
    study = load(written(GRID))
    counts = swept(study, tmp_path / "proven", Processes(2))
    every = swept(study, tmp_path / "every", exhaustive=True)
    assert 0 < counts.skipped < 36
    assert every.skipped == 0
    proven, whole = read_answers(tmp_path / "proven"), read_answers(tmp_path / "every")
    assert [point.number for point in proven.front()] == [point.number for point in whole.front()]
    of_all = {row["point"]: row for row in rows(tmp_path / "every")}
    for row in rows(tmp_path / "proven"):
        true = of_all[row["point"]]
        if row["status"] == "skipped":
            assert row["lower_ps"] <= true["makespan_ps"]
            by = of_all[int(row["error"].split()[3].rstrip(":"))]
            assert (by["makespan_ps"], by["area"]) <= (true["makespan_ps"], true["area"]) or by["area"] < true["area"]
        else:
            assert row == true
    assert swept(study, tmp_path / "proven", exhaustive=True).done == counts.skipped  # those that were skipped are run
    assert rows(tmp_path / "proven") == rows(tmp_path / "every")


def test_throughput_has_an_upper_bound(written: Written, tmp_path: Path) -> None:
    text = GRID.replace("{makespan: min,", "{tokens_per_s: max,").replace(
        "objectives", "constraints: [tokens_per_s > 300]\nobjectives"
    )
    study = load(written(text))
    skipped = swept(study, tmp_path / "proven").skipped
    swept(study, tmp_path / "every", exhaustive=True)
    assert skipped > 0
    proven, whole = read_answers(tmp_path / "proven"), read_answers(tmp_path / "every")
    assert [point.number for point in proven.front()] == [point.number for point in whole.front()]
    of_all = {row["point"]: row for row in rows(tmp_path / "every")}
    missed = [row for row in rows(tmp_path / "proven") if row["status"] == "skipped" and "infeasible" in row["error"]]
    assert missed
    assert all(of_all[row["point"]]["tokens_per_s"] <= 300 for row in missed)
    assert not any(of_all[row["point"]]["feasible"] for row in missed)


def test_what_is_skipped_depends_neither_on_processes_nor_on_interruptions(written: Written, tmp_path: Path) -> None:
    study = load(written(GRID))
    swept(study, tmp_path / "here")
    swept(study, tmp_path / "processes", Processes(2))
    whole = rows(tmp_path / "here")
    assert rows(tmp_path / "processes") == whole
    parts(tmp_path / "processes")[-1].unlink()  # as if it had been killed before
    swept(study, tmp_path / "processes")
    assert rows(tmp_path / "processes") == whole


def test_points_that_cannot_meet_a_constraint_are_skipped(written: Written, tmp_path: Path) -> None:
    study = load(written(GRID.replace("objectives", "constraints: [makespan < 3 ms, area < 40]\nobjectives")))
    counts = swept(study, tmp_path / "out")
    assert counts.skipped > 0
    for row in rows(tmp_path / "out"):
        if row["status"] == "skipped" and "infeasible" in row["error"]:
            makespan = run(study.scenario(list(study.points())[row["point"]])).makespan
            assert makespan >= 3 * 10**9 or row["area"] is None or row["area"] >= 40 or "area" in row["error"]


def test_proofs_apply_only_to_what_is_bounded(written: Written) -> None:
    for objectives, applies in [
        ("{makespan: min}", True), ("{time per token: min, area: min}", True), ("{makespan: max}", False),
        ("{area: min}", False),
        ("{p99 TPOT: min}", False), ("{makespan: min, tokens_per_s: max}", True), ("{tokens_per_s: min}", False),
        ("{makespan: min, goodput_per_s: max}", False), ("{makespan: min, bandwidth: min}", True),
    ]:  # fmt: skip
        study = load(written(GRID.replace("{makespan: min, area: min}", objectives)))
        assert Proofs(study).applies == applies, objectives
    assert not Proofs(load(written(GRID + "repeats: 2\n"))).applies
    assert not Proofs(over(load(written(GRID)).base, ["scheduler=earliest,sticky"])).applies  # no objective is asked for
