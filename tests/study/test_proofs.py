"""Proofs: bounds that no run is below, and a front that is the same with all points run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sim.analysis.rules import Rules
from sim.base.errors import InputError
from sim.executors.setup import Setup
from sim.runs.plan import plan
from sim.runs.run import read, run
from sim.scenario import from_dict
from sim.study.answers import read_answers
from sim.study.batches import Job
from sim.study.bounds import BOUNDED, EXACT, Bounds, BoundsOf
from sim.study.metrics import measure
from sim.study.points import Study, load, over
from sim.study.pool import Processes
from sim.study.proofs import Proofs, generations
from sim.study.steps import known_steps
from sim.study.store import parts
from tests.executors.scenarios import served
from tests.machine.test_invariants import with_effect
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


def lower_bound(setup: Setup, rules: Rules) -> int:
    """The bound of the makespan of a run whose steps are known, ps."""
    loops = known_steps(setup)
    assert loops is not None
    return Bounds.of(setup, rules, loops).makespan


def compare_with_all(study: Study, folder: Path) -> None:
    """Run a study with proofs, into `proven`, and without, into `every`: some points are skipped, and the front is the same."""
    assert swept(study, folder / "proven").skipped > 0
    swept(study, folder / "every", exhaustive=True)
    proven, whole = read_answers(folder / "proven"), read_answers(folder / "every")
    assert [point.number for point in proven.front()] == [point.number for point in whole.front()]


@pytest.mark.parametrize(
    "name",
    ["two_tokens_4_engines", "two_sequences_fifo", "parallel", "multi_head", "llama_1b_context_256", "engines_per_channel"],
)
def test_no_run_is_below_its_bound(name: str) -> None:
    scenario = read(f"scenarios/{name}.yaml", ["record=steps"])
    made = plan(scenario)
    low = lower_bound(made.setup, made.rules)
    result = run(scenario)
    assert 0 < low <= result.makespan
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
        row = measure(Job.of(result.plan))
        assert row["tokens_per_s_per_device"] == row["tokens_per_s"] / 2  # also where one device stands for both
        assert lower_bound(result.plan.setup, result.plan.rules) == result.bounds.link <= result.makespan


@st.composite
def decoding(draw: st.DrawFn) -> dict[str, Any]:
    """A scenario whose steps are each one sequence that decodes one token."""
    scenario: dict[str, Any] = draw(served())
    requests = [
        {"context": draw(st.integers(0, 600)), "tokens": draw(st.integers(1, 4)), "count": draw(st.integers(1, 2))}
        for _ in range(draw(st.integers(1, 2)))
    ]
    scenario["workload"] = {"sequences": requests, "dependency": draw(st.sampled_from(("sampled", "known")))}
    scenario["mapping"].pop("attention", None)
    arbiter, count = scenario["hardware"]["memory"]["arbiter"], sum(each["count"] for each in requests)
    scenario["hardware"]["memory"]["arbiter"] = with_effect(arbiter, count, {"weight_load", "kv_load", "kv_store"})
    flop = draw(st.sampled_from(("3 pJ/FLOP", "0 pJ/FLOP")))
    static = {"device": f"{draw(st.integers(0, 50))} W", "engine": f"{draw(st.integers(0, 5))} W"}
    scenario["hardware"]["energy"] = {"flop": flop, "byte": {"dram": f"{draw(st.integers(0, 9))} pJ/B"}, "static": static}
    return scenario


def check_bounds(bounds: dict[str, Any], found: dict[str, Any]) -> None:
    """No bound is beyond what a run gave, and what is known before it is what it gave."""
    for name, value in bounds.items():
        if value is None:
            assert name in ("tpot_mean_ps", "tokens_per_s_per_user"), name
        elif name in EXACT:
            assert found[name] == value, name
        elif BOUNDED[name] == "min":
            assert 0 < value <= found[name] or value == found[name] == 0, name
        else:
            assert value >= found[name], name


@settings(max_examples=10, deadline=None)
@given(decoding())
def test_random_runs_are_not_below_their_bounds(scenario: dict[str, Any]) -> None:
    try:
        made = from_dict(scenario)
        job = Job.of(plan(made))
    except InputError:
        assume(False)
    bounds = BoundsOf(frozenset({"bytes_moved", "energy_fj"}))(job)
    assert bounds is not None
    assert bounds.keys() == {*BOUNDED, *EXACT}
    check_bounds(bounds, measure(job))


ENERGY = """\
extends: base.yaml
scenario:
  hardware:
    engines: {flops: 20 GFLOP/s, vector_flops: 2 GFLOP/s}
    energy: {flop: 1 pJ/FLOP, byte: {dram: 20 pJ/B}, static: {device: 100 mW, engine: 20 mW}}
