"""Many families, captured with the same code; the error for any other says why it cannot be captured."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from itertools import product

import pytest
from model_families import FAMILIES, OWN_ATTENTION, captured, small

from models import latent, own_attention
from models.cache import windows
from models.capture import VARIANTS, build, capture, record
from models.decoder import hf_config
from models.graph import QUANTITIES, OpGraph
from sim.base.errors import InputError

SOFTMAX = {"scores", "softmax_max", "softmax_exp", "softmax_norm", "weighted_values"}

REFUSED = {
    "bert": "encoder-only",
    "roberta": "encoder-only",
}

#: Default configs that transformers itself cannot use, or code that looks at its data.
UNUSABLE = {"dbrx"}

#: Families with states, which `test_model_states` is about.
STATES = {"mamba", "minimax"}

FAST = ["gpt2", "opt", "phi3", "gemma2", "mixtral", "deepseek_v3"]
SLOW = sorted(set(FAMILIES) - set(FAST) - set(REFUSED) - UNUSABLE - STATES)


def points(key: tuple[bool, bool]) -> list[tuple[int, int, int]]:
    B, Q = (4 if key[0] else 1), (5 if key[1] else 1)
    return [(B, Q, 3), (B, Q, 23)]


@pytest.mark.parametrize("family", [*FAST, *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW)])
def test_a_family(family):
    config = small(family)
    graphs = captured(family)
    own = {"attention_name": own_attention.NAME} if family in OWN_ATTENTION else {}
    model = build(hf_config(config), "float32", **own)
    latent.keep(model, "latent")
    assert graphs["op"].parameter_bytes == 4 * graphs["op"].parameters == 4 * sum(p.numel() for p in {*model.parameters()})
    for key in VARIANTS:
        grouped, raw = graphs["op"].variants[key], graphs["aten"].variants[key]
        kinds = {op.kind for op in grouped.ops}
        assert SOFTMAX | {"kv_load", "kv_store", "o_proj", "lm_head", "embedding", "norm"} <= kinds
        assert {"q_proj", "qkv_proj"} & kinds
        for B, Q, N in points(key):
            fresh = record(model, (B, Q, N))  # a capture where none was made before
            assert raw.costs(N, B, Q).T.tolist() == [list(node.costs) for node in fresh.nodes]
            assert [evaluate(op.shape, B, Q, N) for op in raw.ops] == [node.shape for node in fresh.nodes]
            assert grouped.costs(N, B, Q).sum(axis=1).tolist() == raw.costs(N, B, Q).sum(axis=1).tolist()


def evaluate(shape: tuple[str, ...], B: int, Q: int, N: int) -> tuple[int, ...]:
    return tuple(int(eval(dim, {"B": B, "Q": Q, "N": N, "min": min})) for dim in shape)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_the_error_of_a_failed_capture_is_one_line_with_the_reason(family):
    with pytest.raises(InputError, match=REFUSED[family]) as caught:
        capture(small(family))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", sorted(UNUSABLE))
def test_what_transformers_cannot_run_is_an_error_in_one_line(family):
    with pytest.raises(InputError) as caught:
        capture(small(family))
    assert "\n" not in str(caught.value)


def test_an_unknown_model_type():
    with pytest.raises(InputError, match=r"unknown model_type 'lama'.*did you mean 'llama'"):
        capture(small("lama"))


def test_an_unknown_model_type_names_only_the_nearest():
    with pytest.raises(InputError, match=r"^small: unknown model_type '(lama)+m?\w*\.\.\.'") as caught:
        capture(replace(small("lama" * 1000), name="small"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("family", "changes"), [("gpt2", {"bos_token_id": 10**6}), ("llama", {"hidden_size": 33})])
def test_transformers_prints_nothing(family, changes):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    try:
        with suppress(InputError):
            capture(small(family, **changes))
    finally:
        logger.removeHandler(handler)
    assert records == []
    assert logger.level == level


def test_a_model_type_that_does_not_decode():
    with pytest.raises(InputError, match="'vit' is not a causal language model"):
        capture(small("vit"))


def test_a_config_that_transformers_rejects():
    with pytest.raises(InputError, match="transformers rejects the config"):
        capture(small("llama", hidden_size=33))


def test_a_window_holds_the_cache_at_its_width_less_one():
    config = small("mistral", num_hidden_layers=1)
    graph = capture(config)["op"].step()
    assert windows(build(hf_config(config), "float32").config) == [6]
    assert graph.breaks == (5,)
    per_token = 2 * 2 * 8 * 4  # K and V, 2 heads of 8, 4 bytes
    assert [kv_read(graph, n) for n in range(1, 9)] == [per_token * min(n, 5) for n in range(1, 9)]
    assert next(op for op in graph.ops if op.kind == "scores").shape[-1] == "min(N,5)+1"


def kv_read(graph: OpGraph, context: int) -> int:
    return int(graph.costs(context)[QUANTITIES.index("kv_read")].sum())


@pytest.mark.parametrize("key", VARIANTS)
def test_experts_read_the_weights_that_they_gather(key):
    graph = captured("mixtral", num_hidden_layers=1)["op"].variants[key]
    B, Q, N = points(key)[0]
    cost = dict(zip([f"{op.kind}:{op.part}" for op in graph.ops], graph.costs(N, B, Q).T.tolist(), strict=True))
    rows = 2 * B * Q  # two experts for each token
    flops, vector_ops, weight, *_ = cost["gate_up_proj:experts"]
    assert (flops, vector_ops, weight) == (rows * 2 * 2 * 48 * 32, 0, rows * 2 * 48 * 32 * 4)
    assert cost["down_proj:experts"][2] == rows * 48 * 32 * 4
    assert cost["down_proj:experts"][5] == rows * 48 * 4 + 8 * rows  # the activations and the experts' numbers


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "llama", "mixtral", "gpt2"])
def test_selecting_layers_is_capturing_fewer(family):
    whole = captured(family, num_hidden_layers=3)
    for layers in (1, 2):
        fewer = captured(family, num_hidden_layers=layers)
        for granularity, key in product(whole, VARIANTS):
            selected, real = whole[granularity].variants[key].select(layers=layers), fewer[granularity].variants[key]
            assert [bare(op) for op in selected.ops] == [bare(op) for op in real.ops]
            for B, Q, N in points(key):
                assert (selected.costs(N, B, Q) == real.costs(N, B, Q)).all()


def bare(op):
    return op.kind, op.path, op.layer, op.part, op.heads, op.dtype, op.shape, op.inputs


def test_a_capture_reports_its_parts():
    seen = []
    capture(small("mistral", num_hidden_layers=1), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)]  # four variants, before and beyond the window


def test_a_block_alone_has_nothing_from_outside():
    whole = captured("llama")["op"].step()
    block = whole.select(layers=1, scope="block")
    assert {op.layer for op in block.ops} == {0}
    assert len(block.ops) == 21
