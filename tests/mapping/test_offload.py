"""Weights in the memory of the host: bytes and times by hand, capacity, and both executors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sim
from sim.analysis.parts import PARTS
from sim.base.errors import InputError
from sim.base.units import PS_PER_S, ceil_div
from sim.cli import main
from sim.executors import compiled, reference
from sim.runs.plan import plan
from sim.runs.run import read
from sim.scenario import from_dict
from tests.executors import assert_same

MLP = 3 * 2048 * 8192 * 2  # bytes of gate, up and down of a layer of Llama 3.2 1B
EXPERT = 3 * 2048 * 768 * 2  # of Qwen3 30B A3B: 8 of 128 for each token
HOST = {"link": {"bandwidth": "25 GB/s", "latency": "7 us"}}


def scenario(offload: dict[str, Any] | None, *, model: str = "llama-3.2-1b", **changed: Any) -> sim.Scenario:
    data: dict[str, Any] = {
        "model": {"config": model, "layers": 4, "scope": "block"},
        "hardware": {"engines": {"count": 1}, "memory": {"bandwidth": "1 TB/s"}, "host": HOST},
        "workload": {"sequences": [{"context": 64, "tokens": 2}]},
        "mapping": {"heads": "fused", **({} if offload is None else {"offload": offload})},
    }
    for section, keys in changed.items():
        data[section] = data[section] | keys
    return from_dict(data)


@pytest.mark.parametrize("execution", ["prefetch", "stream", "blocking"])
def test_every_step_loads_them_over_the_link(execution: str) -> None:
    """The link is busy all along; what is loaded there is not read from the memory."""
    of_mlp, mapping = {"weights": ["gate_proj", "up_proj", "down_proj"]}, {"execution": execution}
    hosted, alone = sim.run(scenario(of_mlp, mapping=mapping)), sim.run(scenario(None, mapping=mapping))
    assert hosted.metrics.bytes_host == 2 * 4 * MLP
    assert alone.metrics.bytes_read - hosted.metrics.bytes_read == 2 * 4 * MLP
    time = 2 * 4 * 3 * ceil_div(MLP // 3 * PS_PER_S, 25 * 10**9)
    assert hosted.bounds.link == hosted.metrics.delivered[-1] == time
    assert time < hosted.makespan < time + 2 * 7_000_000 + alone.makespan
    everything = sim.run(scenario({"weights": "all"}, mapping=mapping))
    assert everything.metrics.bytes_host == 2 * 4 * (MLP + 2 * 2048 * (2048 + 512 + 512 + 2048) + 2 * 2 * 2048)
    along = dict(zip(PARTS, hosted.breakdown.tokens.sum(axis=0).tolist(), strict=True))
    assert along["link"] + along["wait_link"] > 0.95 * time


def test_the_first_layers_alone() -> None:
    offload = {"weights": "all", "layers": 3}
    graph = plan(scenario(offload)).setup.graph
    loads = graph.kind == graph.kinds.index("host_load")
    assert set(graph.layer[loads].tolist()) == {0, 1, 2}
    assert loads.sum() == 3 * 9


def test_experts_are_loaded_when_tokens_have_chosen() -> None:
    result = sim.run(scenario({"weights": "experts"}, model="qwen3-30b-a3b"))
    assert result.metrics.bytes_host == 2 * 4 * 8 * EXPERT
    (graph,), tasks = result.log.graphs, result.log.tasks
    kind = np.array(graph.kinds)[graph.kind]
    for layer in range(4):
        of_layer = graph.layer == layer
        router = np.flatnonzero(of_layer & (kind == "router"))[0]
        loads = np.flatnonzero(of_layer & (kind == "host_load"))
        assert (tasks.start[loads] >= tasks.end[router]).all()


@pytest.mark.parametrize("execution", ["prefetch", "stream", "blocking"])
@pytest.mark.parametrize("model", ["llama-3.2-1b", "qwen3-30b-a3b"])
def test_executors_agree_with_little_sram(execution: str, model: str) -> None:
    for sram in (None, "120 MB" if model == "llama-3.2-1b" else "500 MB"):
        offload = {"weights": "all" if model == "llama-3.2-1b" else "experts"}
        mapping = {"heads": "fused", "offload": offload, "execution": execution, "tiles": 2}
        workload = {"sequences": [{"prompt": 5, "tokens": 3, "count": 2}], "batching": "continuous"}
        data = scenario(offload, model=model, mapping=mapping, workload=workload).to_dict()
        data["hardware"]["sram"] = sram
        setup = plan(from_dict(data)).setup
        assert_same(reference.simulate(setup), compiled.simulate(setup))
        assert sim.run(from_dict(data), executor="simpy").makespan  # whose checks hold


def test_memory_holds_what_is_left(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    """Weights of 16 GB in bf16: a memory of 8 GB holds those that are not offloaded, and that of the host the rest."""
    path = tmp_path / "offload.yaml"
    path.write_text(
        "model: {config: llama-3.1-8b}\nworkload: {sequences: [{context: 100}]}\n"
        "hardware: {memory: {capacity: 8 GB}, host: {memory: 12 GB, link: {bandwidth: 25 GB/s}}}\n"
        "mapping: {offload: {weights: [gate_proj, up_proj, down_proj]}}\n"
    )
    held = {(memory, what): size for memory, what, size in plan(read(path, [])).held}
    mlp = 32 * 3 * 4096 * 14336 * 2
    kept = 101 * 2 * 32 * 8 * 128 * 2  # keys and values of a step at context 100
    assert held == {("memory", "weights"): 2 * 8_030_261_248 - mlp, ("memory", "KV cache"): kept, ("host", "weights"): mlp}
    with pytest.raises(SystemExit, match="0"):
        main(["check", str(path)])
    assert "host: weights 11.274 GB" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"11\.274 GB of weights are 274\.289 MB more than the 11\.000 GB of the host"):
        plan(read(path, ["hardware.host.memory=11 GB"]))


@pytest.mark.parametrize("parallel", [{"tensor": 4}, {"tensor": 4, "fold": False}, {"tensor": 2, "pipeline": 2}])
def test_one_host_holds_what_all_devices_offload(parallel: dict[str, Any]) -> None:
    """Four devices share the matrices of all layers, whichever of them are simulated."""
    offload = {"weights": ["gate_proj", "up_proj", "down_proj"]}

    def with_host(memory: str) -> sim.Scenario:
        hardware = {"devices": {"count": 4, "link": {"bandwidth": "1 GB/s"}}, "host": {**HOST, "memory": memory}}
        return scenario(offload, hardware=hardware, mapping={"offload": offload, "parallel": parallel})

    held = {(memory, what): size for memory, what, size in plan(with_host(f"{4 * MLP} B")).held}
    assert held["host", "weights"] == 4 * MLP
    assert (("memory", "weights") in held) == (parallel == {"tensor": 4})  # else each device has a line of its own
    with pytest.raises(InputError, match=r"hardware\.host\.memory: .* of weights are 1 B more than"):
        plan(with_host(f"{4 * MLP - 1} B"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mapping": {"offload": {"weights": ["gate"]}}}, "mapping.offload.weights: unknown kind of op with weights 'gate'"),
        ({"mapping": {"offload": {"weights": "experts"}}}, "mapping.offload.weights: expected all, or kinds of ops"),
        ({"hardware": {"host": None}}, "mapping.offload: expected hardware.host"),
        ({"cost": {"model": "fixed"}}, "cost.model: expected roofline or kernel with mapping.offload"),
        ({"mapping": {"offload": {"weights": "all"}, "weights": "resident"}}, "expected 'offload' only with weights that are"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    data = scenario({"weights": "all"}).to_dict()
    for section, keys in change.items():
        data[section] = {**data.get(section, {}), **keys}
    with pytest.raises(InputError, match=message):
        sim.run(data)