axes:
  hardware.engines.count: 1..6
  hardware.memory.bandwidth: 20..320 GB/s x6 log
"""


@pytest.mark.parametrize(
    ("objectives", "constraint"),
    [
        ("{energy_fj: min, bandwidth: max}", "energy < 100 J"),
        ("{energy per token: min, bandwidth: max}", "energy per token < 3 mJ"),
        ("{makespan: min, energy: min, engines.count: max}", "makespan < 1 s"),
    ],
)
def test_energy_has_a_lower_bound(written: Written, tmp_path: Path, objectives: str, constraint: str) -> None:
    study = load(written(f"{ENERGY}constraints: ['{constraint}']\nobjectives: {objectives}\n"))
    compare_with_all(study, tmp_path)
    of_all = {row["point"]: row for row in rows(tmp_path / "every")}
    assert not any(of_all[row["point"]]["feasible"] for row in rows(tmp_path / "proven") if "infeasible" in str(row["error"]))


def test_bytes_are_known_before_a_run(written: Written, tmp_path: Path) -> None:
    """Two of four contexts move more than is allowed: they are not run, though the limit is of an expression."""
    axes = "axes: {workload.sequences.0.context: '0,500,1000,2000'}\nobjectives: {bytes_moved: min, makespan: min}\n"
    every = load(written(f"extends: base.yaml\n{axes}"))
    swept(every, tmp_path / "every", exhaustive=True)
    moved = [row["bytes_moved"] for row in rows(tmp_path / "every")]
    assert moved == sorted(moved)
    limit = (moved[1] + moved[2]) // 2
    study = load(written(f"extends: base.yaml\n{axes}constraints: [bytes_moved / tokens < {limit} B / tokens]\n"))
    assert swept(study, tmp_path / "out").skipped == 2
    assert [row["status"] for row in rows(tmp_path / "out")] == ["ok", "ok", "skipped", "skipped"]
    assert all(row["error"].startswith("infeasible") for row in rows(tmp_path / "out")[2:])


def test_a_batch_has_the_bound_of_its_steps() -> None:
    """One engine runs the kernels of a step one after another, and nothing else happens: the bound is the makespan.

    Between the tokens of each request are the same steps, so that the bound of the TPOT is exact, too.
    """
    workload = {"sequences": [{"context": 512, "tokens": 3, "count": 4}], "batching": "continuous"}
    made = {"model": {"config": "llama-3.2-1b", "layers": 2}, "hardware": {"preset": "h100-sxm"}, "workload": workload}
    job = Job.of(plan(from_dict(made)))
    bounds, found = BoundsOf(frozenset())(job), measure(job)
    assert bounds is not None
    for name in ("makespan_ps", "tpot_mean_ps", "tokens_per_s", "tokens_per_s_per_user"):
        assert bounds[name] == found[name], name


def test_a_run_ends_after_its_last_request_has_come() -> None:
    """Where requests come one after another their times decide which steps there are; in a closed loop nothing is known."""
    workload = {"sequences": [{"prompt": 9, "tokens": 2, "arrival": f"{3 * i} ms"} for i in range(4)], "batching": "continuous"}
    made = {"model": {"config": "llama-3.2-1b", "layers": 1}, "hardware": {"preset": "generic-npu"}, "workload": workload}
    job = Job.of(plan(from_dict(made)))
    bounds, found = BoundsOf(frozenset({"bytes_moved"}))(job), measure(job)
    assert bounds is not None
    assert bounds["makespan_ps"] == 9 * 10**9 + 1 <= found["makespan_ps"]
    assert bounds["tokens_per_s"] == 8 * 10**12 / (9 * 10**9 + 1) >= found["tokens_per_s"]
    assert (bounds["tokens"], bounds["tpot_mean_ps"], bounds.get("bytes_moved")) == (8, None, None)
    for each in workload["sequences"]:
        del each["arrival"]
    workload["concurrency"] = {"users": 2}
    assert BoundsOf(frozenset())(Job.of(plan(from_dict(made)))) is None


def test_a_limit_on_bytes_that_are_not_known_refutes_nothing(written: Written, tmp_path: Path) -> None:
    """Requests that come at times of their own: the constraint cannot be judged before a run, the rate can."""
    text = """\
