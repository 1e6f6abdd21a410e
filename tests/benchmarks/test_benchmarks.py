"""The benchmarks run, and the program that they compare with does the same work. Nothing here depends on speed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import alone, baseline, entry, growth, mooncake, peers
from benchmarks.__main__ import Idiomatic
from benchmarks.measure import Contender, ratios, rounds, spread
from benchmarks.workloads import COMPARED, SERVING
from sim.workload.trace import read

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMPARED)
def test_the_idiomatic_program_simulates_the_same_steps(name: str):
    small = Idiomatic(replace(COMPARED[name].tiny(), few=2 if name != "known" else 8))
    assert abs(small.deviation()) < 1e-6
    assert small.tasks == len(entry.simulate(small.setup, "simpy").tasks)


def test_the_idiomatic_program_lists_what_it_does_not_cover():
    setup = entry.setup_of(entry.scenario("two_tokens_4_engines"))
    with pytest.raises(NotImplementedError, match="round_robin"):
        baseline.simulate(setup, "round_robin")


def test_shares_of_the_shared_channel_follow_the_weights():
    """Jobs of 300 and 100 ps with weights 3 and 1 end together after 400; one of 100 alone takes 100."""
    import simpy

    env = simpy.Environment()
    channel = baseline.Shared(env, {"heavy": 3})
    ends = {}

    def job(kind: str, work: int, start: int) -> baseline.Process:
        yield env.timeout(start)
        yield from channel.serve(baseline.Load(work, kind))
        ends[kind] = env.now

    for kind, work, start in (("heavy", 300, 0), ("light", 100, 0), ("late", 100, 1000)):
        env.process(job(kind, work, start))
    env.run()
    assert ends == {"heavy": 400, "light": 400, "late": 1100}


def test_the_file_in_mooncakes_layout_has_its_totals(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    mooncake.write(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    inputs, outputs, times = (np.array([row[key] for row in rows]) for key in ("input_length", "output_length", "timestamp"))
    assert len(rows) == 23_608
    assert inputs.sum() == 23_608 * 7_590
    assert outputs.sum() == 23_608 * 182  # 4.3 million
    assert inputs.min() == 890
    assert 5_000 < np.median(inputs) < 6_500
    assert inputs.max() <= 126_000
    assert (outputs.min(), outputs.max()) == (1, 2_000)
    assert (np.diff(times) >= 0).all()
    assert times[0] == 0
    assert 3_500_000 < times[-1] < 3_600_000
    assert all(len(row["hash_ids"]) == -(-row["input_length"] // 512) for row in rows)
    assert 0.4 < np.mean([row["hash_ids"][0] == 0 for row in rows]) < 0.5


def test_the_file_in_mooncakes_layout_follows_from_its_seed_and_is_read(tmp_path: Path):
    one, again, other = (tmp_path / f"{name}.jsonl" for name in ("one", "again", "other"))
    mooncake.write(one, 100, seed=1)
    mooncake.write(again, 100, seed=1)
    mooncake.write(other, 100, seed=2)
    assert one.read_bytes() == again.read_bytes() != other.read_bytes()
    requests = read(one).requests
    assert sum(request.tokens for request in requests) == 100 * 182
    assert sum(request.prompt for request in requests) == 100 * 7_590
    assert requests[0].arrival == 0


def test_lengths_are_scaled_to_a_sum_within_their_bounds():
    found = mooncake.scaled(np.array([1.0, 2.0, 1000.0]), 17, 2, 10)
    assert found.sum() == 17
    assert (found.min(), found.max()) == (2, 10)
    with pytest.raises(ValueError, match="from 6 to 30, found 31"):
        mooncake.scaled(np.ones(3), 31, 2, 10)


def test_rounds_are_interleaved_after_one_that_warms_up():
    order: list[str] = []

    def contender(name: str) -> Contender[None]:
        return Contender(lambda: None, lambda _: order.append(name) or 1)

    found = rounds({"a": contender("a"), "b": contender("b")}, 2, shortest=1e-9)
    assert order == ["a", "b"] * 3
    assert [len(rates) for rates in found.values()] == [2, 2]
    assert ratios([6.0, 8.0], [3.0, 2.0]) == [2.0, 4.0]
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"


@pytest.mark.parametrize("work", ["simulate", "run", "repeats"])
def test_a_single_run_reports_its_work(work: str):
    request = {"scenario": "two_tokens_4_engines", "overrides": ["mapping.execution=stream"], "work": work, "executor": "auto"}
    found = alone.measured(request)
    result = entry.run(entry.scenario("two_tokens_4_engines", "mapping.execution=stream"), "simpy")
    assert found["tasks"] == entry.tasks(result.log) * (alone.REPEATS if work == "repeats" else 1)
    assert found["tokens"] == 2


def test_sequences_of_a_size_come_one_after_the_other():
    scenario = entry.scenario(growth.SCENARIO, growth.sequences(10**9))
    sequences = scenario.workload.sequences
    assert sequences is not None
    assert abs(growth.TASKS * sum(group.tokens for group in sequences) / 10**9 - 1) < 1e-4
    longest = f"workload.sequences=[{{context: {256 + growth.LONGEST}, tokens: 1}}]"
    last = entry.run(entry.scenario(growth.SCENARIO, longest), "auto")
    assert len(last.log.tasks) == growth.TASKS
    assert last.makespan * growth.LONGEST < growth.SLOT * 10**12
    assert [group.arrival for group in sequences] == [k * growth.SLOT * 10**12 for k in range(len(sequences))]


def test_peers_are_skipped_with_a_reason_where_they_are_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(peers, "folder", lambda: tmp_path)
    reason = peers.missing()
    assert "Node" in reason or "make bench-peers" in reason
    package = tmp_path / "node_modules" / peers.PACKAGE / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text('{"version": "0.0.1"}')
    monkeypatch.setattr(peers.shutil, "which", lambda _: "node")
    assert "0.0.1" in peers.missing()
    package.write_text(f'{{"version": "{peers.VERSION}"}}')
    assert not peers.missing()


def test_peers_get_the_requests_of_our_workloads():
    scenario = entry.scenario("dense_batch_32", *SERVING["batch"].overrides[:2])
    generate, config = scenario.workload.generate, peers.WORKLOADS["batch"].config()
    assert generate is not None
    assert generate.count == config["workload"]["num_requests"]
    assert generate.arrivals.rate == config["workload"]["arrival_rate"] * 10**6
    assert (generate.prompt, generate.tokens) == (512, 128)


@pytest.mark.parametrize("name", peers.WORKLOADS)
def test_peers_get_the_device_of_our_workloads(name: str):
    overrides = [each for each in SERVING[name].overrides if not each.startswith("record")]
    hardware = entry.scenario("dense_batch_32", *overrides).hardware
    config = peers.WORKLOADS[name].config()["hardware"]
    assert hardware.memory.bandwidth == config["memory_bandwidth"]
    assert hardware.memory.capacity == config["memory_capacity"]
    assert hardware.engines.peak("bfloat16") == config["compute_flops"]


@pytest.mark.parametrize("name", SERVING)
def test_requests_are_served_by_kernels_of_an_inference_engine(name: str):
    mapping = entry.scenario("dense_batch_32", *SERVING[name].overrides).mapping
    assert (mapping.heads, mapping.softmax, mapping.execution, mapping.fuse.qkv) == ("fused", "online", "stream", True)


@pytest.mark.slow
def test_all_of_the_benchmarks_run(tmp_path: Path):
    target = tmp_path / "page.md"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--write", str(target)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    text = target.read_text()
    for heading in ("Against idiomatic SimPy", "Executors", "Serving", "Two cores", "Growth", "Start-up", "Trace writer"):
        assert f"## {heading}" in text
    assert all(workload.title in text for workload in COMPARED.values())
    assert target.with_suffix(".svg").exists()
