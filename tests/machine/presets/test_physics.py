"""A physical limit of all machines: a run is never faster than its bytes over the bandwidth."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from sim.machine.arbiters import ARBITERS
from sim.machine.presets import PRESETS, find
from sim.runs.run import read
from sim.scenario import from_dict
from sim.scenario.shipped import find_scenario, scenarios
from tests.reports import stored

WEIGHTS, ROW, KV = 2_471_628_800, 4096, 32_768  # Llama-3.2-1B in bfloat16: all weights, an embedding row, a token's cache
PS = 10**12


def at_full_speed(result: sim.Result) -> Fraction:
    """Picoseconds that all bytes take on all channels together."""
    log = result.log
    return Fraction(int(log.bytes_moved().sum()) * PS, log.bandwidth * log.channels)


@pytest.mark.parametrize(("context", "milliseconds"), [(256, 1.2163), (2048, 1.2451), (8192, 1.3438)])
def test_a_step_on_the_a100_is_never_under_its_bytes_over_bandwidth(context: int, milliseconds: float) -> None:
    scenario = {
        "model": {"config": "llama-3.2-1b"},
        "workload": {"sequences": [{"context": context}]},
        "hardware": {"preset": "a100-80g-sxm", "engines": {"count": 108}},
        "mapping": {"tiles": 8, "softmax": "three_pass", "heads": "split", "execution": "prefetch"},
        "cost": "roofline",
    }
    result = sim.run(from_dict(scenario))
    assert result.metrics.bytes_read == WEIGHTS + ROW + KV * context
    bound = Fraction((WEIGHTS + KV * context) * PS, 2039 * 10**9)
    assert round(float(bound) / 1e9, 4) == milliseconds
    assert bound < at_full_speed(result) <= result.makespan < 1.1 * float(bound)


@pytest.mark.parametrize("path", scenarios().values(), ids=list(scenarios()))
def test_no_shipped_scenario_beats_its_bandwidth(path: Path) -> None:
    """By the stored numbers, which `tests/reports` keeps true."""
    report, scenario = stored(path.stem), read(path)
    memory, devices = scenario.hardware.memory, scenario.mapping.parallel.simulated
    moved = report["memory.bytes_read"] + report["memory.bytes_written"]
    assert report["makespan_ps"] * memory.bandwidth * memory.channels.count * devices >= moved * PS


def test_int4_weights_quicken_the_pi_as_their_bytes_say() -> None:
    int4 = sim.run(find_scenario("raspberry_pi_5_llama_1b"))
    tokens = 4
    matrices, norms = WEIGHTS // 2 - 33 * 2048, 2 * 33 * 2048
    a_step = matrices * 33 // 64 + norms + 2048 * 33 // 64  # 4 bits a number and 16 bits for each 128
    cache = sum(KV * (256 + token) for token in range(tokens))
    assert int4.metrics.bytes_read == tokens * a_step + cache


def test_four_cores_of_the_pi_are_slower_than_two() -> None:
    """Measured: 13.23 GB/s for two cores that read at once, 11.59 GB/s for four."""
    times = {
        n: sim.run(read(find_scenario("raspberry_pi_5_llama_1b"), [f"hardware.engines.count={n}"])).makespan for n in (1, 2, 4)
    }
    assert times[2] < times[4] < times[1]


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Two layers and the LM head of Llama-3.2-1B, on any machine, in any way, for any batch."""
    preset = draw(st.sampled_from([name for name in PRESETS.names() if not find(name).unpublished]))
    execution = draw(st.sampled_from(["blocking", "stream", "prefetch"]))
    context, count = draw(st.integers(0, 3000)), draw(st.integers(1, 6))
    prompt = draw(st.sampled_from([0, 0, 1, 90]))
    policy = draw(st.sampled_from(["independent", "static", "continuous"]))
    workload: dict[str, Any] = {
        "sequences": [{"context": context, "prompt": prompt, "tokens": draw(st.integers(1, 3)), "count": count}],
        "batching": policy,
        "prefill": {"chunk": draw(st.sampled_from([None, 32]))},
    }
    if draw(st.booleans()):
        workload["speculative"] = {"draft": draw(st.integers(1, 4)), "acceptance": draw(st.floats(0, 1))}
    return {
        "model": {"config": "llama-3.2-1b", "layers": 2},
        "workload": workload,
        "hardware": {
            "preset": preset,
            "memory": {
                "arbiter": draw(st.sampled_from([name for name in ARBITERS.names() if name not in ("priority", "weighted")])),
                "channels": {"count": draw(st.integers(1, 3))},
                "capacity": None,  # that of an SRAM-only chip holds no model
                "achievable": find(preset).achievable is not None and draw(st.booleans()),
            },
        },
        "mapping": {
            "execution": execution,
            "kv": "transfers" if execution == "prefetch" else draw(st.sampled_from(["transfers", "operands"])),
            "heads": "fused", "softmax": draw(st.sampled_from(["three_pass", "fused", "online"])),
            "tiles": draw(st.integers(1, 4)), "activations": draw(st.sampled_from(["on_chip", "off_chip"])),
            "formats": {
                "weights": draw(st.sampled_from([None, "bf16", "fp8", "int8", "int4"])),
                "kv": draw(st.sampled_from([None, "bf16", "fp8", "int8"])),
            },
        },
    }  # fmt: skip


BYTES = {None: Fraction(2), "bf16": Fraction(2), "fp8": Fraction(1), "int8": Fraction(1), "int4": Fraction(33, 64)}


@settings(max_examples=12, deadline=None)
@given(configurations())
def test_no_configuration_beats_bytes_over_bandwidth(scenario: dict[str, Any]) -> None:
    not_faster_than_its_bytes(scenario)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(configurations())
def test_none_of_many_configurations_beats_bytes_over_bandwidth(scenario: dict[str, Any]) -> None:
    not_faster_than_its_bytes(scenario)


def not_faster_than_its_bytes(scenario: dict[str, Any]) -> None:
    """The bytes are counted here, from the shapes of the model: the least that each step must read, whatever the mapping."""
    result = sim.run(from_dict(scenario))
    log, formats = result.log, scenario["mapping"]["formats"]
    layers = 2 * (2048 * (2048 + 512 + 512 + 2048) + 3 * 2048 * 8192) * BYTES[formats["weights"]] + 2 * 2 * 2048 * 2
    head = 2048 * 128_256 * BYTES[formats["weights"]]
    token = 2 * 2 * 8 * 64 * BYTES[formats["kv"]]  # layers, key and value, heads, head size
    members = log.members
    with_logits = len(set(members.step[members.logits > 0].tolist()))
    moved = len(log.steps) * layers + with_logits * head + (int(members.context.sum()) + int(members.query.sum())) * token
    least = moved * PS / (int(find(scenario["hardware"]["preset"]).bandwidth.value) * log.channels)
    assert result.makespan >= at_full_speed(result) >= least
