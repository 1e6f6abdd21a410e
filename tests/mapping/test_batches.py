"""Kernels, splits and shares in steps of several sequences, prompts in chunks among them."""

from __future__ import annotations

import pytest

import sim
from sim.scenario import from_dict

MAPPINGS = {
    "online": {"softmax": "online"},
    "splits": {"softmax": "online", "kv_splits": 3, "kv_loads": "head"},
    "projections": {"softmax": "fused", "fuse": {"qkv": True, "gate_up": True}},
    "operands": {"softmax": "online", "kv_splits": 2, "kv": "operands", "execution": "stream"},
    "tiles": {"tiles": {"default": 2, "lm_head": 8}},
    "batch": {"attention": "batch"},
    "batch in place": {"attention": "batch", "softmax": "online", "kv": "operands", "execution": "blocking", "heads": "fused"},
}


def run(mapping: dict[str, object]) -> sim.Result:
    sequences = [{"context": 100, "prompt": 70, "tokens": 3}, {"context": 500, "prompt": 3, "tokens": 5, "arrival": "1 ms"}]
    workload = {"sequences": sequences, "batching": {"policy": "continuous"}, "prefill": {"chunk": 32}}
    return sim.run(from_dict({"model": {"config": "llama-3.2-1b", "layers": 2}, "workload": workload, "mapping": mapping}))


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_mapping_moves_no_other_bytes(name: str) -> None:
    """The batches are the same here, so the bytes are too."""
    plain, mapped = run({}), run(MAPPINGS[name])
    assert len(mapped.log.steps) == len(plain.log.steps)
    assert (mapped.metrics.bytes_read, mapped.metrics.bytes_written) == (plain.metrics.bytes_read, plain.metrics.bytes_written)


@pytest.mark.parametrize("attention", ["sequence", "batch"])
@pytest.mark.parametrize("kv", ["transfers", "operands"])
def test_a_swap_moves_the_cache_under_any_mapping(kv: str, attention: str) -> None:
    workload = {
        "sequences": [{"prompt": 60, "tokens": 25, "count": 3}],
        "batching": {"policy": "continuous", "kv": {"capacity": "0.85 MB", "full": "swap"}},
    }
    mapping = {"kv": kv, "execution": "stream", "attention": attention}
    scenario = {"model": {"config": "llama-3.2-1b", "layers": 2}, "workload": workload, "mapping": mapping}
    result = sim.run(from_dict(scenario))
    members = result.log.members
    swapped = members.context[members.query == 0]
    assert len(swapped)
    moved = {kind.kind: kind.bytes for kind in result.metrics.kinds if kind.kind.startswith("kv_swap")}
    assert sum(moved.values()) == 2 * 2048 * int(swapped.sum())
    assert moved["kv_swap_out"] == moved["kv_swap_in"]
