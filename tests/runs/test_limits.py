"""Options of an arbiter that would have no effect are refused, with a line that says what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.graph import QUANTITIES
from sim.base.errors import InputError
from sim.runs.plan import plan
from sim.runs.run import run
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


def of_prefix(folder: Path, **workload: Any) -> dict[str, Any]:
    """A small PaliGemma, whose prompts see themselves whole: two layers with 4 heads of 8."""
    text = {"model_type": "gemma", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = folder / "config.json"
    config.write_text(json.dumps({"model_type": "paligemma", "text_config": text}))
    return {
        "model": {"config": str(config)}, "mapping": {"softmax": "online", "heads": "fused"}, "cost": "roofline",
        "hardware": {"engines": {"flops": "1 TFLOP/s", "vector_flops": "1 TFLOP/s"}, "memory": {"capacity": "1 MB"}},
        "workload": {"sequences": [{"prompt": 300, "tokens": 2}, {"prompt": 40, "tokens": 2}], **workload},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ({"prefill": {"chunk": 300}}, "prefill.chunk: all tokens of a prompt see each other in this model: expected null"),
        ({"batching": {**BATCHED, "max_tokens": 128}}, "workload.batching.max_tokens: expected at least 300"),
        ({"batching": {**BATCHED, "kv": {"prefix_cache": True}}}, "batching.kv.prefix_cache: all tokens of a prompt see"),
        ({"batching": {**BATCHED, "kv": {"full": "recompute"}}}, "workload.batching.kv.full: all tokens of a prompt"),
    ],
)  # fmt: skip
def test_prompts_that_see_themselves_whole_come_in_one_piece(tmp_path: Path, workload: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan(from_dict(of_prefix(tmp_path, **workload)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_such_prompts_are_in_no_chunks_of_tokens(tmp_path: Path) -> None:
    data = of_prefix(tmp_path)
    data["hardware"]["devices"] = {"count": 2, "link": {"bandwidth": "1 GB/s"}}
    data["mapping"] |= {"attention": "batch", "parallel": {"tensor": 2, "token_chunks": 2}}
    with pytest.raises(
        InputError, match=r"parallel.token_chunks: all tokens of a prompt see each other in this model: expected 1, found 2"
    ):
        plan(from_dict(data))


@pytest.mark.parametrize("workload", [{}, {"batching": {**BATCHED, "max_tokens": 300}}])
def test_such_prompts_charge_all_pairs_and_answers_those_before_them(tmp_path: Path, workload: Any) -> None:
    """Two products of 2 FLOPs, 2 layers, 4 heads of 8: of P^2 pairs, then of P + 1 keys."""
    log = run(from_dict(of_prefix(tmp_path, **workload))).log
    found = set()
    for step in range(len(log.steps)):
        graph = log.graphs[log.steps.graph[step]]
        flops = graph.ops.costs_of(log.lanes(np.array([step])))[QUANTITIES.index("flops"), :, 0]
        mine = sum(int(each) for each, kind in zip(flops, graph.ops.kind, strict=True) if kind == "attention")
        members = np.flatnonzero(log.members.step == step)
        sizes = [(int(log.members.context[m]), int(log.members.query[m])) for m in members]
        pairs = [query * query if context == 0 else context + 1 for context, query in sizes]
        assert mine == 4 * 2 * 4 * 8 * sum(pairs), sizes
        found |= set(sizes)
    assert {(0, 300), (0, 40), (300, 1), (40, 1)} <= found
