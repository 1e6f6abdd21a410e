"""LongCat-Flash by hand: two attentions a layer with a latent cache each, and experts that compute nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.capture import capture
from models.config import ModelConfig
from models.experts import Experts, Tokens, counted
from models.formats import Formats
from models.graph import QUANTITIES, ModelGraph, OpGraph
from models.rewrites import with_formats
from sim.runs.run import run
from sim.scenario import from_dict
from sim.workload.routing import Uniform
from tests.executors import assert_same

FLOPS, WEIGHT, KV_READ, KV_WRITE = (QUANTITIES.index(name) for name in ("flops", "weight", "kv_read", "kv_write"))

SMALL = {
    "model_type": "longcat_flash", "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32,
    "vocab_size": 128, "num_attention_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": 4, "n_routed_experts": 16, "zero_expert_num": 8, "moe_topk": 3,
}  # fmt: skip

#: Sizes of LongCat-Flash, table 1 of https://arxiv.org/abs/2509.01322, as its config has them.
PUBLISHED = {
    "num_layers": 28, "hidden_size": 6144, "ffn_hidden_size": 12288, "expert_ffn_hidden_size": 2048, "vocab_size": 131072,
    "num_attention_heads": 64, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "n_routed_experts": 512, "zero_expert_num": 256, "moe_topk": 12,
}  # fmt: skip


def expert(c: dict[str, Any]) -> int:
    """Numbers of one expert: gate, up, down."""
    return 3 * c["hidden_size"] * c["expert_ffn_hidden_size"]


def in_layer(c: dict[str, Any]) -> int:
    """Numbers of a layer without its experts: two attentions, MLPs, pairs of norms, and the router with its bias."""
    D, heads, q, kv = c["hidden_size"], c["num_attention_heads"], c["q_lora_rank"], c["kv_lora_rank"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    attention = D * q + q + q * heads * (nope + rope) + D * (kv + rope) + kv + kv * heads * (nope + v) + heads * v * D
    return 2 * (attention + 3 * D * c["ffn_hidden_size"] + 2 * D) + router(c)


def router(c: dict[str, Any]) -> int:
    return (c["n_routed_experts"] + c["zero_expert_num"]) * c["hidden_size"]


def parameters(c: dict[str, Any]) -> int:
    """All numbers: layers, embedding, LM head, last norm. The bias of a router is a buffer."""
    D, V = c["hidden_size"], c["vocab_size"]
    return c["num_layers"] * (in_layer(c) + c["n_routed_experts"] * expert(c)) + 2 * V * D + D


@pytest.fixture(scope="module")
def longcat() -> ModelGraph:
    return capture(ModelConfig(name="small", data=SMALL), "bfloat16")["op"]


def totals(ops: OpGraph, context: int, batch: int = 1, query: int = 1) -> list[int]:
    found: list[int] = ops.costs(context, batch, query).sum(axis=1).tolist()
    return found


def test_experts_that_compute_nothing_have_no_weights(longcat: ModelGraph) -> None:
    assert longcat.parameters == parameters(SMALL)
    assert round(parameters(PUBLISHED) / 1e9) == 561  # "560-billion-parameter"


def test_each_layer_keeps_two_latent_caches(longcat: ModelGraph) -> None:
    token = 2 * 2 * (16 + 4) * 2  # layers, attentions, latent and rope, bytes
    for context, batch, query in ((0, 1, 1), (1000, 1, 1), (77, 5, 3)):
        costs = totals(longcat.step(batch, query), context, batch, query)
        assert costs[KV_READ] == batch * context * token
        assert costs[KV_WRITE] == batch * query * token
    assert longcat.layers == 2


def test_each_attention_waits_for_its_own_cache_alone(longcat: ModelGraph) -> None:
    ops = longcat.step().ops
    loads = {i: op.path for i, op in enumerate(ops) if op.kind == "kv_load"}
    assert list(loads.values()) == [f"model.layers.{layer}.self_attn.{n}" for layer in (0, 1) for n in (0, 1)]
    assert [sum(op.kind == kind for op in ops) for kind in ("k_up_proj", "v_up_proj")] == [4, 4]  # scales are no products
    for i, path in loads.items():
        assert {op.path for op in ops if i in op.inputs} == {path}


def test_a_lone_token_is_charged_for_the_experts_that_it_chooses_on_average(longcat: ModelGraph) -> None:
    """3 of 24 choices at random, 16 with weights: 2 on average. Of 12 of 768, 8, and 27 billion numbers, as published."""
    head, norm, embedded, bias = 128 * 64, 64, 64, 2 * 24
    read = 2 * (in_layer(SMALL) + 2 * expert(SMALL)) + head + norm + embedded
    assert totals(longcat.step(), 9)[WEIGHT] == (read + bias) * 2
    active = 28 * (in_layer(PUBLISHED) + 8 * expert(PUBLISHED)) + 131072 * 6144
    assert 26.5e9 < active < 27.5e9
    experts = longcat.experts
    assert experts is not None
    assert str(experts) == "3 of 16 + 8 idle"


def test_flops_of_a_choice_are_those_of_one_expert(longcat: ModelGraph) -> None:
    of = [op.experts for op in longcat.step().ops if op.experts is not None and op.layer == 0]
    assert sum(each.flops for each in of) == 2 * expert(SMALL)
    assert sum(each.bytes for each in of) == 2 * expert(SMALL)


def test_experts_in_a_format_are_whole_in_it(longcat: ModelGraph) -> None:
    """In fp8 a byte each: none of an expert stays as captured because some choices do no work."""
    ops = with_formats(longcat.step(), Formats(weights="fp8"), element=2)
    assert sum(op.experts.bytes for op in ops.ops if op.experts is not None and op.layer == 0) == expert(SMALL)
    found = sum(ops.costs(9)[WEIGHT, i] for i, op in enumerate(ops.ops) if op.experts is not None)
    assert found == 2 * 2 * expert(SMALL)  # layers, experts on average


def test_a_batch_reads_the_distinct_experts_with_weights() -> None:
    """B tokens that choose k of E experts each need, of w with weights, w (1 - (1 - k/E)^B) on average."""
    experts, batch, steps = Experts(count=768, top_k=12, bytes=1, idle=256), 16, 400
    shape = (batch, steps)
    sequence = np.arange(batch * steps).reshape(shape)
    tokens = Tokens.of(sequence, np.zeros(shape, np.int64), np.ones(shape, np.int64))
    distinct = counted(Uniform(0), experts, [0], tokens)[0]
    chosen = counted(Uniform(0), experts, [0], tokens, "chosen")[0]
    assert abs(distinct.mean() - 512 * (1 - (1 - 12 / 768) ** batch)) < 1
    assert abs(chosen.mean() - batch * 8) < 1
    assert distinct.max() <= chosen.max() < batch * 12


def test_a_graph_with_idle_experts_is_stored_and_read_again(longcat: ModelGraph) -> None:
    again = ModelGraph.from_json(longcat.to_json())
    assert all(again.variants[key] == ops for key, ops in longcat.variants.items())


@pytest.mark.parametrize("idle", [-1, 4])
def test_some_experts_have_weights(idle: int) -> None:
    with pytest.raises(ValueError, match="idle experts"):
        Experts(count=4, top_k=1, bytes=1, idle=idle)


@pytest.mark.slow
@pytest.mark.parametrize("expert", [1, 4])
def test_both_executors_count_them_alike_on_one_device_and_on_four(tmp_path: Path, expert: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "dtype": "bfloat16"}))
    written: dict[str, Any] = {
        "model": {"config": str(tmp_path / "config.json")},
        "workload": {"sequences": [{"context": 9, "tokens": 3, "count": 6}], "batching": "continuous"},
        "hardware": {"preset": "h100-sxm", "devices": {"count": expert}},
        "mapping": {"parallel": {"tensor": expert, "expert": expert}},
    }
    logs = [run(from_dict(written), executor=name).log for name in ("simpy", "compiled")]
    assert_same(*logs)
