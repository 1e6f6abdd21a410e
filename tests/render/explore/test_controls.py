"""Controls of scenarios, and the runs that they ask for."""

from __future__ import annotations

import base64
import gzip
import shlex
from pathlib import Path
from typing import Any

import pytest

from sim.base.errors import InputError
from sim.render.explore import Session, SupersededError
from sim.render.explore.controls import Control, controls
from sim.render.summary import summary
from sim.runs.plan import plan
from sim.runs.run import changed, read, run
from sim.scenario import Scenario, from_dict, parse
from sim.scenario.shipped import scenarios
from tests.tools.command import call

SMALL = {"model": {"graph": [{"name": "a", "flops": 1000}, {"name": "b", "flops": 1000, "inputs": ["a"]}]}}


def of(scenario: Scenario) -> dict[str, Control]:
    return {each.key: each for each in controls(scenario, plan(scenario))}


def written(control: Control, value: str) -> list[str]:
    return [each.replace("{value}", value) for each in control.data()["assignments"]]


@pytest.mark.parametrize(
    "name", ["two_tokens_4_engines", "batching_continuous", "h100_llama_8b_tensor_parallel_8", "kv_full_swap"]
)
def test_what_is_given_is_a_stop_and_changes_nothing(name: str) -> None:
    _unchanged(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(scenarios()))
def test_what_any_scenario_gives_is_a_stop_and_changes_nothing(name: str) -> None:
    _unchanged(name)


def _unchanged(name: str) -> None:
    scenario = read(scenarios()[name])
    found = of(scenario)
    assert {"hardware.sram", "hardware.memory.arbiter", "mapping.execution"} <= found.keys()
    for control in found.values():
        assert control.given in control.stops
        assert len(set(control.stops)) == len(control.stops)
        assert changed(scenario, written(control, control.given)) == scenario, control.key


def test_controls_are_those_that_matter() -> None:
    """Durations of a table depend on no rate; a batch has a size, and a device of one engine no number of engines."""
    table, batch = of(read(scenarios()["two_tokens_4_engines"])), of(read(scenarios()["batching_continuous"]))
    assert "hardware.memory.bandwidth" not in table
    assert "hardware.engines.count" in table
    assert "hardware.engines.count" not in batch
    assert {"hardware.memory.bandwidth", "workload.batching.max_batch", "workload.generate.count"} <= batch.keys()
    assert "mapping.softmax" not in of(from_dict(SMALL))
    measured = read(scenarios()["h100_llama_1b_graphs"], ["model.layers=1"])
    assert "hardware.memory.bandwidth" not in of(measured)
    assert run(changed(measured, ["hardware.memory.bandwidth=1 GB/s"])).makespan == run(measured).makespan


def test_devices_with_experts_and_the_host_have_controls_whose_stops_run() -> None:
    """Experts are dealt out to all devices, so both change together; offloaded weights stay streamed."""
    dealt = read(scenarios()["h100_mixtral_experts_dealt"], ["model.layers=1"])
    count = of(dealt)["hardware.devices.count"]
    for stop in ("1", "2", "8"):
        parallel = changed(dealt, written(count, stop)).mapping.parallel
        assert (parallel.tensor, parallel.expert) == (int(stop), int(stop))
    exchanged = read(scenarios()["h100_mixtral_experts_all_to_all"], ["model.layers=1"])
    count = of(exchanged)["hardware.devices.count"]
    assert count.stops[0] == "2"  # one device has no others that it could send tokens to
    assert changed(exchanged, written(count, "2")).mapping.parallel.exchange
    offload = of(read(scenarios()["offload_experts"]))
    assert "mapping.weights" not in offload
    assert offload["hardware.host.link.bandwidth"].given in offload["hardware.host.link.bandwidth"].stops
    tiers = read(scenarios()["conversations_tiers"])
    ssd = of(tiers)["hardware.tiers[0].link.bandwidth"]
    assert (ssd.title, ssd.given in ssd.stops) == ("ssd link", True)
    assert changed(tiers, written(ssd, ssd.given)) == tiers
    assert changed(tiers, written(ssd, ssd.stops[0])).hardware.tiers[0].rate < tiers.hardware.tiers[0].rate