scenario:
  model: {config: llama-3.2-1b, layers: 1, scope: block}
  workload:
    generate: {count: 6, arrivals: {process: uniform, rate: 10/s}, prompt: 20, tokens: 2}
    batching: continuous
axes: {workload.generate.arrivals.rate: '10,20,40,80/s'}
constraints: [bytes_moved < 1 TB, bytes_moved / tokens < 1 TB]
objectives: {tokens_per_s: max, rate: max}
"""
    study = load(written(text.replace("process: uniform", "process: constant")))
    compare_with_all(study, tmp_path)
    assert all("dominated" in row["error"] for row in rows(tmp_path / "proven") if row["status"] == "skipped")


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(served(), st.booleans())
def test_random_batches_are_not_below_their_bounds(scenario: dict[str, Any], together: bool) -> None:
    """together: all requests come at once, so that all steps are known."""
    for each in scenario["workload"].get("sequences", ()) if together else ():
        each.pop("arrival", None)
    scenario["hardware"]["energy"] = {
        "flop": "3 pJ/FLOP", "byte": "5 pJ/B", "link": "2 pJ/B", "host": "4 pJ/B", "static": {"device": "7 W", "engine": "2 W"},
    }  # fmt: skip
    try:
        job = Job.of(plan(from_dict(scenario)))
    except InputError:
        assume(False)
    bounds = BoundsOf(frozenset({"bytes_moved", "energy_fj"}))(job)
    assume(bounds is not None)
    check_bounds(bounds, measure(job))


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
    compare_with_all(study, tmp_path)
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
        ("{energy per token: min}", True), ("{energy: max}", False), ("{watts: min}", False), ("{bytes_moved: min}", True),
    ]:  # fmt: skip
        study = load(written(GRID.replace("{makespan: min, area: min}", objectives)))
        assert Proofs(study).applies == applies, objectives
    assert not Proofs(load(written(GRID + "repeats: 2\n"))).applies
    assert not Proofs(over(load(written(GRID)).base, ["scheduler=earliest,sticky"])).applies  # no objective is asked for


def test_a_user_has_no_rate_where_all_tokens_come_at_once() -> None:
    """Two drafts that are right give three tokens in one step: no time passes between them."""
    workload = {"sequences": [{"context": 5, "tokens": 3}] * 2, "speculative": {"draft": 2, "acceptance": 1}}
    made = {"model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}, "hardware": {"preset": "generic-npu"}}
    job = Job.of(plan(from_dict(made | {"workload": workload})))
    found, bounds = measure(job), BoundsOf(frozenset())(job)
    assert bounds is not None
    assert (found["tpot_mean_ps"], found["tokens_per_s_per_user"]) == (0, None)
    assert (bounds["tpot_mean_ps"], bounds["tokens_per_s_per_user"]) == (None, None)
