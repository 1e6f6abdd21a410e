"""Pages of the KV cache against hand arithmetic, and against sets of pages counted one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import models.library
from sim.base.errors import InputError
from sim.base.units import ceil_div
from sim.machine.kv_cache import KVLayout, LayerGroup, layer_groups
from sim.runs.plan import Plan, plan
from sim.runs.run import run
from sim.scenario import from_dict
from sim.serving.batcher import Batcher
from sim.serving.loops import loops

GEMMA_3 = (LayerGroup(None, 4 * 1024), LayerGroup(512, 22 * 1024))  # a KV head of 256, keys and values, 2 B each
GPT_OSS = (LayerGroup(None, 12 * 2048), LayerGroup(128, 12 * 2048))  # 8 heads of 64


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        ("gemma-3-1b", GEMMA_3),
        ("gpt-oss-20b", GPT_OSS),
        ("gemma-2-2b", (LayerGroup(None, 13 * 4096), LayerGroup(4096, 13 * 4096))),  # 4 heads of 256
        ("mistral-7b-v0.1", (LayerGroup(4096, 32 * 4096),)),  # 8 heads of 128
        ("llama-3.1-8b", (LayerGroup(None, 32 * 4096),)),
        ("deepseek-v2-lite", (LayerGroup(None, 27 * (512 + 64) * 2),)),  # a latent and a rotated key
    ],
)
def test_windows_of_shipped_models(model: str, groups: tuple[LayerGroup, ...]) -> None:
    """By the config of each."""
    assert layer_groups(models.library.load(model).step()) == groups


def test_gemma_3_holds_its_windows() -> None:
    """4 of 26 layers keep 32,001 tokens, the others 512, by pages of 16: 2,001 pages, and 33 of which one is left in part."""
    assert KVLayout(1, GEMMA_3).held(32_000, 32_001, 1) == (4 * 32_001 + 22 * 512) * 1024 == 142_610_432
    assert KVLayout(16, GEMMA_3).held(32_000, 32_001, 1) == (4 * 2001 + 22 * 33) * 16 * 1024 == 143_032_320
    assert KVLayout(16, GEMMA_3).held(0, 32_001, 32_001) == 26 * 2001 * 16 * 1024  # in the step that prefills all of it
    # In a chunk of 1,024 after 30,976 tokens: 511 of the window and the new ones, from 30,465 on, in pages 1,904 to 1,999.
    assert KVLayout(16, GEMMA_3).held(30_976, 32_000, 1024) == (4 * 2000 + 22 * 96) * 16 * 1024


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (((None, 13), (4096, 13)), 4096 * (13 * 20_000 + 13 * 4096)),  # Gemma 2 at 20,000 tokens, a page of 4,096 B a token
        (((4096, 32),), 4096 * 32 * 4096),  # Mistral v0.1
        (((None, 32),), 4096 * 32 * 20_000),
    ],
)
def test_tokens_in_windows(groups: tuple[tuple[int | None, int], ...], expected: int) -> None:
    layout = KVLayout(1, tuple(LayerGroup(window, layers * 4096) for window, layers in groups))
    assert layout.held(19_999, 20_000, 1) == expected


def planned(model: str, workload: dict[str, Any], **memory: object) -> Plan:
    return plan(from_dict({
        "model": {"config": model}, "workload": workload,
        "hardware": {"preset": "h100-sxm", "engines": {"count": 1}, "memory": memory},
        "mapping": {
            "softmax": "online", "heads": "fused", "kv": "operands", "execution": "stream", "formats": {"weights": "bf16"},
        },
    }))  # fmt: skip


def admitted(plan: Plan) -> Batcher:
    """A batcher that has admitted what fits."""
    assert plan.setup.batching is not None
    batcher, *_ = loops(plan.setup.batching, plan.setup.sequences)
    assert batcher.next(0) is not None
    return batcher


@pytest.mark.parametrize(("full", "tokens"), [("wait", 1), ("recompute", 1), ("swap", 1), ("recompute", 64)])
def test_twice_as_many_sequences_of_gpt_oss_fit(full: str, tokens: int) -> None:
    """Count in 80 GB, beside 20.9e9 parameters of 2 B: 48 sequences of 32k tokens, 790 MB each; without windows 24."""
    found = planned("gpt-oss-20b", {
        "sequences": [{"context": 31_999, "tokens": tokens, "count": 64}],
        "batching": {"policy": "continuous", "kv": {"full": full}},
    })  # fmt: skip
    left = 80 * 10**9 - 2 * found.model.parameters
    each = 12 * 2048 * (32_000 + 16 * 8)  # from token 31,872 on: a window that begins with a page
    assert left // (24 * 2048 * 32_000) == 24
    batcher = admitted(found)
    assert len(batcher.running) == left // each == 48
    assert batcher.blocks.used == 48 * each


def test_a_prompt_takes_pages_that_its_chunks_do_not() -> None:
    """Whole, 32,000 tokens of gpt-oss-20b take pages in all layers; in chunks of 512 windows span 639 tokens, or 41 pages."""
    sequences = [{"prompt": 32_000, "tokens": 2, "count": 64}]
    batching = {"policy": "continuous", "max_tokens": 32_000}
    left = 80 * 10**9 - 2 * models.library.load("gpt-oss-20b").parameters
    whole = admitted(planned("gpt-oss-20b", {"sequences": sequences, "batching": batching}))
    assert len(whole.running) == left // (24 * 2048 * 32_016)
    chunked = planned("gpt-oss-20b", {"sequences": sequences, "batching": batching, "prefill": {"chunk": 512}})
    assert len(admitted(chunked).running) == left // (12 * 2048 * (32_016 + 41 * 16))


def test_the_check_counts_windows() -> None:
    """Mistral v0.1 keeps 4,096 tokens: 257 pages of 16 at most, of 131,072 B a token. A whole prompt needs 313."""
    batching = {"policy": "continuous", "kv": {"capacity": f"{257 * 16 * 131_072} B"}}
    sequences = [{"context": 5_000, "tokens": 40}]
    planned("mistral-7b-v0.1", {"sequences": sequences, "batching": batching})
    less = {"policy": "continuous", "kv": {"capacity": f"{257 * 16 * 131_072 - 1} B"}}
    text = r"sequence 0 ends with 5,040 tokens and takes up to 257 blocks \(4,112 tokens, 538.968 MB\), more than the 256 "
    with pytest.raises(InputError, match=text):
        planned("mistral-7b-v0.1", {"sequences": sequences, "batching": less})
    prompt = [{"prompt": 5_000, "tokens": 1}]
    with pytest.raises(InputError, match=r"takes up to 313 blocks .*; smaller chunks of its prompt would fit"):
        planned("mistral-7b-v0.1", {"sequences": prompt, "batching": batching})
    planned("mistral-7b-v0.1", {"sequences": prompt, "batching": batching, "prefill": {"chunk": 1}})
    one = {"policy": "continuous", "kv": {"capacity": "143032320 B"}}
    gemma = [{"context": 32_000, "tokens": 1}]
    planned("gemma-3-1b", {"sequences": gemma, "batching": one})
    with pytest.raises(InputError, match=r"takes up to 143.032 MB, more than the 143.032 MB"):
        planned("gemma-3-1b", {"sequences": gemma, "batching": {**one, "kv": {"capacity": "143032319 B"}}})


def test_blocks_of_an_engine_hold_as_many_tokens_as_it_logs() -> None:
    """vLLM logs 1,478 blocks of 16 for 3,099,590,656 B of Llama 3.1 8B, 131,072 B a token: 23,648 tokens, and no more."""
    batching = {"policy": "continuous", "kv": {"capacity": "3099590656 B", "block": 16}}
    planned("llama-3.1-8b", {"sequences": [{"prompt": 23_645, "tokens": 4}], "batching": batching})  # the last is not cached
    with pytest.raises(InputError, match=r"23,649 tokens in 1,479 blocks .*, more than the 1,478 blocks \(23,648 tokens"):
        planned("llama-3.1-8b", {"sequences": [{"prompt": 23_646, "tokens": 4}], "batching": batching})


def test_memory_of_sequences_that_are_not_batched() -> None:
    """At 32,001 tokens of Gemma 3 1B, 4 layers hold all and 22 the 511 that the next one would see."""
    weights, each = 2 * models.library.load("gemma-3-1b").parameters, (4 * 32_001 + 22 * 511) * 1024
    workload = {"sequences": [{"context": 32_000, "tokens": 1, "count": 2}]}
    planned("gemma-3-1b", workload, capacity=f"{weights + 2 * each} B")
    with pytest.raises(InputError, match=r"of KV cache at the final contexts are 1 B more"):
        planned("gemma-3-1b", workload, capacity=f"{weights + 2 * each - 1} B")


def test_series_of_bytes_count_windows() -> None:
    """One step of Gemma 3 1B: 32,000 tokens and a new one in 4 layers, 511 and a new one in 22."""
    found = run(from_dict({
        "model": {"config": "gemma-3-1b"}, "workload": {"sequences": [{"context": 32_000, "tokens": 1}]},
        "hardware": {"preset": "h100-sxm", "engines": {"count": 1}},
    })).series  # fmt: skip
    assert set(found.kv_tokens[:-1].tolist()) == {32_001}
    assert set(found.kv_bytes[:-1].tolist()) == {142_610_432}


@given(
    st.integers(1, 20), st.none() | st.integers(1, 60), st.integers(0, 200), st.integers(1, 90), st.integers(0, 90),
    st.integers(1, 90),
)  # fmt: skip
def test_pages_of_steps(block: int, window: int | None, cached: int, query: int, more: int, chunk: int) -> None:
    """Pages held are those that one step sees, never fewer than any later step needs, and never more on the way."""
    layout, plain = KVLayout(block, (LayerGroup(window, 3),)), KVLayout(block, (LayerGroup(None, 3),))

    def pages(begin: int, end: int) -> int:
        first = 0 if window is None else max(0, begin - (window - 1))
        return 3 * block * len({token // block for token in range(first, end)})

    assert layout.held(cached, cached + query, query) == pages(cached, cached + query)
    tokens = cached + query + more
    assert plain.held(cached, tokens, chunk) == 3 * block * ceil_div(tokens, block)
    assert layout.held(cached, tokens, chunk) <= plain.held(cached, tokens, chunk)
    before = layout.held(cached, tokens, chunk)
    assert before <= layout.held(cached, tokens + 1, chunk)
    assert before <= layout.held(cached, tokens, chunk + 1)
    while cached < tokens:
        end = min(cached + chunk, tokens)
        now = layout.held(cached, tokens, chunk)
        assert pages(cached, end) <= now <= before
        cached, before = end, now
