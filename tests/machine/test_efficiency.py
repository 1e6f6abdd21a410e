"""Ports and weights on a channel that delivers a part of its bandwidth, by hand, with both executors."""

from __future__ import annotations

import pytest

import sim
from sim.executors import Executor
from sim.scenario import from_dict

WEIGHTED = {"name": "weighted", "weights": {"0": 3, "1": 1}}


def ends(arbiter: object, port: str, executor: Executor) -> list[float]:
    """Ends [ms] of two sequences that load 30 MB each from 1 GB/s, of which a quarter is delivered."""
    memory = {"bandwidth": "1 GB/s", "port_bandwidth": port, "efficiency": {"1": 0.25}, "arbiter": arbiter}
    scenario = {
        "model": {"graph": [{"name": "a", "weight": "30 MB", "duration": "1 us"}]}, "workload": {"sequences": [{"count": 2}]},
        "hardware": {"engines": {"count": 2}, "memory": memory}, "mapping": {"execution": "stream"},
    }  # fmt: skip
    return (sim.run(from_dict(scenario), executor=executor).log.steps.end / 1e9).tolist()


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
@pytest.mark.parametrize(
    ("arbiter", "port", "expected"),
    [
        # 187.5 and 62.5 MB/s: no port is the limit. At 160 ms the second has 20 MB left, which come at 250 MB/s.
        (WEIGHTED, "500 MB/s", [160, 240]),
        # 150 MB/s for the first, whose port is the limit, and the other 100; at 200 ms 10 MB are left, at 150 MB/s.
        (WEIGHTED, "150 MB/s", [200, 200 + 1000 / 15]),
        # Both ports are the limit, and a part of what is delivered is left: each 30 MB at 100 MB/s.
        (WEIGHTED, "100 MB/s", [300, 300]),
        ("processor_sharing", "500 MB/s", [240, 240]),
        ("proportional", "500 MB/s", [240, 240]),
    ],
)
def test_shares_are_of_what_is_delivered(arbiter: object, port: str, expected: list[float], executor: Executor) -> None:
    assert ends(arbiter, port, executor) == pytest.approx(expected, rel=1e-9)
