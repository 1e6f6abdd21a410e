"""Energy of runs: hand arithmetic, sums from the rows of the log, and measured power of a real device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import sim.scenario
from sim.analysis.energy import BUSY, COMPUTE, IDLE, MEMORY, STATIC, Energy, shared
from sim.analysis.parts import PARTS
from sim.analysis.sums import split
from sim.base.errors import InputError
from sim.log import derived
from sim.mapping.tasks import HOST_BIT, NETWORK_BIT
from sim.render.energy import lines
from sim.render.summary import summary
from sim.runs.result import Result
from sim.runs.run import known_names, run
from tests.executors.scenarios import served

MJ = 10**12  # fJ in a millijoule
MS = 10**9

TEXT = """\
model:
  graph:
    - {name: cache, kind: kv_load, kv_read: 400 MB}
    - {name: attend, inputs: [cache, q], duration: 3 ms}
    - {name: q, kind: q_proj, flops: 2000000000, weight: 100 MB}
    - {name: store, kind: kv_store, inputs: [attend], kv_write: 100 MB}
workload: {sequences: [{tokens: 2}]}
hardware:
  engines: {count: 1, flops: 2 TFLOP/s}
  memory: {bandwidth: 100 GB/s}
  energy: {flop: 2 pJ/FLOP, byte: {dram: 7 pJ/B, path: 3 pJ/B}, static: {device: 3 W, engine: 1 W}}
mapping: {execution: prefetch}
"""


def result(*changes: str, text: str = TEXT) -> Result:
    return run(sim.scenario.parse(text, "g.yaml", list(changes)))


def energy_of(found: Result) -> Energy:
    assert found.energy is not None
    return found.energy


def test_by_hand() -> None:
    """Two steps of 10 ms: loads of 4 and 1 ms, q_proj for 1 ms, attend for 3 ms, the store for 1 ms.

    2 GFLOP and 600 MB a step, 4 W in all. Along the chain of a token: 4 ms behind the cache, 1 ms of weights, 4 ms on the
    engine, 1 ms to store.
    """
    found = energy_of(result())
    assert found.compute == 2 * 4 * MJ
    assert found.memory == 2 * 6 * MJ
    assert found.memory_parts == {"dram": 2 * 600 * 7 * MJ // 1000, "path": 2 * 600 * 3 * MJ // 1000}
    assert found.static == 4 * 20 * MJ
    assert found.total == 100 * MJ
    assert found.per_token == 50 * MJ
    assert found.watts == pytest.approx(5)
    parts = dict(zip(PARTS, found.static_by_part, strict=True))
    assert {part: fj // MJ for part, fj in parts.items() if fj} == {"compute": 32, "transfer": 16, "wait_channel": 32}
    assert found.waiting == 32 * MJ
    assert found.idle == 0
    assert found.device == 60 * MJ
    assert found.engines.tolist() == [[8 * MJ, 8 * MJ, 12 * MJ]]
    assert found.channels == (12 * MJ,)
    assert found.by_step.tolist() == [[4 * MJ, 6 * MJ, 0, 40 * MJ]] * 2
    kinds = dict(zip(found.kinds, found.by_kind.tolist(), strict=True))
    assert kinds == {
        "attend": [0, 0, 0], "kv_load": [0, 8 * MJ, 0], "kv_store": [0, 2 * MJ, 0], "q_proj": [8 * MJ, 0, 0],
        "weight_load": [0, 2 * MJ, 0],
    }  # fmt: skip
    assert found.causes(result().blame) == {"channel": {"kv_load": 32 * MJ}, "engine": {}}


def test_waiting_for_an_engine_has_its_joules() -> None:
    """Two tokens at once on one engine, 3 ms each: from 3 ms on the second runs alone, and waited as long at half of 4 W."""
    graph = "model.graph=[{name: a, duration: 3 ms}]"
    found = energy_of(result(graph, "workload.sequences=[{tokens: 1, count: 2}]"))
    assert found.by_step[:, STATIC].tolist() == [6 * MJ, 18 * MJ]
    parts = dict(zip(PARTS, found.static_by_part, strict=True))
    assert (parts["compute"], parts["wait_engine"]) == (6 * MJ + 9 * MJ, 9 * MJ)
    assert found.waiting == 9 * MJ


def test_time_without_steps_is_idle() -> None:
    found = energy_of(result("workload.sequences=[{tokens: 1}, {tokens: 1, arrival: 15 ms}]"))
    assert found.idle == 4 * 5 * MJ
    assert found.static == 4 * 25 * MJ
    assert found.by_sequence.tolist() == [50 * MJ, 50 * MJ]


def test_steps_in_progress_share_static_power() -> None:
    """Steps in [0, 10) and [5, 15) at 2 mW: alone for 5 ps each, and 5 ps together; at 1 mW an odd fJ is left."""
    released, end = np.array([0, 5]), np.array([10, 15])
    assert [each.tolist() if isinstance(each, np.ndarray) else each for each in shared(released, end, 2, 15)] == [[15, 15], 0]
    assert [each.tolist() if isinstance(each, np.ndarray) else each for each in shared(released, end, 1, 20)] == [[7, 7], 6]


def test_a_batched_step_is_split_by_the_tokens_fed_in() -> None:
    """A prompt of 3 tokens beside one that decodes: the step in which both take part goes 3 : 1."""
    scenario = sim.scenario.from_dict(
        {
            "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
            "workload": {
                "sequences": [{"prompt": 3, "tokens": 1}, {"context": 5, "tokens": 1}], "batching": "continuous",
            },
            "hardware": {"energy": {"flop": "1 pJ/FLOP", "byte": "10 pJ/B", "static": {"device": "8 W"}}},
        },
        known=known_names(),
    )  # fmt: skip
    found = energy_of(run(scenario))
    assert len(found.by_step) == 1
    assert found.by_sequence.tolist() == [found.total * 3 // 4, found.total - found.total * 3 // 4]


@pytest.mark.parametrize(("seconds", "fits"), [(13, True), (14, False), (10**5, False)])
def test_beyond_int64(seconds: int, fits: bool) -> None:
    """At 700 W int64 ends after 13.2 s; Python integers go on, and sums are exact to the femtojoule."""
    text = f"""\
