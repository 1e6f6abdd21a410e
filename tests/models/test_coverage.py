"""The table of model types: a sample is captured again, and says the same."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from model_families import captured

from models.coverage import TABLE, facts, rows, small, types, written, wrong_experts
from models.coverage import row as row_of
from models.library import load

FAST = ("llama", "gpt2", "qwen3_moe")
SLOW = (
    "deepseek_v32", "dots3_note_text", "falcon_h1", "gemma2", "gpt_oss", "longcat_flash", "mamba2", "qwen3_next",
    "recurrent_gemma", "xlstm", "zaya",
)  # fmt: skip


@pytest.mark.parametrize("model_type", [*FAST, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_type_says_what_the_table_says(model_type):
    if not rows():
        pytest.skip(f"the table is of other transformers than {version('transformers')}")
    made = row_of(model_type)
    assert (made.result, made.facts) == (rows()[model_type].result, rows()[model_type].facts)


def test_the_table_has_every_type_and_counts_them():
    if not rows():
        pytest.skip(f"the table is of other transformers than {version('transformers')}")
    assert set(rows()) == set(types())
    assert written(rows()) == TABLE.read_text(encoding="utf-8")
    refused = {name for name, line in rows().items() if line.result not in ("captured", "encoder-decoder")}
    assert all(rows()[name].facts for name in refused), "each has a reason"
    assert "wrong experts" not in {line.result for line in rows().values()}


def test_small_configs_have_a_layer_of_each_kind():
    assert small("gemma2").data["layer_types"][:2] == ["sliding_attention", "full_attention"]
    assert small("qwen3_next").data["layer_types"] == ["linear_attention"] * 3 + ["full_attention"]
    assert small("llama").data["num_hidden_layers"] == 4


def test_other_experts_than_those_of_the_config_are_seen():
    dense, mixture = captured("llama")["op"], captured("mixtral")["op"]
    assert wrong_experts({"num_experts": 8}, dense) == wrong_experts({"num_experts": 8}, mixture) == "wrong experts"
    assert wrong_experts({"num_experts": 1}, dense) == wrong_experts({}, dense) == ""
    assert wrong_experts({"num_experts": 8, "is_moe": False}, dense) == ""
    assert wrong_experts({"num_local_experts": 4}, mixture) == ""


def test_facts_of_a_step():
    assert facts(load("llama-4-scout")) == "KV, chunk 8192, 1 of 16 experts"
    assert facts(load("gpt-oss-20b")) == "KV, window 128, 4 of 32 experts"
    assert facts(load("glm-5")) == "latent KV, choice of 2048, 8 of 256 experts"
    flash = "KV, window 128, choice of 512 rows, a row for 4 or 128 tokens, 6 of 256 experts"
    assert facts(load("deepseek-v4-flash")) == flash
    assert facts(load("granite-4.0-h-small")) == "KV, state, 10 of 72 experts"
