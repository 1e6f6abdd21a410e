"""Pairs that masks let through: against counting them one by one, in boolean masks and in those of the real models."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface, PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.masking_utils import eager_mask

import models.library
from models.cache import append_cache
from models.capture import arguments, build, capture
from models.config import ModelConfig
from models.decoder import hf_config
from models.graph import ModelGraph, OpGraph
from models.masks import CAUSAL, CHUNKED, PREFIX, WINDOW, Mask, pairs
from models.rewrites import fuse
from tests.models.model_families import captured, small

ATTENTION = ("scores", "softmax", "weighted_values", "attention")


def counted(mask: Mask, query: int, context: int) -> int:
    """Entries of the boolean mask [query, key], written down from the definition of each mask."""
    key, position = np.arange(context + query)[None, :], context + np.arange(query)[:, None]
    seen = key <= position
    if mask.kind == WINDOW or (mask.kind == PREFIX and mask.size):
        seen &= key > position - mask.size
    if mask.kind == CHUNKED:
        seen &= key // mask.size == position // mask.size
    if mask.kind == PREFIX and context == 0:  # the prompt
        seen |= key < query
    return int(seen.sum())


MASKS = st.one_of(st.just(Mask(CAUSAL)), st.builds(Mask, st.sampled_from([WINDOW, CHUNKED]), st.integers(1, 40)))
WITH_PREFIX = st.one_of(MASKS, st.builds(Mask, st.just(PREFIX), st.integers(0, 40)))


@given(WITH_PREFIX, st.integers(0, 60), st.integers(0, 100))
def test_pairs_are_those_of_the_boolean_mask(mask: Mask, query: int, context: int) -> None:
    assert pairs(*mask, query, context) == counted(mask, query, context)


@given(MASKS, st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 50))
def test_a_prompt_has_as_many_pairs_in_parts_as_whole(mask: Mask, parts: list[int], context: int) -> None:
    query = np.array(parts)
    before = context + np.cumsum(query) - query
    assert pairs(*mask, query, before).sum() == pairs(*mask, sum(parts), context)


def test_pairs_of_long_contexts_fit_int64() -> None:
    """A prompt of a million tokens after fifteen million: 15.5 million keys on average."""
    long = pairs(CAUSAL, 0, np.array([10**6]), np.array([15 * 10**6]))
    assert long.tolist() == [sum((15_000_000 * 10**6, 10**6 * (10**6 + 1) // 2))]


#: Windows and chunks are 6 tokens: before they are full, when they become so, and beyond; and more tokens than they hold.
STEPS = [(2, 0), (4, 3), (9, 0), (3, 4), (5, 6), (20, 17), (7, 5)]
KINDS = {"llama": {CAUSAL}, "gpt_oss": {WINDOW, CAUSAL}, "llama4_text": {CHUNKED}}
MORE_KINDS = {
    "gemma3_text": {WINDOW, CAUSAL}, "gemma2": {WINDOW, CAUSAL}, "mistral": {WINDOW}, "cohere2": {WINDOW},
    "exaone4": {WINDOW, CAUSAL}, "deepseek_v3": {CAUSAL}, "opt": {CAUSAL}, "phi3": {CAUSAL},
}  # fmt: skip


@pytest.mark.parametrize("family", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_KINDS)])
def test_the_masks_of_real_models_let_as_many_pairs_through(family: str) -> None:
    """The model runs on the CPU with the mask that transformers makes: by layer, as many entries as the costs count pairs."""
    graph = captured(family)["op"]
    decode = fuse(graph.step(), element=4, softmax="online", chunked=graph.chunked)
    assert decode.masks == ((Mask(CHUNKED, 6),) if graph.chunked else ())  # of chunks, one new token sees some pairs, too
    ops = fuse(graph.step(1, 2), element=4, softmax="online", chunked=graph.chunked)
    assert {mask.kind for mask in ops.masks} == {**KINDS, **MORE_KINDS}[family]
    for query, context in STEPS:
        real = unmasked(family, query, context)
        found = [pairs_of(ops, i, query, context) for i, op in enumerate(ops.ops) if op.kind == "attention"]
        assert found == real, (query, context)


def test_a_prompt_of_paligemma_sees_itself_whole() -> None:
    """The whole wrapper runs on the CPU with its prompt marked as prefix, as its processor does; then the answer."""
    text = small("gemma2").data
    config = ModelConfig(name="prefix", data={"model_type": "paligemma", "text_config": text})
    graph = capture(config)["op"]
    assert graph.prefix
    assert ModelGraph.from_json(json.loads(json.dumps(graph.to_json()))).prefix
    ops = fuse(graph.step(1, 2), element=2, softmax="online", prefix=True)
    assert ops.masks == (Mask(PREFIX, 6), Mask(PREFIX))
    vision = dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim", "image_size"), 16)
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    made = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_id=96)
    for query, context in [(2, 0), (9, 0), (20, 0), (3, 4), (5, 9)]:
        seen = count_pairs()
        model = PaliGemmaForConditionalGeneration._from_config(made, attn_implementation="counting").eval()
        cache = append_cache(made.text_config, context, lambda _, shape, past, like: torch.zeros(shape, dtype=like.dtype))
        with torch.no_grad():
            model(
                input_ids=torch.ones(1, query, dtype=torch.long), token_type_ids=torch.zeros(1, query, dtype=torch.long),
                attention_mask=torch.ones(1, context + query), past_key_values=cache if context else None,
            )  # fmt: skip
        found = [pairs_of(ops, i, query, context, of_two=4) for i, op in enumerate(ops.ops) if op.kind == "attention"]
        assert found == [seen[layer] for layer in sorted(seen)], (query, context)
        assert context or found == [query**2] * 2


def test_whether_layers_have_chunks_is_kept_with_a_graph() -> None:
    """Other graphs are stored as ever; one without hidden pairs is read back with its masks."""
    llama4, llama = (captured(name)["op"] for name in ("llama4_text", "llama"))
    assert ModelGraph.from_json(json.loads(json.dumps(llama4.to_json()))).chunked
    assert "chunked" not in llama.to_json()
    assert not ModelGraph.from_json(json.loads(json.dumps(llama.to_json()))).chunked
    fused = fuse(llama.step(1, 2), element=4, softmax="online")
    assert fused.masks == (Mask(CAUSAL),)
    assert OpGraph.from_json(json.loads(json.dumps(fused.to_json())), llama.kv_heads) == fused


def pairs_of(ops: OpGraph, attention: int, query: int, context: int, *, of_two: int = 3) -> int:
    """Pairs for which an attention multiplies: its FLOPs by those of one pair, of which a prompt of two tokens has `of_two`."""
    first, rest = divmod(int(ops.costs(0, 1, 2)[0, attention]), of_two)
    assert not rest
    found, rest = divmod(int(ops.costs(context, 1, query)[0, attention]), first)
    assert not rest
    return found


def unmasked(family: str, query: int, context: int) -> list[int]:
    """Entries that the mask of each layer lets through, [layer], in a step of the real model."""
    seen = count_pairs()
    model = build(hf_config(small(family)), "float32", "cpu", "counting")
    text = model.config.get_text_config(decoder=True)
    cache = append_cache(text, context, lambda _, shape, past, like: torch.zeros(shape, dtype=like.dtype))
    with torch.no_grad():
        model(**arguments(model, (1, query, context), cache))
    return [seen[layer] for layer in sorted(seen)]


def count_pairs() -> dict[int, int]:
    """The entries that masks let through, by layer, once a model with the attention `counting` runs."""
    seen: dict[int, int] = {}

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
        del k, options
        layer = module.layer_idx
        seen[layer] = int((mask[0, 0] == 0).sum())
        return torch.zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]), None

    AttentionInterface.register("counting", attend)
    AttentionMaskInterface.register("counting", eager_mask)
    return seen


def attention_flops(name: str, prompt: int, softmax: str) -> int:
    graph = models.library.load(name)
    ops = fuse(graph.step(1, 2), element=2, softmax=softmax)  # type: ignore[arg-type]
    return flops_of(ops, ATTENTION, prompt)


def flops_of(ops: OpGraph, kinds: tuple[str, ...], prompt: int, context: int = 0) -> int:
    chosen = [i for i, op in enumerate(ops.ops) if op.kind in kinds]
    return int(ops.costs(context, 1, prompt)[0, chosen].sum())


def by_hand(prompt: int, heads: int, head_dim: int, windows: dict[int | None, int]) -> int:
    """FLOPs of attention to a prompt: two products for each visible pair. windows: layers by window, None for all keys."""
    seen = {w: sum(min(i, w or prompt) for i in range(1, prompt + 1)) for w in windows}
    return sum(4 * heads * head_dim * layers * seen[w] for w, layers in windows.items())


@pytest.mark.parametrize("softmax", ["fused", "online"])
def test_gemma_3_1b_attends_to_a_prompt_of_16384_in_2_9_teraflop(softmax: str) -> None:
    """Its config: 26 layers, every sixth of them global (4), 22 with a window of 512; 4 heads of 256."""
    flops = attention_flops("gemma-3-1b", 16384, softmax)
    assert flops == by_hand(16384, 4, 256, {None: 4, 512: 22})
    assert round(flops / 1e12, 1) == 2.9
    assert attention_flops("gemma-3-1b", 16384, "three_pass") == 26 * 4 * 4 * 256 * 16384**2  # 28.6 TFLOP: all pairs


@pytest.mark.parametrize("softmax", ["fused", "online"])
@pytest.mark.parametrize("context", [0, 1000, 2040, 4000])
@pytest.mark.parametrize("prompt", [2, 8, 2048, 5000])
def test_queries_with_an_index_attend_to_the_tokens_that_they_choose(prompt: int, context: int, softmax: str) -> None:
    """DeepSeek-V3.2: the query at position t attends to min(t, 2048) tokens in latent form, by keys of 512 + 64 numbers."""
    captured = models.library.load("deepseek-v3.2").step(1, 2).select(4)
    ops = fuse(captured, element=2, softmax=softmax)  # type: ignore[arg-type]
    assert ops.masks == (Mask(WINDOW, 2048),)
    pairs_seen = sum(min(t, 2048) for t in range(context + 1, context + prompt + 1))
    flops = {kind: flops_of(ops, (kind,), prompt, context) for kind in (*ATTENTION, "indexer")}
    assert sum(flops[kind] for kind in ATTENTION) == 4 * 128 * 2 * (512 + 64 + 512) * pairs_seen
    # The indexer multiplies, and adds up over its 64 heads, for all pairs.
    assert flops["indexer"] == 4 * 64 * (2 * 128 + 2) * prompt * (context + prompt)
    masks = [[graph.costs(context, 1, prompt)[:, op].tolist() for op, each in enumerate(graph.ops) if each.kind == "mask"]
             for graph in (captured, ops)]  # fmt: skip
    assert masks[0] == masks[1], "the indexer reads the mask of all tokens"


#: By their configs: heads, size of a head, layers by window.
WINDOWED = {
    "mistral-7b-v0.1": (32, 128, {4096: 32}),
    "gemma-2-2b": (8, 256, {4096: 13, None: 13}),
    "gpt-oss-20b": (64, 64, {128: 12, None: 12}),
    "llama-3.2-1b": (32, 64, {None: 16}),
}


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("prompt", [2, 4096, 5000, 16384])
def test_attention_to_a_prompt_of_models_with_windows(name: str, prompt: int) -> None:
    for softmax in ("fused", "online"):
        assert attention_flops(name, prompt, softmax) == by_hand(prompt, *WINDOWED[name])


def test_mistral_7b_attends_to_16384_tokens_with_4_6_times_fewer_flops() -> None:
    """All pairs over those in a window: P^2 / (W (W + 1) / 2 + (P - W) W) with P = 4 W is 16 / 3.5 = 4.57."""
    every, some = (attention_flops("mistral-7b-v0.1", 16384, softmax) for softmax in ("three_pass", "online"))
    assert round(every / some, 1) == 4.6