def test_stops_are_round_and_around_the_value() -> None:
    stops = of(from_dict({**SMALL, "hardware": {"memory": {"bandwidth": "90 GB/s"}}}))["hardware.memory.bandwidth"].stops
    assert stops[0] == "6 GB/s"  # at least a 16th of 90
    assert stops[-1] == "1.25 TB/s"
    assert [each for each in stops if each in ("80 GB/s", "90 GB/s", "100 GB/s", "110 GB/s")] == [
        "80 GB/s",
        "90 GB/s",
        "100 GB/s",
    ]


def test_sequences_that_are_not_written_can_be_changed() -> None:
    scenario = from_dict({"model": {"config": "llama-3.2-1b", "layers": 1}, "workload": {"dependency": "known"}})
    tokens = of(scenario)["workload.sequences.0.tokens"]
    assert changed(scenario, written(tokens, "3")).workload.sequences[0].tokens == 3  # type: ignore[index]


def test_a_view_is_the_run_so_changed(tmp_path: Path) -> None:
    session = Session(read(scenarios()["two_tokens_4_engines"]), "two_tokens_4_engines", ["seed=3"])
    view = session.view(["hardware.engines.count=2"])
    expected = summary(run(read(scenarios()["two_tokens_4_engines"], ["hardware.engines.count=2"])), timing=False, causes=False)
    assert view["summary"] == expected
    assert view["executor"] == "compiled"
    assert view["facts"]["tasks"] == 352
    assert sum(rows * planes for _, rows, planes in view["facts"]["layout"]) == len(
        gzip.decompress(base64.b64decode(view["columns"]))
    )
    words = shlex.split(view["command"])
    assert words == ["sim", "run", "two_tokens_4_engines", "--set", "seed=3", "--set", "hardware.engines.count=2"]
    assert call([*words[1:], "--json", "--no-trace"]).status == 0


def test_the_yaml_is_the_scenario_so_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = read(scenarios()["h100_llama_8b_graphs" if "h100_llama_8b_graphs" in scenarios() else "h100_llama_1b_graphs"])
    assignments = ["workload.sequences.0.tokens=3"]
    text = Session(scenario, "x").yaml(assignments)
    (tmp_path / "copied.yaml").write_text(text)
    again = parse(text, str(tmp_path / "copied.yaml"))
    assert run(again).log.tasks.end.tolist() == run(changed(scenario, assignments)).log.tasks.end.tolist()


def test_bad_values_and_large_runs_are_errors() -> None:
    session = Session(from_dict(SMALL), "small.yaml")
    with pytest.raises(InputError, match=r"hardware\.engines\.count: expected a whole number from 1 to 4096, found 'x'"):
        session.view(["hardware.engines.count=x"])
    with pytest.raises(InputError, match=r"2,000,002 tasks: expected at most 2,000,000 .* `sim run small\.yaml --set "):
        session.view(["workload.sequences=[{tokens: 1000001}]"])
    with pytest.raises(InputError, match="record: expected all for a live page, found steps"):
        session.view(["record=steps"])


def test_only_the_latest_change_is_simulated() -> None:
    session = Session(from_dict(SMALL), "small.yaml")
    session.view(page="a", number=2)
    with pytest.raises(SupersededError):
        session.view(page="a", number=1)
    session.view(page="b", number=1)  # of another page

    def newer(*_: Any) -> None:
        session._latest["a"] = 4

    with pytest.raises(SupersededError):  # one comes while it runs
        session.view(["workload.sequences=[{tokens: 50000}]"], page="a", number=3, on_progress=newer)
