"""The shipped models against published parameter counts and KV bytes by hand, and new captures against shipped graphs."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.capture import capture
from models.config import MLA_FORMS, names, notes, resolve
from models.graph import QUANTITIES
from models.index import summaries
from models.library import encode, load, shipped_path
from models.ship import summary_of
from sim.machine.kv_cache import LayerGroup, layer_groups, state_bytes

ROOT = Path(__file__).parents[2]

#: Groups of layers: how many, bytes that each keeps of a token, and its window (below 0: its chunk).
#: K and V: 2 x KV heads x dim x width.
KV_CACHE = {
    "deepseek-v2-lite": [(27, (512 + 64) * 2, None)],  # the latent and the rotary part of the keys, once for all heads
    "deepseek-v3": [(61, (512 + 64) * 2, None)],
    "deepseek-v3.2": [(61, (512 + 64) * 2, 2048), (61, 128 * 2, None)],  # chosen rows, and the keys of the indexer
    "ernie-4.5-21b-a3b": [(28, 2 * 4 * 128 * 2, None)],
    "gemma-2-2b": [(13, 2 * 4 * 256 * 2, None), (13, 2 * 4 * 256 * 2, 4096)],
    "gemma-3-1b": [(4, 2 * 1 * 256 * 2, None), (22, 2 * 1 * 256 * 2, 512)],  # every sixth layer sees all
    "gemma-3n-e2b": [(4, 2 * 2 * 256 * 2, None), (16, 2 * 2 * 256 * 2, 512)],  # of 20 of its 30 layers
    "gemma-4-31b": [(10, 2 * 4 * 512 * 2, None), (50, 2 * 16 * 256 * 2, 1024)],  # every sixth layer sees all
    "glm-4.5-air": [(46, 2 * 8 * 128 * 2, None)],
    "glm-5": [(78, (512 + 64) * 2, 2048), (78, 128 * 2, None)],
    "granite-4.0-h-small": [(4, 2 * 8 * 128 * 2, None)],  # every tenth layer
    "kimi-k2": [(61, (512 + 64) * 2, None)],
    "gpt2": [(12, 2 * 12 * 64 * 4, None)],
    "gpt-oss-20b": [(12, 2 * 8 * 64 * 2, None), (12, 2 * 8 * 64 * 2, 128)],
    "gpt-oss-120b": [(18, 2 * 8 * 64 * 2, None), (18, 2 * 8 * 64 * 2, 128)],
    "jamba-v0.1": [(4, 2 * 8 * 128 * 2, None)],  # every eighth layer
    "llama-4-scout": [(12, 2 * 8 * 128 * 2, None), (36, 2 * 8 * 128 * 2, -8192)],  # three of four layers see a chunk
    "nemotron-h-8b": [(4, 2 * 8 * 128 * 2, None)],
    "olmo-3-7b": [(8, 2 * 32 * 128 * 2, None), (24, 2 * 32 * 128 * 2, 4096)],
    "llama-2-7b": [(32, 2 * 32 * 128 * 2, None)],
    "llama-3.1-70b": [(80, 2 * 8 * 128 * 2, None)],
    "llama-3.1-8b": [(32, 2 * 8 * 128 * 2, None)],
    "llama-3.2-1b": [(16, 2 * 8 * 64 * 2, None)],
    "llama-3.2-3b": [(28, 2 * 8 * 128 * 2, None)],
    "minimax-m2": [(62, 2 * 8 * 128 * 2, None)],
    "mistral-7b-v0.1": [(32, 2 * 8 * 128 * 2, 4096)],
    "mistral-small-3.1-24b": [(40, 2 * 8 * 128 * 2, None)],
    "mixtral-8x7b": [(32, 2 * 8 * 128 * 2, None)],
    "opt-1.3b": [(24, 2 * 32 * 64 * 2, None)],
    "phi-4": [(40, 2 * 10 * 128 * 2, None)],
    "phi-3-mini-4k": [(32, 2 * 32 * 96 * 2, 2047)],
    "qwen1.5-moe-a2.7b": [(24, 2 * 16 * 128 * 2, None)],
    "qwen2-1.5b": [(28, 2 * 2 * 128 * 2, None)],
    "qwen2.5-0.5b": [(24, 2 * 2 * 64 * 2, None)],
    "qwen3-0.6b": [(28, 2 * 8 * 128 * 2, None)],
    "qwen3.6-27b": [(16, 2 * 4 * 256 * 2, None)],  # every fourth layer
    "smollm3-3b": [(36, 2 * 4 * 128 * 2, None)],
    "qwen3-30b-a3b": [(48, 2 * 4 * 128 * 2, None)],
    "qwen3-next-80b-a3b": [(12, 2 * 2 * 256 * 2, None)],  # every fourth layer; the others keep states
}

#: Models with compressed caches; their bytes are in a test of their own.
COMPRESSED = ("deepseek-v4-flash",)

#: Groups of layers that read the cache of another, as often as that one does, and keep none.
SHARED_CACHE = {"gemma-3n-e2b": [(2, 2 * 2 * 256 * 2, None), (8, 2 * 2 * 256 * 2, 512)]}

#: Experts of a layer, how many each token chooses, layers with experts, and parameters of one expert.
EXPERTS = {
    "deepseek-v2-lite": (64, 6, 26, 3 * 2048 * 1408),  # the first layer has none
    "deepseek-v3": (256, 8, 58, 3 * 7168 * 2048),  # the first three have none
    "deepseek-v3.2": (256, 8, 58, 3 * 7168 * 2048),
    "deepseek-v4-flash": (256, 6, 43, 3 * 4096 * 2048),
    "ernie-4.5-21b-a3b": (64, 6, 27, 3 * 2560 * 1536),
    "glm-4.5-air": (128, 8, 45, 3 * 4096 * 1408),
    "glm-5": (256, 8, 75, 3 * 6144 * 2048),  # the first three have none
    "granite-4.0-h-small": (72, 10, 40, 3 * 4096 * 768),
    "kimi-k2": (384, 8, 60, 3 * 7168 * 2048),  # the first has none
    "jamba-v0.1": (16, 2, 16, 3 * 4096 * 14336),  # every other layer
    "llama-4-scout": (16, 1, 48, 3 * 5120 * 8192),
    "gpt-oss-120b": (128, 4, 36, 3 * 2880 * 2880 + 3 * 2880),
    "minimax-m2": (256, 8, 62, 3 * 3072 * 1536),
    "gpt-oss-20b": (32, 4, 24, 3 * 2880 * 2880 + 3 * 2880),  # with biases
    "mixtral-8x7b": (8, 2, 32, 3 * 4096 * 14336),
    "qwen1.5-moe-a2.7b": (60, 4, 24, 3 * 2048 * 1408),
    "qwen3-30b-a3b": (128, 8, 48, 3 * 2048 * 768),
    "qwen3-next-80b-a3b": (512, 10, 48, 3 * 2048 * 512),
}

#: Parameters that stay in float32 in a model of 16 bits.
WIDE = {"ernie-4.5-21b-a3b": 27 * 64 * (2560 + 1)}  # routers


@pytest.mark.parametrize("name", names())
def test_parameters(name):
    model = load(name)
    assert model.parameters == notes(name)["_parameters"]
    assert model.parameter_bytes == model.parameters * (4 if model.dtype == "float32" else 2) + 2 * WIDE.get(name, 0)


@pytest.mark.parametrize("name", [name for name in names() if name not in COMPRESSED])
def test_bytes_of_the_cache_before_and_beyond_the_windows(name):
    graph = load(name).step()
    for context in (0, 100, 127, 128, 511, 512, 4095, 4096, 20_000):
        kv_read, kv_write = graph.costs(context).sum(axis=1)[[QUANTITIES.index("kv_read"), QUANTITIES.index("kv_write")]]
        # A window of W holds W - 1 tokens, and the new one.
        readers = KV_CACHE[name] + SHARED_CACHE.get(name, [])
        assert kv_read == sum(n * size * _seen(context, window) for n, size, window in readers)
        assert kv_write == sum(n * size for n, size, _ in KV_CACHE[name])


def test_bytes_of_the_cache_of_deepseek_v4() -> None:
    """2 layers have a window alone; 21 choose 512 rows of 4 tokens, by keys of 128 values; 20 read all rows of 128 tokens."""
    step = load("deepseek-v4-flash").step()
    row, key, csa, hca = 512 * 2, 128 * 2, 2 * (2 * 512 + 2 * 128) * 2, 2 * 512 * 2  # the last two: of a token in the buffers
    for N in (3, 100, 127, 2046, 2047, 131_071, 131_072, 131_073):
        ends, ends_hca = (N + 1) % 4 == 0, (N + 1) % 128 == 0
        recent = min(N, 127) * row
        of_csa = (min(512, (N + 1) // 4) - ends) * row + N // 4 * key + ends * (3 * csa + 2 * csa)
        of_hca = N // 128 * row + ends_hca * 127 * hca
        read, written = step.costs(N).sum(axis=1)[[QUANTITIES.index("kv_read"), QUANTITIES.index("kv_write")]]
        assert read == 43 * recent + 21 * of_csa + 20 * of_hca
        assert written == 43 * row + 21 * (csa + ends * (row + key + 2 * csa)) + 20 * (hca + ends_hca * row)
    assert layer_groups(step) == (
        LayerGroup(None, 21 * (row + key), 4),
        LayerGroup(None, 20 * row, 128),
        LayerGroup(128, 43 * row),
    )
    assert state_bytes(step) == 21 * (4 * csa + 2 * csa) + 20 * 128 * hca == 5_888_000


def test_a_step_of_gemma_3n_reads_the_caches_that_layers_share() -> None:
    """At 32,000 tokens 6 of 30 layers read all of them and 24 a window of 512, of two heads of 256; 20 keep what they read."""
    costs = load("gemma-3n-e2b").step().costs(32_000).sum(axis=1)
    assert costs[QUANTITIES.index("kv_read")] == (6 * 32_000 + 24 * 511) * 2048 == 418_332_672
    assert costs[QUANTITIES.index("kv_write")] == 20 * 2048


def _seen(context: int, window: int | None) -> int:
    """Cached tokens that the next one sees."""
    if window is None:
        return context
    return context % -window if window < 0 else min(context, window - 1)


@pytest.mark.parametrize("name", names())
def test_experts(name):
    model = load(name)
    for (many, several), graph in model.variants.items():
        found = [(op.layer, op.experts) for op in graph.ops if op.experts is not None]
        if name not in EXPERTS:
            assert not found
            continue
        count, top_k, layers, parameters = EXPERTS[name]
        assert {(e.count, e.top_k) for _, e in found} == {(count, top_k)}
        assert len({layer for layer, _ in found}) == layers
        assert sum(e.bytes for _, e in found) == layers * parameters * 2
        B, Q = 3 if many else 1, 5 if several else 1
        weight = graph.costs(50, B, Q)[QUANTITIES.index("weight")]
        chosen = sum(int(w) for w, op in zip(weight, graph.ops, strict=True) if op.experts is not None)
        assert chosen == layers * parameters * 2 * top_k * B * Q  # of every choice


@pytest.mark.parametrize("name", names())
def test_learned_positions(name):
    assert load(name).positions == {"gpt2": 1024, "opt-1.3b": 2048}.get(name)


def test_the_index_has_the_shipped_models_in_order():
    assert tuple(summaries()) == names()


@pytest.mark.parametrize("name", names())
def test_the_index_agrees_with_the_graph(name):
    assert summaries()[name] == summary_of(load(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [(name, MLA_FORMS[0]) for name in names()] + [("deepseek-v2-lite", "expanded"), ("deepseek-v3", "expanded")],
)
def test_a_capture_gives_the_shipped_graph(name, form):
    stored = json.loads(gzip.decompress(shipped_path(name, "op", form).read_bytes()))
    now = json.loads(gzip.decompress(encode(capture(resolve(name), mla=form)["op"])))
    for library in ("torch", "transformers"):
        stored["provenance"].pop(library)
        now["provenance"].pop(library)
    assert now == stored


@pytest.mark.slow
def test_a_capture_is_the_same_whatever_the_order_of_sets():
    """Gemma 3 makes its two rotary tables in the order of a set of names, which differs in each process of Python."""
    program = (
        "import hashlib; from model_families import small; from models.capture import capture; "
        "from models.library import encode; "
        "graphs = capture(small('gemma3_text')); print([hashlib.sha256(encode(g)).hexdigest() for g in graphs.values()])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
        ).stdout
        for seed in "0123"
    }  # fmt: skip
    assert len(told) == 1
