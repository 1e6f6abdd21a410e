"""A plan is complete: pickled, it gives the same run in a process that knows neither the scenario nor its files."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.config import CONFIGS, resolve
from sim.base.errors import ConfigError, InputError, about
from sim.executors import simulate
from sim.runs.model import models_of, notes_of
from sim.runs.plan import plan
from sim.runs.run import read, run
from sim.scenario import from_dict
from sim.scenario.shipped import SCENARIOS, scenarios
from tests.executors import assert_same

#: Simulates a pickled plan in another working directory and pickles the log.
ELSEWHERE = """
import pickle, sys
from sim.executors import simulate
with open("plan", "rb") as file:
    plan = pickle.load(file)
with open("log", "wb") as file:
    pickle.dump(simulate(plan.setup, "simpy")[0], file)
"""

BLOCK = ("model.layers=1", "model.scope=block")
RUNS = {
    "roofline": ("llama_1b_context_256", *BLOCK),
    "fixed costs that vary, shortest first": ("two_tokens_4_engines", "cost.jitter=0.5", "scheduler=shortest"),
    "a device profile": ("xeon_qwen_0.5b", "model.layers=2", "workload.sequences=[{context: 9, tokens: 2}]"),
    "a written graph": ("lockstep_fifo", "workload.sequences=[{tokens: 3}]"),
    "swaps, in place": ("kv_full_swap", *BLOCK, "mapping.kv=operands", "mapping.execution=stream"),
    "experts and drafts": (
        "moe_batch_1", "model.layers=1", "workload.batching=continuous",
        "workload.speculative={draft: 2, acceptance: 0.5}", "workload.sequences=[{prompt: 9, tokens: 5, count: 3}]",
    ),
    "caches that are handed over layer by layer": (
        "h100_llama_8b_disaggregated_4", *BLOCK, "mapping.parallel={data: 2, prefill: 1, hand_over: layers}",
        "hardware.devices.count=2", "workload.generate=null", "workload.sequences=[{prompt: 40, tokens: 3, count: 2}]",
    ),
    "the prediction head of a model": (
        "moe_batch_1", "model.config=glm-4.5-air", "model.layers=1", "workload.batching=continuous",
        "workload.speculative={draft: 1, acceptance: 0.5, model: mtp}", "workload.sequences=[{prompt: 9, tokens: 5}]",
    ),
    "shares by kind on a channel of limited efficiency": (
        "four_sequences_fifo", *BLOCK, "hardware.memory.arbiter={name: weighted, weights: {kv_load: 3}}",
        "hardware.memory.efficiency={'1': 0.5, '4': 0.9}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_pickled_plan_runs_to_the_same_log_in_a_new_process(name: str, tmp_path: Path) -> None:
    scenario = read(scenarios()[RUNS[name][0]], list(RUNS[name][1:]))
    planned = plan(scenario)
    expected = simulate(planned.setup, "simpy")[0]  # before it is pickled: its cost model has seen graphs
    (tmp_path / "plan").write_bytes(pickle.dumps(planned))
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, check=True, env={"PYTHONPATH": str(SCENARIOS.parent)})
    log = pickle.loads((tmp_path / "log").read_bytes())
    assert len(log.tasks) > 0
    assert_same(log, expected)


def test_a_plan_has_read_all_files(tmp_path: Path) -> None:
    folder = tmp_path / "scenarios"
    folder.mkdir()
    shutil.copy(scenarios()["xeon_qwen_0.5b"], folder / "one.yaml")
    shutil.copytree(SCENARIOS / "profiles", folder / "profiles")
    (folder / "requests.csv").write_text("arrival,prompt,tokens\n0,5,3\n1,4,2\n")
    trace = "workload={trace: {file: requests.csv, columns: {arrival: arrival, prompt: prompt, tokens: tokens}}}"
    scenario = read(folder / "one.yaml", ["model.layers=1", trace])
    planned, other = plan(scenario), plan(scenario)
    shutil.rmtree(folder)
    assert_same(simulate(planned.setup, "simpy")[0], simulate(other.setup, "simpy")[0])
    assert [request.prompt for request in planned.setup.sequences] == [5, 4]


def test_errors_of_lower_layers_have_the_place_of_their_key(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("model: {config: llama-3.2-1b}\ncost:\n  model: fixed\n  table:\n    norm: 3 us\n")
    with pytest.raises(InputError, match=r"one\.yaml:5:5: cost\.table: no time for op kind 'embedding'; known: norm$"):
        plan(read(path))


def test_errors_while_a_run_goes_on_have_the_place_of_their_key(tmp_path: Path) -> None:
    """SRAM that holds the operands of the step of one token need not hold those of a batch of them."""
    path = tmp_path / "one.yaml"
    path.write_text("model: {config: gpt2, layers: 1}\nhardware:\n  sram: 300 kB\nmapping: {tiles: 1024, heads: fused}\n")
    changes = ["workload.sequences=[{tokens: 2, count: 200}]", "workload.batching=continuous"]
    scenario = read(path, changes)
    plan(scenario)
    with pytest.raises(InputError, match=r"one\.yaml:3:9: hardware\.sram: .* new tokens instead of 200 would"):
        run(scenario)


def test_an_error_about_a_key_can_be_pickled_and_keeps_its_parts() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("mapping.tiles.a: b", "too many: 3")))
    assert (error.key, error.message, str(error)) == ("mapping.tiles.a: b", "too many: 3", "mapping.tiles.a: b: too many: 3")


def test_an_error_without_a_key_gets_one_and_one_with_a_key_keeps_it() -> None:
    with pytest.raises(ConfigError, match=r"^cost: unknown: x$"), about("cost"):
        raise InputError("unknown: x")
    with pytest.raises(ConfigError, match=r"^cost\.table: x$"), about("cost"), about("cost.table"):
        raise InputError("x")


def test_a_key_with_a_colon_is_no_two_parts() -> None:
    """A table of tiles may have any text as key, also one that looks like a key and a message."""
    scenario = from_dict({"model": {"config": "llama-3.2-1b"}, "mapping": {"tiles": {"a: b": 2}}})
    with pytest.raises(InputError, match=r"^<dict>: mapping\.tiles\.a: b: unknown weight matmul 'a: b'"):
        plan(scenario)


def test_the_config_of_a_model_is_found_from_the_folder_of_the_scenario(tmp_path, monkeypatch):
    """The shipped graph serves a config of its name."""
    (tmp_path / "llama-3.2-1b").mkdir()
    shutil.copy(CONFIGS / "llama-3.2-1b.json", tmp_path / "llama-3.2-1b" / "config.json")
    (tmp_path / "scenario.yaml").write_text("model: {config: llama-3.2-1b/config.json, layers: 1}\n")
    monkeypatch.chdir(tmp_path.parent)
    scenario = read(tmp_path / "scenario.yaml")
    assert plan(scenario).model.layers == 16
    whole = scenario.to_dict(absolute=True)
    assert whole["model"]["config"] == str(tmp_path / "llama-3.2-1b" / "config.json")
    assert plan(from_dict(whole)).model.layers == 16
    (tmp_path / "scenario.yaml").write_text("model: {config: ./config.json}\n")
    with pytest.raises(InputError, match=f"scenario.yaml:1:17: model.config: {tmp_path}/config.json: no such file"):
        plan(read(tmp_path / "scenario.yaml"))


@pytest.mark.parametrize(("keys", "notes"), [
    ({}, ["dtype bfloat16 assumed: the config names none; model.dtype says otherwise"]),
    ({"dtype": "bfloat16"}, []),
    ({"quantization_config": {"quant_method": "of its own"}, "dtype": "bfloat16"},
     ["quantization_config ('of its own') is not honored: weights as captured; mapping.formats.weights says otherwise"]),
])  # fmt: skip
def test_what_a_config_does_not_say_is_noted(tmp_path, keys, notes):
    data = {key: value for key, value in resolve("qwen3-0.6b").data.items() if key not in ("torch_dtype", "layer_types")}
    (tmp_path / "config.json").write_text(json.dumps({**data, "num_hidden_layers": 1, "max_window_layers": 1, **keys}))
    assert list(notes_of(models_of(from_dict({"model": {"config": str(tmp_path)}})))) == notes
    written = {"model": {"config": str(tmp_path), "dtype": "float16"}, "mapping": {"formats": {"weights": "int8"}}}
    assert not notes_of(models_of(from_dict(written)))


def notes_with(formats: dict[str, Any], config: str = "llama-3.2-1b", **keys: Any) -> list[str]:
    scenario = {"model": {"config": config}, "mapping": {"formats": formats}, **keys}
    return list(plan(from_dict(scenario)).notes)


def test_rows_that_are_no_whole_blocks_are_noted(tmp_path: Path) -> None:
    """Rows of 832 numbers: three blocks of 256 take 768 of them, and 26 blocks of 32 take all."""
    data = {"model_type": "llama", "hidden_size": 832, "intermediate_size": 2048, "num_hidden_layers": 2, "vocab_size": 512}
    data |= {"num_attention_heads": 13, "num_key_value_heads": 13, "dtype": "bfloat16"}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(data))
    on_cpu = {"hardware": {"preset": "raspberry-pi-5"}}
    (line,) = notes_with({"weights": "q4_K"}, str(config), **on_cpu)
    assert "rows of 832 weights are no multiple of 256, a block of q4_K" in line
    assert "llama.cpp in q5_0" in line
    assert line.startswith("q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, lm_head: ")
    assert not notes_with({"weights": "q4_0"}, str(config))
    (line,) = notes_with({"weights": "int4"}, str(config))  # groups of 128: six and a half
    assert "rows of 832 weights are no multiple of 128, a group of int4; counted without regard to rows" in line
    assert not notes_with({"weights": "int4", "group": 64}, str(config))
    assert not notes_with({"weights": "int8"}, str(config))
    assert not notes_with({"weights": {"lm_head": "q6_K"}})
    # Of 128 x 128 as in fp8 checkpoints a row has 128: 832 is six and a half, 2,048 (down_proj) are 16. Of 64 x 64 it has 13.
    (line,) = notes_with({"weights": "fp8", "group": 128 * 128, "scale": 4}, str(config))
    assert "rows of 832 weights are no multiple of 128, a group of fp8" in line
    assert not notes_with({"weights": "fp8", "group": 64 * 64, "scale": 4}, str(config))


def test_rows_of_experts_are_those_of_one_expert() -> None:
    """gpt-oss-20b: hidden size and intermediate size of 2,880 are 90 blocks of 32, and 11.25 of 256."""
    assert not notes_with({"weights": "mxfp4"}, "gpt-oss-20b")
    (line,) = notes_with({"weights": {"experts": "q6_K"}}, "gpt-oss-20b")
    assert "rows of 2,880 weights" in line
    assert "q8_0" in line


def test_runs_of_one_graph_share_the_ops_that_hold_its_weights():
    """Making them anew for 80 layers on eight devices took as long as the event loop."""
    one, other = (
        models_of(read(scenarios()["llama_1b_context_256"], [*BLOCK, f"hardware.engines.count={n}"]))[0] for n in (1, 2)
    )
    assert one.kept is other.kept
    assert [op.inputs for op in one.kept.ops] == [()] * len(one.ops)
