"""What no machine can do: a run is never faster than its bytes over the bandwidth."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

import sim
from sim.scenario import from_dict
from sim.shipped import find_scenario, scenarios

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
        "hardware": {"preset": "a100-80g-sxm"},
        "mapping": {"tiles": 8},
    }
    result = sim.run(from_dict(scenario))
    assert result.metrics.bytes_read == WEIGHTS + ROW + KV * context
    bound = Fraction((WEIGHTS + KV * context) * PS, 2039 * 10**9)
    assert round(float(bound) / 1e9, 4) == milliseconds
    assert bound < at_full_speed(result) <= result.makespan < 1.1 * float(bound)


@pytest.mark.parametrize("path", scenarios().values(), ids=list(scenarios()))
def test_no_shipped_scenario_beats_its_bandwidth(path: Path) -> None:
    result = sim.run(path)
    assert result.makespan >= at_full_speed(result)


def test_int4_weights_quicken_the_pi_as_their_bytes_say() -> None:
    int4 = sim.run(find_scenario("raspberry_pi_5_llama_1b"))
    tokens = 4
    matrices, norms = WEIGHTS // 2 - 33 * 2048, 2 * 33 * 2048
    a_step = matrices * 33 // 64 + norms + 2048 * 33 // 64  # 4 bits a number and 16 bits for each 128
    cache = sum(KV * (256 + token) for token in range(tokens))
    assert int4.metrics.bytes_read == tokens * a_step + cache


def test_four_cores_of_the_pi_are_slower_than_two() -> None:
    """Measured: 13.23 GB/s for two that read at once, 11.59 GB/s for four."""
    from sim.runner import read

    times = {
        n: sim.run(read(find_scenario("raspberry_pi_5_llama_1b"), [f"hardware.engines.count={n}"])).makespan for n in (1, 2, 4)
    }
    assert times[2] < times[4] < times[1]
