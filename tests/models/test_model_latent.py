"""Multi-head latent attention: contents of its cache, costs of its steps, and equal results with absorbed projections."""

from __future__ import annotations

import pytest
import torch
from model_families import captured, small
from model_replay import real_model, real_step, replay

from models import latent
from models.cache import append_cache
from models.capture import build, step
from models.config import MLA_FORMS
from models.decoder import hf_config
from models.graph import QUANTITIES, OpGraph
from models.library import keeps_latents, load
from models.recorder import Recorder
from sim.base.errors import InputError

#: layers, hidden, heads, rank of the latents, and the head dims: without positions, rotary, values.
V2_LITE = (27, 2048, 16, 512, 128, 64, 128)
V3 = (61, 7168, 128, 512, 128, 64, 128)


def totals(graph: OpGraph, context: int, batch: int = 1, query: int = 1) -> dict[str, int]:
    return dict(zip(QUANTITIES, graph.costs(context, batch, query).sum(axis=1).tolist(), strict=True))


def by_kind(graph: OpGraph, layer: int, context: int, batch: int = 1, query: int = 1) -> dict[str, dict[str, int]]:
    costs = graph.costs(context, batch, query).T.tolist()
    return {op.kind: dict(zip(QUANTITIES, c, strict=True)) for op, c in zip(graph.ops, costs, strict=True) if op.layer == layer}


@pytest.mark.parametrize(("name", "shape"), [("deepseek-v2-lite", V2_LITE), ("deepseek-v3", V3)])
def test_bytes_of_the_cache(name, shape):
    layers, _, heads, rank, nope, rope, value = shape
    held = {form: totals(load(name, mla=form).step(), 1000) for form in MLA_FORMS}
    assert held["latent"]["kv_read"] == 1000 * layers * (rank + rope) * 2  # once for all heads
    assert held["expanded"]["kv_read"] == 1000 * layers * heads * (nope + rope + value) * 2
    for form in MLA_FORMS:
        assert held[form]["kv_write"] == held[form]["kv_read"] // 1000


def test_an_expanded_cache_of_deepseek_v3_is_71_times_the_latent_one():
    latents, expanded = (totals(load("deepseek-v3", mla=form).step(), 0)["kv_write"] for form in MLA_FORMS)
    assert latents == 61 * 576 * 2 == 70_272  # 70 KB a token: DeepSeek-V3 technical report, section 2.1.1, 2 bytes a value
    assert expanded == 61 * 128 * 320 * 2 == 4_997_120
    assert expanded / latents == pytest.approx(71.1, abs=0.02)


@pytest.mark.parametrize(("name", "shape"), [("deepseek-v2-lite", V2_LITE), ("deepseek-v3", V3)])
@pytest.mark.parametrize(("batch", "query", "context"), [(1, 1, 4096), (8, 1, 700), (1, 512, 0), (3, 5, 77)])
def test_arithmetic_of_the_attention(name, shape, batch, query, context):
    _, _, heads, rank, nope, rope, value = shape
    tokens, pairs = batch * query, batch * query * (context + query)
    absorbed = by_kind(load(name).step(batch, query), 4, context, batch, query)
    assert absorbed["scores"]["flops"] == 2 * heads * (rank + rope) * pairs
    assert absorbed["weighted_values"]["flops"] == 2 * heads * rank * pairs
    assert absorbed["k_up_proj"]["flops"] == 2 * heads * nope * rank * tokens
    assert absorbed["v_up_proj"]["flops"] == 2 * heads * value * rank * tokens
    expanded = by_kind(load(name, mla="expanded").step(batch, query), 4, context, batch, query)
    assert expanded["scores"]["flops"] == 2 * heads * (nope + rope) * pairs
    assert expanded["weighted_values"]["flops"] == 2 * heads * value * pairs
    assert "k_up_proj" not in expanded


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3"])
def test_either_way_every_weight_is_read_once(name):
    forms = [load(name, mla=form) for form in MLA_FORMS]
    assert len({model.parameters for model in forms}) == 1
    for batch, query in ((1, 1), (4, 1), (2, 3)):
        read = {totals(model.step(batch, query), 50, batch, query)["weight"] for model in forms}
        assert len(read) == 1
    up = by_kind(forms[0].step(), 4, 50)
    shape = V3 if name == "deepseek-v3" else V2_LITE
    _, _, heads, rank, nope, _, value = shape
    assert (up["k_up_proj"]["weight"], up["v_up_proj"]["weight"]) == (heads * nope * rank * 2, heads * value * rank * 2)


