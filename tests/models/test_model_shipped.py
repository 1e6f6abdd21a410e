"""The shipped models against published parameter counts and KV bytes by hand, and afresh against what is shipped."""

from __future__ import annotations

import gzip
import json

import pytest

from models.capture import capture
from models.config import names, notes, resolve
from models.library import encode, load, shipped_path
from sim.graph import QUANTITIES

#: Bytes that one more token of context adds to a step: 2 (K and V) x layers x KV heads x head dim x width.
KV_BYTES_PER_TOKEN = {
    "deepseek-v2-lite": 27 * (512 + 64) * 2,  # the latent and the rope part of the keys, once for all heads
    "gemma-2-2b": 2 * 26 * 4 * 256 * 2,
    "gpt2": 2 * 12 * 12 * 64 * 4,
    "llama-2-7b": 2 * 32 * 32 * 128 * 2,
    "llama-3.1-8b": 2 * 32 * 8 * 128 * 2,
    "llama-3.2-1b": 2 * 16 * 8 * 64 * 2,
    "llama-3.2-3b": 2 * 28 * 8 * 128 * 2,
    "mistral-7b-v0.1": 2 * 32 * 8 * 128 * 2,
    "mixtral-8x7b": 2 * 32 * 8 * 128 * 2,
    "opt-1.3b": 2 * 24 * 32 * 64 * 2,
    "phi-3-mini-4k": 2 * 32 * 32 * 96 * 2,
    "qwen2.5-0.5b": 2 * 24 * 2 * 64 * 2,
    "qwen3-0.6b": 2 * 28 * 8 * 128 * 2,
    "qwen3-30b-a3b": 2 * 48 * 4 * 128 * 2,
}


@pytest.mark.parametrize("name", names())
def test_parameters_and_kv_bytes(name):
    model = load(name)
    assert model.parameters == notes(name)["_parameters"]
    assert model.parameter_bytes == model.parameters * (4 if model.dtype == "float32" else 2)
    kv_read = model.step().costs(1000)[QUANTITIES.index("kv_read")].sum()
    assert kv_read == 1000 * KV_BYTES_PER_TOKEN[name]


def test_beyond_its_window_a_layer_reads_no_more():
    model = load("gemma-2-2b")  # every other of its 26 layers has a window of 4096
    kv_read = [int(model.step().costs(n)[QUANTITIES.index("kv_read")].sum()) for n in (4095, 4096, 8000)]
    per_layer = 2 * 4 * 256 * 2
    assert kv_read == [13 * per_layer * (4095 + n) for n in (4095, 4096, 8000)]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_capture_gives_the_shipped_graph(name):
    stored = json.loads(gzip.decompress(shipped_path(name, "op").read_bytes()))
    now = json.loads(gzip.decompress(encode(capture(resolve(name))["op"])))
    for library in ("torch", "transformers"):
        stored["provenance"].pop(library)
        now["provenance"].pop(library)
    assert now == stored
