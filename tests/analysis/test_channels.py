"""Several channels: the fullest is the bound, and each has its own share."""

from __future__ import annotations

from sim.runs.run import run
from sim.scenario import from_dict


def test_the_fullest_channel_is_the_bound():
    ops = [{"name": "load", "kind": "kv_load", "transfer": "2 us"}]
    ops += [{"name": f"w{i}", "kind": "mix", "duration": "1 ns", "transfer": "5 us", "inputs": []} for i in range(4)]
    result = run(
        from_dict(
            {
                "model": {"graph": ops},
                "hardware": {"memory": {"channels": {"count": 2, "route": "class"}}},
                "mapping": {"execution": "prefetch"},
            }
        )
    )
    # all weights go to channel 0: 4 x 5 us; the cache to channel 1: 2 us, at the same time
    assert result.metrics.delivered == (20_000_000, 2_000_000)
    assert result.bounds.memory == 20_000_000
    assert result.metrics.channel_busy == 20_000_000
    assert result.makespan == 20_001_000
