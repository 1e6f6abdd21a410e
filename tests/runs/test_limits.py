"""Options of an arbiter that would have no effect are refused, with a line that says what is there."""

from __future__ import annotations

from typing import Any

import pytest

from sim.base.errors import InputError
from sim.runs.plan import plan
from sim.scenario import from_dict

BATCHED = {"policy": "continuous", "max_batch": 2}


def planned(arbiter: Any, workload: dict[str, Any] | None = None, **mapping: Any) -> None:
    plan(from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "workload": {"sequences": [{"tokens": 2, "count": 2}], **(workload or {})},
        "hardware": {"engines": {"flops": "1 TFLOP/s", "vector_flops": "1 TFLOP/s"}, "memory": {"arbiter": arbiter}},
        "mapping": mapping,
    }))  # fmt: skip


def weighted(**weights: int) -> dict[str, Any]:
    return {"name": "weighted", "weights": weights}


@pytest.mark.parametrize(
    ("arbiter", "workload", "mapping", "message"),
    [
        (
            weighted(weight_load=3), {}, {"execution": "stream"},
            "no effect on 'weight_load': under mapping.execution: stream an op loads its own operands; expected kinds of ops",
        ),
        (weighted(act_load=3), {}, {"execution": "blocking"}, "no effect on 'act_load': under mapping.execution: blocking"),
        ({"name": "priority", "classes": ["act_load"]}, {}, {"execution": "prefetch"}, "unknown kind of transfer 'act_load'"),
        (weighted(kv_load=3), {}, {"execution": "stream", "kv": "operands"}, "unknown kind of transfer 'kv_load'"),
        (weighted(silu=3), {}, {"execution": "stream"}, "unknown kind of transfer 'silu'"),
        (weighted(kv_swap_in=3), {}, {"execution": "prefetch"}, "unknown kind of transfer 'kv_swap_in'"),
        ({"name": "weighted", "weights": {"1": 3, "2": 2}}, {}, {}, "no sequence has the number 2; there are 0 to 1"),
        ({"name": "weighted", "weights": [1, 2, 3, 4]}, {"batching": BATCHED}, {}, "number 3; there are 0 to 2"),
        ({"name": "weighted", "weights": {"7": 3}}, {"sequences": [{"tokens": 2}]}, {}, "number 7; there is only 0"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(arbiter: Any, workload: Any, mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(arbiter, workload, **mapping)
    assert str(caught.value).startswith("<dict>: hardware.memory.arbiter: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arbiter", "workload", "mapping"),
    [
        (weighted(weight_load=3, kv_load=2, kv_store=1), {}, {"execution": "prefetch"}),
        (weighted(q_proj=3), {}, {"execution": "stream"}),
        (weighted(kv_swap_in=3), {"batching": BATCHED}, {"execution": "prefetch"}),
        ({"name": "weighted", "weights": [1, 2, 3]}, {"batching": BATCHED}, {}),
    ],
)
def test_what_has_an_effect_is_accepted(arbiter: Any, workload: Any, mapping: dict[str, Any]) -> None:
    planned(arbiter, workload, **mapping)
