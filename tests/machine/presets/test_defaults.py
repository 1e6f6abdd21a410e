"""Defaults that a preset brings: which settings, and that written keys win."""

from __future__ import annotations

from typing import Any

import pytest

import models.library
from sim.base.errors import InputError
from sim.machine.presets import PRESETS, find
from sim.runs.plan import plan
from sim.runs.run import known_names, run
from sim.scenario import Scenario, from_dict, override

GPU = {"softmax": "online", "heads": "fused", "kv": "operands", "attention": "batch", "execution": "stream"}


def scenario(preset: str, **others: Any) -> Scenario:
    hardware = {"preset": preset, **others.pop("hardware", {})}
    return from_dict({"model": {"config": "llama-3.2-1b"}, "hardware": hardware, **others}, known=known_names())


def test_a_gpu_is_one_engine_that_runs_fused_kernels() -> None:
    made = scenario("h100-sxm")
    assert {key: getattr(made.mapping, key) for key in GPU} == GPU
    assert (made.mapping.fuse.qkv, made.mapping.fuse.gate_up, made.cost.model) == (True, True, "kernel")
    assert (made.hardware.engines.count, made.hardware.engines.peak("bfloat16")) == (1, 989 * 10**12)
    assert made.hardware.memory.efficiency == {"1": 0.886}
    launches = {"matmul": 3_600_000, "attention": 12_000_000, "other": 1_500_000, "residual": 0, "prompt": 9_700_000}
    assert made.cost.t0 == launches


def test_the_cores_of_a_cpu_together_are_one_engine() -> None:
    """Four cores of the Pi read 11.59 of 17.07 GB/s together, one alone 9.26."""
    made = scenario("raspberry-pi-5")
    assert (made.mapping.softmax, made.mapping.fuse.qkv, made.hardware.engines.count) == ("fused", False, 1)
    assert made.hardware.memory.efficiency == {"1": 0.679}
    cores = scenario("raspberry-pi-5", hardware={"engines": {"count": 4}}).hardware.memory.efficiency
    assert cores == {"1": 0.5425, "2": 0.775, "4": 0.679}


def test_each_written_key_wins_and_is_not_said_to_be_of_the_preset() -> None:
    written = {"mapping": {"softmax": "fused", "fuse": {"qkv": False}}, "cost": {"model": "kernel", "t0": {"matmul": "9 us"}}}
    made = scenario("h100-sxm", **written, hardware={"memory": {"achievable": False}})
    assert (made.mapping.softmax, made.mapping.fuse.qkv, made.mapping.fuse.gate_up) == ("fused", False, True)
    assert made.hardware.memory.efficiency is None
    assert isinstance(made.cost.t0, dict)
    assert (made.cost.t0["matmul"], made.cost.t0["attention"]) == (9_000_000, 12_000_000)
    assert "mapping.fuse.gate_up: true" in made.from_preset
    said = {line.partition(":")[0] for line in made.from_preset}
    assert not said & {"mapping.softmax", "mapping.fuse.qkv", "cost", "hardware.memory.achievable"}


def test_constants_alone_are_those_of_the_cost_model_of_the_preset() -> None:
    made = scenario("h100-sxm", cost={"t0": {"matmul": "1 us"}})
    assert made == scenario("h100-sxm", cost={"model": "kernel", "t0": {"matmul": "1 us"}})
    assert override(scenario("h100-sxm"), ["cost.t0.prompt=0 us"]).cost.t0["prompt"] == 0  # type: ignore[index]
    with pytest.raises(InputError, match="cost: the key 'model' is missing"):
        scenario("h100-sxm", cost={"t0": {"matmul": "1 us"}, "jitter": 0.1})


def test_other_costs_bring_no_constants_and_the_peak() -> None:
    made = scenario("h100-sxm", cost="roofline")
    assert (made.cost.t0, made.hardware.memory.efficiency) == (None, None)


@pytest.mark.parametrize(
    ("mapping", "kept"),
    [
        ({"execution": "prefetch"}, {"kv": "transfers", "softmax": "online"}),
        ({"kv_loads": "head"}, {"kv": "transfers", "execution": "stream"}),
        ({"granularity": "aten"}, {"softmax": "three_pass", "attention": "sequence", "heads": "fused"}),
    ],
)
def test_a_written_key_excludes_defaults_that_contradict_it(mapping: dict[str, str], kept: dict[str, str]) -> None:
    made = scenario("h100-sxm", mapping=mapping).mapping
    assert {key: getattr(made, key) for key in kept} == kept


def test_a_written_graph_is_taken_as_it_is_written() -> None:
    graph = {"model": {"graph": [{"name": "a", "flops": 10**9}]}, "hardware": {"preset": "h100-sxm"}}
    assert run(from_dict(graph, known=known_names())).makespan > 0


def test_one_of_several_multiprocessors_cannot_draw_it_all() -> None:
    ports = [scenario("h100-sxm", hardware={"engines": {"count": n}}).hardware.memory.port_bandwidth for n in (1, 132)]
    assert ports == [None, 84 * 10**9]
    assert scenario("h100-sxm").hardware.memory.port_bandwidth is None


def test_written_out_and_overridden_it_stays_complete() -> None:
    made = scenario("h100-sxm")
    assert from_dict(made.to_dict()) == made
    assert override(made, ["hardware.preset=raspberry-pi-5"]).mapping.softmax == "fused"


@pytest.mark.parametrize("model", models.library.names())
def test_every_model_runs_with_them(model: str) -> None:
    small = {"model": {"config": model, "layers": 1}, "hardware": {"preset": "b200", "memory": {"capacity": None}}}
    assert len(plan(from_dict(small, known=known_names())).setup.graph)


def test_all_but_the_generic_machine_have_costs_of_kernels() -> None:
    assert [name for name in PRESETS.names() if find(name).kernel is None] == ["generic-npu"]


def test_an_unknown_set_of_defaults_is_an_error(tmp_path: Any) -> None:
    text = PRESETS.get("l4").read_text().replace("defaults: gpu", "defaults: gpus")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=r"defaults: expected one of cpu, gpu, found 'gpus'"):
        find("mine.yaml", tmp_path)
