"""Requests that a model cannot serve are errors with their key."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sim.base.errors import InputError
from sim.cli import cli
from sim.runs.run import run
from sim.scenario import from_dict


def scenario(config, **sections):
    small = {"layers": 1}
    return from_dict({"model": {"config": config, **small}, "hardware": {"preset": "a100-80g-sxm"}, **sections})


def error_of(*arguments, **sections):
    with pytest.raises(InputError) as caught:
        run(scenario(*arguments, **sections))
    return str(caught.value)


@pytest.mark.parametrize(("config", "positions"), [("gpt2", 1024), ("opt-1.3b", 2048)])
def test_a_sequence_beyond_the_learned_positions(config, positions):
    a100 = {"preset": "a100-80g-sxm", "engines": {"flops": "100 TFLOP/s"}}
    last = {"sequences": [{"context": positions - 2, "tokens": 2}]}  # at positions P - 2 and P - 1, from 0
    run(scenario(config, workload=last, hardware=a100))
    message = error_of(config, workload={"sequences": [{}, {"context": positions - 2, "tokens": 3}]})
    assert message.endswith(
        f"workload: sequence 1: expected at most {positions} tokens in all, the positions that {config} has learned, "
        f"found {positions + 1}"
    )


def test_a_capture_beyond_the_learned_positions():
    done = CliRunner().invoke(cli, ["capture", "gpt2", "--context", "1024"])
    assert "expected at most 1024 tokens in all" in str(done.exception or done.output)
    assert CliRunner().invoke(cli, ["capture", "gpt2", "--context", "1023"]).exit_code == 0


def test_the_form_of_latents_that_a_model_does_not_have():
    message = error_of("llama-3.2-1b", mapping={"mla": "expanded"})
    assert message.endswith("mapping.mla: expected only for multi-head latent attention, which llama-3.2-1b does not have")


@pytest.mark.parametrize(("form", "per_token"), [("latent", 576), ("expanded", 16 * 320)])
def test_a_run_reads_the_cache_that_its_mapping_says(form, per_token):
    read = [
        run(scenario("deepseek-v2-lite", mapping={"mla": form}, workload={"sequences": [{"context": n}]})).metrics.bytes_read
        for n in (1000, 3000)
    ]
    assert read[1] - read[0] == 2000 * per_token * 2  # of one layer, in bfloat16