model: {{graph: [{{name: a, flops: 7, duration: null}}, {{name: b, inputs: [a], duration: {seconds} s}}]}}
hardware:
  engines: {{count: 2, flops: 1 TFLOP/s}}
  energy: {{flop: 3 pJ/FLOP, byte: 1 pJ/B, static: {{device: 600 W, engine: 50 W}}}}
"""
    found = energy_of(result(text=text))
    ps = seconds * 10**12 + 7
    assert found.makespan == ps
    assert found.total == 700_000 * ps + 7 * 3000
    assert (found.total < 2**63) == fits
    assert found.engines[:, BUSY:].sum() == 100_000 * ps
    assert sum(found.by_step[:, STATIC].tolist()) == 700_000 * ps
    assert found.watts == pytest.approx(700)


def test_split_is_exact_beyond_int64() -> None:
    whole = np.array([10**30 + 1, 7, 5], dtype=object)
    parts = split(whole, np.array([[1, 2, 10**18], [0, 0, 0], [2, 0, 1]]))
    assert [sum(row) for row in parts.tolist()] == whole.tolist()
    assert parts[1].tolist() == [7, 0, 0]
    assert parts[2].tolist() == [3, 0, 2]  # ends at 10/3 and 15/3, rounded down
    assert parts[0].tolist()[0] == (10**30 + 1) // (10**18 + 3)


@pytest.mark.parametrize("route", ["interleaved", "class", "sequence"])
def test_channels(route: str) -> None:
    """A step reads 400 MB + 1 B of KV cache and 100 MB of weights, and writes 100 MB; there is one sequence."""
    found = energy_of(
        result(
            f"hardware.memory.channels={{count: 3, route: {route}}}", "hardware.engines.count=2",
            f"model.graph={[{'name': 'cache', 'kind': 'kv_load', 'kv_read': '400000001 B'}, {'name': 'q', 'flops': 10**9, 'weight': '100 MB'}, {'name': 'store', 'kind': 'kv_store', 'inputs': ['q'], 'kv_write': '100 MB'}]}",  # noqa: E501
        )
    )  # fmt: skip
    kb, rate = 2, 10_000  # two steps, fJ a byte
    expected = {
        "interleaved": [133_333_334 + 2 * 33_333_334, 133_333_334 + 2 * 33_333_333, 133_333_333 + 2 * 33_333_333],
        "class": [100_000_000, 500_000_001, 0],
        "sequence": [600_000_001, 0, 0],
    }[route]
    assert list(found.channels) == [kb * rate * each for each in expected]


def rows_of(found: Result) -> tuple[int, int, int]:
    """Energy of arithmetic, and of bytes of the memory and of links, from each row of the log in Python integers."""
    rates = found.plan.rules.energy
    assert rates is not None
    log, compute = found.log, 0
    for row, flops in enumerate(derived.flops(log).tolist()):
        graph = log.graphs[log.steps.graph[log.tasks.step[row]]]
        compute += flops * (rates.of_flop(graph.ops.ops[graph.op[log.tasks.task[row]]].dtype) or 0)
    memory, link = 0, 0
    for row, moved in enumerate(derived.bytes_moved(log).tolist()):
        graph, task = log.graphs[log.steps.graph[log.tasks.step[row]]], int(log.tasks.task[row])
        if graph.kind_of(task).endswith("_send"):
            network = graph.moves[task] & NETWORK_BIT != 0
            of_link = moved * sum((rates.network if network else rates.link).values())
            crossed = log.machine.crossed(int(graph.device[task]), int(graph.to[task]))
            by_switch = found.scenario.hardware.devices.topology == "switch"
            link += of_link * (2 if network or by_switch else max(1, len(crossed)))
        elif graph.moves[task] & HOST_BIT:
            link += moved * sum(rates.tiers[0].values())
        else:
            memory += moved * sum(rates.byte.values())
    return compute, memory, link


def integral(found: Result) -> float:
    """Energy by the power over time, fJ: W ps are pJ."""
    assert found.power is not None
    return float((found.power.watts[:-1] * np.diff(found.power.time)).sum()) * 1000


FIGURES = {
    "flop": {"bfloat16": "0.761 pJ/FLOP", "float32": "3.1 pJ/FLOP"},
    "byte": {"dram": "6 pJ/bit", "path": "34.567 pJ/B"},
    "link": "5.501 pJ/bit",
    "host": {"pcie": "6.5 pJ/bit", "dram": "9 pJ/B"},
    "network": "20.003 pJ/bit",
    "static": {"device": "99.999 W", "engine": "1.234 W"},
}


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(served(), st.sampled_from(("simpy", "compiled")))
def test_every_joule_of_random_runs(scenario: dict[str, Any], executor: Any) -> None:
    """Sums equal those over rows; `record: steps` and `none` tell the same totals. Each run checks its own sums, too."""
    scenario["hardware"]["energy"] = FIGURES
    try:
        found = run(sim.scenario.from_dict(scenario, known=known_names()), executor=executor)
    except InputError:
        assume(False)
    energy = energy_of(found)
    assert (energy.compute, energy.memory, energy.link) == rows_of(found)
    machine = found.log.machine
    assert energy.static == (99_999 * len(machine.devices) + 1_234 * machine.engines) * machine.like * found.makespan
    assert "energy of ops, transfers and static power sums exactly to that of the run" in found.checks
    waits = {part: fj for part, fj in zip(PARTS, energy.static_by_part, strict=True) if part.startswith("wait_")}
    assert energy.waiting == sum(waits.values())
    assert integral(found) == pytest.approx(energy.total, rel=1e-6)
    for record in ("steps", "none"):
        other = run(sim.scenario.from_dict(scenario | {"record": record}, known=known_names()), executor=executor)
        again = energy_of(other)
        assert integral(other) == pytest.approx(energy.total, rel=1e-6)
        for name in (
            "total",
            "compute",
            "memory",
            "link",
            "link_parts",
            "static",
            "idle",
            "waiting",
            "device",
            "kinds",
            "channels",
            "static_by_part",
        ):
            assert getattr(again, name) == getattr(energy, name), name
        for name in ("by_kind", "engines", "by_sequence"):
            assert getattr(again, name).tolist() == getattr(energy, name).tolist(), name
        assert len(again.by_step) == (len(energy.by_step) if record == "steps" else 0)


def test_several_engines_and_one_give_the_same_arithmetic() -> None:
    """Heads and tiles split over engines are the same FLOPs and bytes; of several engines each has its own."""
    text = "{model: {config: llama-3.2-1b, layers: 2}, hardware: {energy: {flop: 1 pJ/FLOP, byte: 1 pJ/B}}}"
    one, four = (energy_of(result(f"hardware.engines.count={n}", text=text)) for n in (1, 4))
    assert (one.compute, one.memory, one.static) == (four.compute, four.memory, 0)
    assert sum(four.engines[:, COMPUTE].tolist()) == one.engines[0, COMPUTE] == one.compute
    assert (four.engines[:, COMPUTE] > 0).all()
    assert not one.engines[:, IDLE].any()


@pytest.mark.parametrize(("execution", "watts"), [("blocking", [5, 8, 0]), ("stream", [9, 0])])
def test_power_by_hand(execution: str, watts: list[float]) -> None:
    """Static 4 W; 1 W while 100 MB at 10 pJ load for 1 ms, 4 W while 2 GFLOP at 2 pJ take 1 ms: apart, or at once."""
    graph = "model.graph=[{name: q, flops: 2000000000, weight: 100 MB}]"
    found = result(graph, "workload.sequences=[{tokens: 1}]", f"mapping={{execution: {execution}}}").power
    assert found is not None
    assert found.time.tolist() == [n * MS for n in range(len(watts))]
    assert found.watts.tolist() == pytest.approx(watts)
    assert found.tasks.tolist() == [5 * MJ]
    assert found.means(MS // 2).tolist() == pytest.approx([each for each in watts[:-1] for _ in range(2)])
    assert found.means(4 * MS).tolist() == pytest.approx([sum(watts) / (len(watts) - 1)])


def test_steps_of_one_graph_with_different_numbers_of_members() -> None:
    """One kernel attends for all members, however many there are: steps of 1 to 4 of them share a task graph."""
    scenario = {
        "model": {"config": "llama-3.2-1b", "layers": 2},
        "workload": {
            "sequences": [{"context": 7, "tokens": n} for n in (2, 4, 6)] + [{"prompt": 9, "tokens": 8, "samples": 2}],
            "batching": "continuous",
        },
        "hardware": {"engines": {"count": 2}, "energy": FIGURES},
        "mapping": {"attention": "batch", "softmax": "online", "kv": "operands", "execution": "stream", "heads": "fused"},
    }
    found = run(sim.scenario.from_dict(scenario, known=known_names()))
    assert (energy_of(found).compute, energy_of(found).memory, energy_of(found).link) == rows_of(found)


def linked(energy: dict[str, Any], mapping: dict[str, Any], devices: int = 1, topology: str = "switch") -> Result:
    """Two layers of Llama 3.2 1B that decode two tokens, in bfloat16, on devices with links of each kind."""
    link = {"bandwidth": "50 GB/s"}
    return run(sim.scenario.from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 2}, "cost": "roofline", "mapping": mapping,
        "workload": {"sequences": [{"context": 100, "tokens": 2}]},
        "hardware": {
            "engines": {"count": 1, "flops": "1 TFLOP/s", "vector_flops": "1 TFLOP/s"}, "host": {"link": link},
            "devices": {"count": devices, "link": link, "topology": topology} if devices > 1 else {},
            "energy": {"flop": "1 pJ/FLOP", "byte": "10 pJ/B", **energy},
        },
    }, known=known_names()))  # fmt: skip


@pytest.mark.parametrize(("topology", "hops"), [("switch", 2), ("ring", 1), ("mesh", 1), ("all_to_all", 1)])
@pytest.mark.parametrize("fold", [True, False])
def test_links_between_devices(fold: bool, topology: str, hops: int) -> None:
    """Four devices: a ring all-reduce of 2,048 numbers sends 6 times a quarter of them from each, twice a layer.

    A byte crosses one link to a neighbor, two by way of a switch: that of its device, and that of the next one.
    """
    parallel = {"tensor": 4, "algorithm": "ring", "fold": fold}
    found = linked({"link": "2 pJ/B"}, {"parallel": parallel}, devices=4, topology=topology)
    energy = energy_of(found)
    ring = 4 * 6 * 2048 * 2 // 4  # bytes of an all-reduce over all devices
    sends = {kind: row[2] for kind, row in zip(energy.kinds, energy.by_kind.tolist(), strict=True) if row[2]}
    in_layers = sum(fj for kind, fj in sends.items() if "reduce" in kind)
    assert in_layers == 2 * 2 * 2 * ring * 2000 * hops, sends
    assert energy.link == sum(sends.values()) == found.metrics.bytes_sent * (4 if fold else 1) * 2000 * hops
    channels = dict(zip([each.name for each in found.log.machine.channels], energy.channels, strict=True))
    of_links = [fj for name, fj in channels.items() if "link" in name and "host" not in name]
    assert sum(of_links) == energy.link
    if topology == "switch" and not fold:  # each device sends as much as it gets
        assert of_links == [energy.link // 8] * 8
    assert energy.link_parts == {"link": energy.link}
    assert energy.unknown == ()
    assert sum(energy.by_step[:, 2].tolist()) == energy.link
    assert energy.total == energy.compute + energy.memory + energy.link + energy.static
    assert (energy.compute, energy.memory, energy.link) == rows_of(found)
    assert integral(found) == pytest.approx(energy.total, rel=1e-6)
    assert summary(found)["energy"]["link_fj"] == energy.link


def test_the_link_to_the_host() -> None:
    """All weights but the embedding move over it for each token, and not through the memory."""
    at_home = energy_of(linked({}, {}))
    found = linked({"host": {"pcie": "6.5 pJ/bit", "dram": "9 pJ/B"}}, {"offload": {"weights": "all"}})
    energy = energy_of(found)
    moved = found.metrics.bytes_host
    assert energy.link_parts == {"pcie": 52_000 * moved, "dram": 9_000 * moved}
    assert energy.link == 61_000 * moved
    assert (at_home.memory - energy.memory) == 10_000 * moved > 0
    assert (energy.compute, energy.memory, energy.link) == rows_of(found)


def test_links_without_figures_count_as_none_and_the_output_says_so() -> None:
    found = linked({}, {"parallel": {"tensor": 2}}, devices=2)
    assert found.metrics.bytes_sent > 0
    assert energy_of(found).link == 0
    assert energy_of(found).unknown == ("link",)
    assert lines(found)[-1] == "without that of bytes over the link: not known"
    assert summary(found)["energy"]["link_unknown"] == ["link"]
    assert "without" not in "".join(lines(linked({"link": "1 pJ/bit"}, {"parallel": {"tensor": 2}}, devices=2)))


def h100(batch: int, context: int, **rest: Any) -> Energy:
    scenario = {
        "model": {"config": "llama-3.1-8b"}, "hardware": {"preset": "h100-sxm"},
        "workload": {"sequences": [{"context": context, "count": batch}], "batching": "static"}, **rest,
    }  # fmt: skip
    return energy_of(run(sim.scenario.from_dict(scenario, known=known_names())))


def test_an_h100_at_batch_1() -> None:
    """An 8B reads 15.1 GB a step at 82 pJ/B, 48 of them in DRAM, for 6.2 ms at 100 W: 1.87 J, and 302 W (measured: 300)."""
    found = h100(1, 1024)
    joule = 10**15
    assert found.total / joule == pytest.approx(1.9, abs=0.05)
    assert found.memory_parts["dram"] / joule == pytest.approx(0.72, abs=0.01)
    assert found.static / joule == pytest.approx(0.62, abs=0.01)
    assert found.watts == pytest.approx(300, rel=0.02)
    assert found.by_step[:, MEMORY].sum() == found.memory


def test_an_h100_at_batch_128() -> None:
    """Measured: 600 W. Here 515 to 450 W for contexts of 128 to 1,024: kernels of batches wait longer than the figures tell.

    2 x 8.03 G FLOP of 128 tokens at 0.76 pJ are 1.46 J of it, and with attention a little more.
    """
    short, long = h100(128, 128), h100(128, 1024)
    assert short.compute / 10**15 == pytest.approx(1.46, rel=0.05)
    assert 500 < short.watts < 600
    assert 430 < long.watts < short.watts
    assert short.per_token < h100(1, 128).per_token / 50


def test_without_figures_there_is_no_energy() -> None:
    found = run(sim.scenario.from_dict({"model": {"config": "gpt2", "layers": 1}}, known=known_names()))
    assert found.energy is None
    assert found.power is None
    assert "energy" not in summary(found)
    assert not [name for name in found.checks if "energy" in name]


def test_a_format_without_a_figure_is_an_error() -> None:
    with pytest.raises(InputError, match=r"hardware\.energy\.flop: expected a figure for bfloat16, .* known here: int8"):
        result(
            "model={config: llama-3.2-1b, layers: 1}", "hardware.energy.flop={int8: 1 pJ/FLOP}",
            "hardware.engines.flops=1 TFLOP/s",
        )  # fmt: skip
