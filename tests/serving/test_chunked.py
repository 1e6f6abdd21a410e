"""Chunked attention in runs: bytes by hand, with both executors."""

import json
from pathlib import Path
from typing import Any

import pytest

from sim.analysis.moved import moved_by_kind
from sim.executors import compiled, reference
from sim.runs.plan import plan
from sim.scenario import from_dict
from tests.executors import assert_same

C = 6
ROW = 2 * 2 * 8 * 4  # keys and values of two heads of 8 in float32
CONFIG = {
    "model_type": "llama4_text", "dtype": "float32", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48,
    "intermediate_size_mlp": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_local_experts": 4, "num_experts_per_tok": 1, "attention_chunk_size": C, "no_rope_layer_interval": 2,
    "interleave_moe_layer_step": 1, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chunked") / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def setup(path: Path, workload: dict[str, Any], **mapping: Any) -> Any:
    hardware = {"engines": {"count": 2, "flops": "1 TFLOP/s"}, "memory": {"bandwidth": "10 GB/s"}}
    model = {"config": str(path)}
    return plan(from_dict({"model": model, "hardware": hardware, "workload": workload, "mapping": mapping})).setup


@pytest.mark.parametrize("softmax", ["three_pass", "online"])
def test_each_token_loads_those_of_its_chunk(folder: Path, softmax: str) -> None:
    """The first layer has chunks of 6 tokens; the second sees all."""
    begin, tokens = 9, 12
    made = setup(folder, {"sequences": [{"context": begin, "tokens": tokens}]}, softmax=softmax)
    log = reference.simulate(made)
    contexts = range(begin, begin + tokens)
    assert moved_by_kind(log)["kv_load"][0] == ROW * sum(N % C + N for N in contexts)
    assert_same(log, compiled.simulate(made))


@pytest.mark.parametrize("attention", ["sequence", "batch"])
def test_executors_agree_on_batches_with_prompts(folder: Path, attention: str) -> None:
    requests = [{"prompt": 4, "tokens": 12}, {"prompt": 9, "tokens": 5, "count": 2}]
    made = setup(
        folder, {"sequences": requests, "batching": {"policy": "continuous", "kv": {"block": 4}}},
        softmax="online", attention=attention, heads="fused",
    )  # fmt: skip
    assert_same(reference.simulate(made), compiled.simulate(made))
