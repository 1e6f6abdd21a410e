"""Changes that would help, and the commands that explain a run."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sim.analysis.bounds import few_tiles
from sim.cli import cli
from sim.runs.run import read, run
from sim.runs.what_if import bottleneck, what_if
from sim.scenario.shipped import find_scenario


def help_for(name: str, *overrides: str):
    result = run(read(find_scenario(name), list(overrides)))
    found = what_if(result)
    return {change.name: change.speedup(result.makespan) for change in found.changes}, found.bottleneck, result, found


def call(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_lockstep():
    """Closed loop, N = 4, Z = 3, D = 1: fifo 4 a round against 7 under sharing; without the channel 3."""
    speedups, sentence, _, _ = help_for("lockstep_processor_sharing")
    assert speedups["infinite bandwidth"] == pytest.approx(7 / 3)
    assert speedups["bandwidth x2"] == pytest.approx(7 / 5)
    assert speedups["no sharing losses"] == pytest.approx(7 / 4, rel=0.01)
    assert sentence.startswith("The memory channel is the bottleneck")
    assert "fifo" in sentence


def test_a_scheduler_that_leaves_engines_idle():
    speedups, sentence, _, _ = help_for("no_parallelism")
    assert speedups["earliest"] > 2
    assert sentence.startswith("The scheduler is the bottleneck: serial")


def test_a_chain_of_dependencies():
    speedups, sentence, _, _ = help_for("parallel")
    assert speedups.pop("tiles: engines") > 1.1  # shorter tasks make a shorter chain
    assert max(speedups.values()) == pytest.approx(1.0)
    assert sentence.startswith("The dependencies between tasks are the bottleneck")


def test_engines():
    speedups, sentence, result, found = help_for("multi_head", "hardware.engines.count=1")
    assert speedups["infinite engines"] >= speedups["engines x2"] > 1
    assert sentence.startswith("The engines are the bottleneck")
    assert bottleneck(result, found.changes) == found.bottleneck


def test_tiles_for_all_engines():
    """One engine streams the LM head through a port that the others leave idle."""
    speedups, sentence, result, _ = help_for("lm_head_on_one_engine")
    better = run(read(find_scenario("lm_head_on_one_engine"), ["mapping.tiles=engines"]))
    assert speedups["tiles: engines"] == result.makespan / better.makespan > 1.5
    assert sentence.endswith("(mapping.tiles: engines) would speed this up 1.64x.")
    assert few_tiles(result.log, result.bounds) == 1
    assert few_tiles(better.log, better.bounds) is None


def test_more_tiles_are_no_advice_where_the_channel_is_the_limit():
    speedups, _, result, _ = help_for("llama_1b_context_256")
    assert few_tiles(result.log, result.bounds) is None
    assert "tiles: engines" not in speedups


def test_no_machine_gains_time_before_the_last_arrival():
    requests = "workload.sequences=[{context: 4}, {context: 4, arrival: 1 s}]"
    _, sentence, _, _ = help_for("multi_head", requests)
    assert sentence.endswith("; the last request arrives at 1.000 s, and no machine can finish before that.")


def test_an_impossible_change_has_a_reason():
    """Weights for the loads of an op, of which there are none with prefetch."""
    arbiter = "hardware.memory.arbiter={name: weighted, weights: {q_proj: 3}}"
    _, _, _, found = help_for("two_sequences_fifo", "model.layers=1", "model.scope=block", arbiter)
    (change,) = [change for change in found.changes if change.name == "prefetch"]
    assert change.makespan is None
    assert "unknown kind of transfer 'q_proj'" in change.note


def test_explain_in_json_is_run_in_json_and_more():
    data = json.loads(call("explain", "two_tokens_4_engines", "--json"))
    ran = json.loads(call("run", "two_tokens_4_engines", "--json", "--no-trace"))
    for key in ("makespan_ps", "tokens", "breakdown_ps", "blame", "bounds", "checks"):
        assert data[key] == ran[key]
    for token in ran["tokens"]:
        assert sum(token["breakdown_ps"].values()) == token["end_ps"] - token["start_ps"]
    links = data["critical_path"]["links"]
    assert (links[0]["begin_ps"], links[-1]["end_ps"]) == (0, data["makespan_ps"])
    assert {key: data["critical_path"][key] for key in ran["critical_path"]} == ran["critical_path"]
    assert data["what_if"]["bottleneck"]
    assert data["optimal"] is None
    total = data["breakdown_ps"]["total"]
    for group in ("by_kind", "by_layer", "by_token", "by_sequence"):
        assert {part: sum(row[part] for row in data["breakdown_ps"][group]) for part in total} == total
    for resource in ("engine", "channel"):
        for table in data["blame"][resource].values():
            waits = sum(map(sum, table["wait_ps"])) + sum(table["alone_ps"])
            assert waits == total[f"wait_{resource}"]


def test_explain_as_a_page():
    page = call("explain", "two_tokens_4_engines", "--no-what-if")
    for title in (
        "Where the time of each token went",
        "Causes of waits for an engine",
        "Critical path of the run",
        "Bounds",
    ):
        assert title in page
    assert "What would help" not in page


def test_steps_of_a_batch_are_called_steps():
    page = call("explain", "batch_8", "--no-what-if", "--set", "model.layers=1")
    assert "Where the time of each step went" in page
    assert "\nstep " in page
    assert "token" not in page


def test_compare():
    data = json.loads(call("compare", "lockstep_fifo", "lockstep_processor_sharing", "--json"))
    assert data["keys"] == {"hardware.memory.arbiter": ["fifo", "processor_sharing"]}
    numbers = {row["name"]: row for row in data["numbers"]}
    assert numbers["makespan"]["ratio"] == pytest.approx(7 / 4, rel=0.01)
    assert {row["part"] for row in data["sources"]} == {"wait_engine", "wait_channel"}
    assert "Where the difference comes from" in call("compare", "lockstep_fifo", "lockstep_processor_sharing")


def test_compare_with_itself():
    data = json.loads(call("compare", "multi_head", "multi_head", "--json"))
    assert (data["keys"], data["sources"]) == ({}, [])
    assert {row["difference"] for row in data["numbers"]} == {0}
