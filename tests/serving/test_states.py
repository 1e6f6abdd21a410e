"""States of sequences in batches: capacity, swaps and bytes by hand, with both executors."""

from typing import Any

import pytest

from sim.analysis.moved import moved_by_kind
from sim.base.errors import InputError
from sim.executors import compiled, reference
from sim.runs.plan import plan
from sim.scenario import from_dict
from tests.executors import assert_same

LAYERS = 4  # of qwen3-next-80b-a3b: three with a state, one with a KV cache
STATE = 3 * 4 * (32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128))
BLOCK = 16 * 2 * 2 * 256 * 2  # keys and values of two heads


def scenario(capacity: int, **changed: Any) -> Any:
    """Three requests of 40 tokens and 20 more, the last of which is not cached: 3 blocks at first, 4 from the 49th token on."""
    return from_dict(
        {
            "model": {"config": "qwen3-next-80b-a3b", "layers": LAYERS, "scope": "block"},
            "hardware": {"engines": {"count": 1, "flops": "100 TFLOP/s"}, "memory": {"bandwidth": "1 TB/s"}},
            "workload": {
                "sequences": [{"prompt": 40, "tokens": 20, "count": 3}],
                "batching": {"policy": "continuous", "kv": {"capacity": f"{capacity} B", "full": "swap", **changed}},
            },
            "mapping": {"heads": "fused"},
        }
    )


@pytest.mark.parametrize("full", ["wait", "swap", "recompute"])
def test_sequences_hold_states_beside_blocks(full: str) -> None:
    three = 3 * (STATE + 3 * BLOCK)
    for capacity, at_once in ((three + 3 * BLOCK, 3), (three, 2 if full == "wait" else 3), (three - 1, 2)):
        log = reference.simulate(plan(scenario(capacity, full=full)).setup)
        assert log.members.step.tolist().count(0) == at_once
        moved = moved_by_kind(log)
        steps = int((log.members.query > 0).sum())
        assert moved["state_load"][:2] == (steps * STATE, 0)
        assert moved["state_store"][:2] == (0, steps * STATE)
        out, back = (moved.get(f"state_swap_{way}", (0, 0)) for way in ("out", "in"))
        assert out[0] == back[1]
        assert (out[0] // STATE, out[0] % STATE) == (int(full == "swap" and capacity == three), 0)


def test_a_state_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"sequence 0 ends with 59 tokens in 6\.717 MB, more than the 6\.716 MB"):
        plan(scenario(STATE + 4 * BLOCK - 1000))


@pytest.mark.parametrize("attention", ["sequence", "batch"])
def test_executors_agree(attention: str) -> None:
    data = scenario(3 * (STATE + 3 * BLOCK))
    setup = plan(data.model_copy(update={"mapping": data.mapping.model_copy(update={"attention": attention})})).setup
    assert_same(reference.simulate(setup), compiled.simulate(setup))
