"""The link to the host: caches that are swapped move over it, in times by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sim
from sim.analysis.parts import PARTS
from sim.base.units import PS_PER_S, ceil_div
from sim.executors import compiled, reference
from sim.render.page.timeline import timeline
from sim.render.summary import summary
from sim.runs.plan import plan
from sim.runs.what_if import what_if
from sim.scenario import from_dict
from tests.executors import assert_same, assert_saved

LAYER = 2048  # bytes of the KV cache of a token in a layer of Llama 3.2 1B
LAYERS, LATENCY = 2, 7_000_000
HOST = {"link": {"bandwidth": "54 GB/s", "latency": "7 us"}}


def scenario(host: dict[str, Any] | None = None, **changed: Any) -> sim.Scenario:
    """Three requests of 60 tokens and 25 more, of whose caches two fit; all wait for moves."""
    hardware = {"engines": {"count": 1}, "memory": {"bandwidth": "3 TB/s"}, **({"host": host} if host else {})}
    return from_dict({
        "model": {"config": "llama-3.2-1b", "layers": LAYERS, "scope": "block"},
        "hardware": hardware,
        "workload": {
            "sequences": [{"prompt": 60, "tokens": 25, "count": 3}],
            "batching": {"policy": "continuous", "kv": {"capacity": "0.85 MB", "full": "swap", "moves": "between"}},
        },
        "mapping": {"heads": "fused"},
    } | changed)  # fmt: skip


def swaps(result: sim.Result) -> tuple[list[int], list[int]]:
    """Time of each step that swaps, and the tokens that it moves."""
    members, steps = result.log.members, result.log.steps
    of_swap = np.flatnonzero(members.query == 0)
    step = members.step[of_swap]
    return (steps.end[step] - steps.released[step]).tolist(), members.context[of_swap].tolist()


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
def test_a_swap_takes_its_bytes_over_the_rate_of_the_link(executor: Any) -> None:
    """The latency of the link, then the cache of each layer: PCIe is 56 times slower than this memory."""
    result = sim.run(scenario(HOST), executor=executor)
    times, tokens = swaps(result)
    assert len(times) >= 2
    assert times == [LATENCY + LAYERS * ceil_div(LAYER * count * PS_PER_S, 54 * 10**9) for count in tokens]
    moved = LAYERS * LAYER * sum(tokens)
    assert result.metrics.bytes_host == moved
    along = dict(zip(PARTS, result.breakdown.tokens.sum(axis=0).tolist(), strict=True))
    assert along["link"] + along["wait_link"] == sum(times)
    assert result.bounds.link == result.metrics.delivered[-1] == sum(times) - LATENCY * len(times)
    assert summary(result, timing=False)["links"]["bytes_host"] == moved


def test_without_a_host_it_takes_them_at_the_memory() -> None:
    result = sim.run(scenario())
    times, tokens = swaps(result)
    assert times == [LAYERS * ceil_div(LAYER * count * PS_PER_S, 3 * 10**12) for count in tokens]
    assert result.log.machine.links == ()
    assert result.metrics.bytes_host == 0


def test_memory_and_host_share_all_bytes() -> None:
    """Bytes over the link do not go through the memory, nor do they take the energy of its bytes."""
    energy = {"flop": "1 pJ/FLOP", "byte": "80 pJ/B"}
    alone, hosted = sim.run(scenario()), sim.run(scenario(HOST))
    through = [result.metrics.bytes_read + result.metrics.bytes_written for result in (alone, hosted)]
    assert through[0] - through[1] == hosted.metrics.bytes_host > 0
    data = scenario(HOST).to_dict()
    data["hardware"]["energy"] = energy
    result = sim.run(from_dict(data))
    assert result.energy is not None
    assert result.energy.memory == 80_000 * through[1]


@pytest.mark.parametrize("arbiter", ["fifo", "processor_sharing", {"name": "round_robin", "burst": "4 KiB"}, "priority"])
def test_executors_agree_beside_links_between_devices(arbiter: Any) -> None:
    """Two devices and a host: the link between devices has the number before that to the host."""
    link = {"bandwidth": "450 GB/s", "latency": "1 us"}
    host = {"link": {"bandwidth": "10 GB/s", "latency": "3 us", "arbiter": arbiter}}
    data = scenario(host, mapping={"heads": "fused", "parallel": {"tensor": 2}}).to_dict()
    data["hardware"] |= {"devices": {"count": 2, "link": link}, "memory": {"bandwidth": "100 GB/s", "channels": {"count": 2}}}
    data["workload"]["batching"]["kv"]["capacity"] = "0.42 MB"
    setup = plan(from_dict(data)).setup
    log = reference.simulate(setup)
    assert_same(log, compiled.simulate(setup))
    assert [channel.name for channel in log.machine.channels] == ["channel 0", "channel 1", "link", "host link"]
    graphs = [log.graphs[number] for number in log.steps.graph.tolist()]
    kinds = np.array([graph.kind_of(task) for graph in graphs for task in range(len(graph))])
    of_host = set(kinds[log.services.task[log.services.channel == 3]].tolist())
    assert of_host == {"kv_swap_out", "kv_swap_in"}
    assert set(kinds[log.services.task[log.services.channel == 2]].tolist()) == {"all_reduce_send"}


def test_a_page_a_log_and_what_if_know_it(tmp_path: Any) -> None:
    result = sim.run(scenario(HOST))
    facts, columns, _ = timeline(result)
    assert facts["channel_names"][-1] == "host link"
    assert set(columns["channel"].tolist()) == {0, 1}
    found = what_if(result)
    assert [change.name for change in found.changes[2:4]] == ["links x2", "infinite links"]
    faster = next(change for change in found.changes if change.name == "links x2")
    times, _ = swaps(result)
    halved = sum(-(-((time - LATENCY) // LAYERS) // 2) * LAYERS + LATENCY for time in times)
    assert result.makespan - faster.makespan == sum(times) - halved
    assert_saved(result, tmp_path)


def test_presets_bring_it_where_something_is_swapped() -> None:
    data = scenario().to_dict()
    data["hardware"] = {"preset": "h100-sxm"}
    machine = plan(from_dict(data)).setup.machine
    assert [channel.bandwidth for channel in machine.channels if channel.kind == "host"] == [54 * 10**9]
    data["workload"]["batching"]["kv"] |= {"full": "recompute", "moves": "beside"}
    assert plan(from_dict(data)).setup.machine.links == ()
