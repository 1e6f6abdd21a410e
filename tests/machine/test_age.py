"""Steps released at the same instant are of the same age: program order decides between them."""

from __future__ import annotations

from sim.runs.run import run
from sim.scenario import from_dict


def test_equal_age_is_decided_by_program_order():
    result = run(
        from_dict(
            {
                "model": {"graph": [{"name": "store", "kind": "kv_store", "transfer": "1 us"}]},
                "workload": {"sequences": [{"tokens": 2}, {"tokens": 1, "arrival": "1 us"}]},
                "hardware": {"memory": {"arbiter": {"name": "priority", "classes": "age"}}},
                "mapping": {"execution": "stream"},
            }
        )
    )
    ends = {(t.sequence, t.token): t.end for t in result.metrics.tokens}
    assert ends == {(0, 0): 1_000_000, (0, 1): 2_000_000, (1, 0): 3_000_000}