@pytest.mark.parametrize("form", MLA_FORMS)
@pytest.mark.parametrize("family", ["deepseek_v3", pytest.param("deepseek_v2", marks=pytest.mark.slow)])
def test_no_op_but_attention_grows_with_the_context(family, form):
    graph = captured(family, mla=form)["op"].step()
    near, far = graph.costs(10).T.tolist(), graph.costs(500).T.tolist()
    grow = {op.kind for op, a, b in zip(graph.ops, near, far, strict=True) if a != b}
    assert grow == {"kv_load", "scores", "softmax_max", "softmax_exp", "softmax_norm", "weighted_values"}


@pytest.mark.parametrize("family", ["deepseek_v3", pytest.param("deepseek_v2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("batch", "query", "context"), [(1, 1, 9), (2, 3, 9), (3, 1, 4)])
@pytest.mark.parametrize("form", MLA_FORMS)
def test_both_ways_give_the_logits_of_the_model(family, form, batch, query, context):
    config = small(family)
    tokens = torch.randint(3, 90, (batch, query), generator=torch.Generator().manual_seed(1))
    latents = {}  # layer -> latents and rotary keys of the past

    def rows(layer, which, like):
        generator = torch.Generator().manual_seed(10 * layer + which)
        made = torch.randn(batch, 1, context, like, generator=generator)
        latents.setdefault(layer, {})[which] = made
        return made

    def run(model, expand=None):
        def allocate(layer, shape, past, like):
            buffer = torch.full(shape, float("nan"))
            which = len(held.setdefault(layer, []))
            held[layer].append(buffer)
            kept = expand[layer](rows(layer, 0, 16), rows(layer, 1, 4))[which] if expand else rows(layer, which, shape[-1])
            buffer.narrow(-2, 0, past).copy_(kept)
            return buffer

        held = {}
        recorder = Recorder(model, 2)
        cache = append_cache(model.config, context, allocate, latent.expansions(model))
        return step(model, recorder, (batch, query, context), cache, tokens)

    # transformers' own code: its eager attention, and its own expansion of every latent at every step.
    expected = run(real_model(config, "eager"))
    original = {m.layer_idx: m.expand_kv for m in real_model(config, "eager").modules() if hasattr(m, "expand_kv")}
    model = real_model(config, "decode_sim")
    assert latent.keep(model, form)
    with torch.no_grad():
        logits = run(model, original if form == "expanded" else None)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_absorbed_ops_in_any_order_give_the_logits():
    config, graphs = small("deepseek_v3"), captured("deepseek_v3")
    real = real_step(config, 2, 3, 9)
    for granularity, model in graphs.items():
        logits = replay(real, model.step(2, 3), granularity, seed=2)
        torch.testing.assert_close(logits, real.logits, rtol=1e-5, atol=1e-6)


def test_a_model_without_latent_attention_has_no_choice():
    assert not keeps_latents(load("llama-3.2-1b"))
    assert load("llama-3.2-1b", mla="expanded") == load("llama-3.2-1b")
    assert keeps_latents(load("deepseek-v2-lite", mla="expanded"))
    with pytest.raises(InputError, match=r"unknown form of latent attention 'latents'.*did you mean 'latent'"):
        load("llama-3.2-1b", mla="latents")
    model = build(hf_config(small("llama")), "float32")
    assert not latent.keep(model, "expanded")
    assert latent.expansions(model) == {}
