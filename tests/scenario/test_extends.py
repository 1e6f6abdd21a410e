"""`extends`: a scenario has the keys of its base, except where it writes its own."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from sim.base.errors import InputError
from sim.runs.run import read, run
from sim.scenario import json_schema

BASE = """\
description: the base
model: {config: llama-3.2-1b, layers: 1, scope: block}
workload: {sequences: [{context: 4, tokens: 2}], dependency: known}
hardware:
  engines: {count: 4}
  memory: {bandwidth: 80 GB/s, latency: 1 us}
mapping: {heads: split, weights: resident, execution: blocking}
cost: {model: fixed, table: block_estimates}
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_mappings_are_joined_key_by_key_and_the_rest_is_replaced(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", BASE)
    path = written(
        tmp_path, "mine.yaml", "extends: base.yaml\nhardware: {memory: {bandwidth: 20 GB/s}}\nworkload: {sequences: [{}]}\n"
    )
    scenario = read(path)
    assert (scenario.name, scenario.description) == ("mine", "")  # the base describes itself
    assert (scenario.hardware.engines.count, scenario.hardware.memory.latency) == (4, 10**6)
    assert scenario.hardware.memory.bandwidth == 20 * 10**9
    assert scenario.workload.dependency == "known"
    assert scenario.workload.sequences is not None
    assert scenario.workload.sequences[0].context == 0  # a list is a value: nothing of the base's is left in it


def test_a_run_is_that_of_the_same_keys_in_one_file(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", BASE)
    path = written(tmp_path, "mine.yaml", "extends: base.yaml\nhardware: {engines: {count: 2}}\n")
    whole = written(tmp_path, "whole.yaml", BASE.replace("count: 4", "count: 2"))
    assert run(path).makespan == run(whole).makespan != run(tmp_path / "base.yaml").makespan


def test_errors_name_the_file_that_has_the_key(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", BASE.replace("80 GB/s", "80"))
    path = written(tmp_path, "mine.yaml", "extends: base.yaml\n")
    with pytest.raises(InputError, match=r"base\.yaml:6:23: hardware\.memory\.bandwidth: expected a bandwidth"):
        read(path)


def test_paths_of_the_base_are_relative_to_the_base(tmp_path: Path) -> None:
    requests = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00.000,5,2\n"
    written(tmp_path / "data", "three.csv", requests)
    base = BASE.replace("sequences: [{context: 4, tokens: 2}], dependency: known", "trace: three.csv, batching: continuous")
    base = base.replace("cost: {model: fixed, table: block_estimates}", "cost: roofline")
    written(tmp_path / "data", "base.yaml", base.replace("engines: {count: 4}", "engines: {count: 4, flops: 1 TFLOP/s}"))
    path = written(tmp_path / "mine", "mine.yaml", "extends: ../data/base.yaml\n")
    assert len(run(path).requests) == 1


def test_a_shipped_scenario_is_a_base(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.yaml", "extends: two_tokens_4_engines\nhardware: {engines: {count: 8}}\n")
    assert run(path).makespan == run("scenarios/two_tokens_8_engines.yaml").makespan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: mine.yaml\n", r"mine\.yaml:1:10: extends: .*mine\.yaml extends itself"),
        ("extends: other.yaml\n", r"extends: .*extends itself"),
        ("extends: two_tokens_5_engines\n", r"did you mean 'two_tokens_[48]_engines'"),
        ("extends: 3\n", r"mine\.yaml:1:10: extends: expected the path"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_at_its_key(tmp_path: Path, text: str, message: str) -> None:
    written(tmp_path, "other.yaml", "extends: mine.yaml\n")
    with pytest.raises(InputError, match=message):
        read(written(tmp_path, "mine.yaml", text))


def test_assignments_apply_to_the_keys_of_the_base(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", BASE)
    written(tmp_path, "other.yaml", BASE.replace("context: 4, tokens: 2", "context: 7, tokens: 5"))
    path = written(tmp_path, "mine.yaml", "extends: base.yaml\n")

    def group(*assignments: str) -> tuple[int, int]:
        [found] = read(path, list(assignments)).workload.sequences or []
        return found.context, found.tokens

    assert group("workload.sequences.0.tokens=3") == (4, 3)
    assert group("workload.sequences[0].tokens=3", "extends=other.yaml") == (7, 3)
    assert group("extends=other.yaml") == (7, 5)
    assert group("workload={sequences: [{}]}") == (0, 1)  # a section is replaced, as that of a scenario without a base


def test_the_schema_takes_a_scenario_without_a_model_that_extends_another() -> None:
    schema = jsonschema.Draft202012Validator(json_schema())
    assert schema.is_valid({"extends": "two_tokens_4_engines"})
    assert schema.is_valid({"model": {"config": "llama-3.2-1b"}})
    assert not schema.is_valid({"seed": 1})
