"""Activations off chip: bytes that kernels read and write, by hand; and weights that no step converts."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import models.library
import sim
from models.formats import Formats, misaligned
from models.graph import QUANTITIES, IntArray, OpGraph
from models.rewrites import between_kernels, fuse, with_formats, without_weight_casts
from models.rewrites.fusion import Softmax
from sim.cli import cli
from sim.scenario import from_dict

LAYERS, HIDDEN, KV, MLP, VOCABULARY, HEAD = 16, 2048, 512, 8192, 128_256, 64  # Llama-3.2-1B


def activations(context: int, **mapping: object) -> int:
    """Bytes of activations that the channel moves in one step of Llama-3.2-1B."""
    moved = []
    for where in ("off_chip", "on_chip"):
        result = sim.run(from_dict({
            "model": {"config": "llama-3.2-1b"},
            "mapping": {"heads": "fused", "activations": where, **mapping},
            "workload": {"sequences": [{"context": context, "tokens": 1}]},
        }))  # fmt: skip
        moved.append(result.metrics.bytes_read + result.metrics.bytes_written)
    return moved[0] - moved[1]


def by_hand(*, fused: bool) -> int:
    """Each kernel reads the results of others and writes its own, in two bytes a number; the cache is stored from the chip."""
    norm = 2 * HIDDEN
    projections = (1 if fused else 3) * HIDDEN + HIDDEN + 2 * KV
    rope = 2 * (HIDDEN + KV) + 2 * 2 * HEAD  # cosine and sine, for queries and for keys
    attention = HIDDEN + 2 * KV + HIDDEN  # queries, the new key and value; the result
    residual = 3 * HIDDEN
    gate_up = (1 if fused else 2) * HIDDEN + 2 * MLP
    act = 3 * MLP
    layer = 2 * norm + projections + rope + attention + 2 * HIDDEN + gate_up + act + MLP + HIDDEN + 2 * residual
    table, word = 2 * HEAD, 8 // 2  # cosine and sine are written once; the number of the token is read
    return 2 * (LAYERS * layer + norm + HIDDEN + VOCABULARY + HIDDEN + word + table)


@pytest.mark.parametrize("context", [10, 1000])
def test_activations_travel_between_kernels_only(context: int) -> None:
    fuse = {"qkv": True, "gate_up": True}
    assert activations(context, softmax="online", fuse=fuse) == by_hand(fused=True)
    assert activations(context, softmax="online") == by_hand(fused=False)
    assert round(by_hand(fused=True) / 1e6, 1) == 3.3


def test_scores_travel_once_each_way_without_fusion() -> None:
    """Per head and key: written by `scores`, read and written in 4 bytes by two passes, read by the values."""
    keys = 32 * 1001
    passes = LAYERS * keys * (2 + 2 + 4 + 4 + 4 + 4 + 2 + 2)
    assert activations(1000) == by_hand(fused=False) + passes


TOKENS = 1, 3, 16, 512, 4096


@pytest.mark.parametrize(
    ("softmax", "batch"),
    [
        ("fused", 1),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("three_pass", 1), ("three_pass", 64), ("fused", 64))),
    ],
)
def test_no_kernel_moves_less_than_nothing_or_more_than_its_captured_ops(softmax: Softmax, batch: int) -> None:
    """Every shipped model, in steps of few tokens and of many."""
    names = [name for name in models.library.names() if (models.library.GRAPHS / f"{name}.json.gz").exists()]
    assert len(names) > 30
    for name in names:
        model = models.library.load(name)
        for queries in (TOKENS[:1], TOKENS[1:]):
            ops = without_weight_casts(model.step(batch, queries[0]).select(8))
            ops = fuse(ops, element=2, softmax=softmax, chunked=model.chunked)
            kernels = between_kernels(ops)
            for query in queries:
                before, after = (moved(graph, 5000, batch, query) for graph in (ops, kernels))
                assert (after >= 0).all(), (name, query)
                assert (after <= before).all(), (name, query)


def moved(ops: OpGraph, context: int, batch: int, query: int) -> IntArray:
    """Bytes of activations that each op reads and writes, [2, op]."""
    return ops.costs(context, batch, query)[[QUANTITIES.index("act_read"), QUANTITIES.index("act_write")]]


def kernel(name: str, kind: str, query: int, context: int = 0) -> tuple[int, int]:
    """Bytes that the first kernel of a kind reads and writes in a step."""
    ops = between_kernels(models.library.load(name).step(1, query).select(8))
    read, written = moved(ops, context, 1, query)[:, ops.kind.tolist().index(kind)].tolist()
    return read, written


@pytest.mark.parametrize("query", TOKENS)
def test_a_scan_reads_what_others_made_and_writes_its_result_but_not_its_state(query: int) -> None:
    """By configs: channels of the convolution, heads (gates of each), width of a head. Prompts of Nemotron-H are in float32."""
    padded = query + 3 if query > 1 else 1  # with the window of the convolution
    several = 4 if query > 1 else 2
    assert kernel("nemotron-h-8b", "scan", query) == (2 * (10240 * padded + 128 * query), several * 128 * 64 * query)
    assert kernel("qwen3-next-80b-a3b", "scan", query) == (2 * (8192 * padded + 2 * 32 * query), 2 * 32 * 128 * query)
    assert kernel("jamba-v0.1", "scan", query)[1] == 2 * 8192 * query


def test_a_scan_of_jamba_reads_what_decodes_one_token() -> None:
    """Gate, convolved input and step size of 8,192 channels; B and C of 16 numbers each."""
    assert kernel("jamba-v0.1", "scan", 1) == (2 * (3 * 8192 + 2 * 16), 2 * 8192)


@pytest.mark.parametrize("query", TOKENS)
@pytest.mark.parametrize("context", [0, 3000, 131_072])
def test_an_indexer_reads_queries_keys_weights_and_the_mask_and_writes_the_tokens_that_it_chooses(
    query: int, context: int
) -> None:
    """64 heads of 128 and their weights; one new key; eight bytes an index, as torch has it."""
    read = 2 * query * (64 * 128 + 128 + 64 + context + query)
    assert kernel("deepseek-v3.2", "indexer", query, context) == (read, 8 * query * (min(context, 2047) + query))


@pytest.mark.parametrize("context", [0, 100, 8191, 8192, 100_000])
def test_scores_of_a_chunk_travel_once(context: int) -> None:
    """Llama 4 Scout: 40 heads, 8 of keys, of 128. Queries, the new key, and the mask are read."""
    seen = context % 8192 + 1
    assert kernel("llama-4-scout", "scores", 1, context) == (2 * (48 * 128 + seen), 2 * 40 * seen)


@pytest.mark.parametrize(("name", "heads", "kv_heads", "size"), [("llama-3.1-8b", 32, 8, 128), ("gemma-3-1b", 4, 1, 256)])
@pytest.mark.parametrize(("query", "context"), [(2, 0), (512, 0), (512, 4000), (4096, 100)])
def test_attention_in_one_kernel_reads_no_mask(
    name: str, heads: int, kv_heads: int, size: int, query: int, context: int
) -> None:
    """Queries and the new keys and values are read, a row of results for each query is written; a mask moves nothing."""
    model = models.library.load(name)
    ops = between_kernels(fuse(model.step(1, query).select(8), element=2, softmax="online", chunked=model.chunked))
    read, written = moved(ops, context, 1, query)
    attention, mask = (ops.kind == kind for kind in ("attention", "mask"))
    assert set(read[attention].tolist()) == {2 * query * size * (heads + 2 * kv_heads)}
    assert set(written[attention].tolist()) == {2 * query * size * heads}
    assert mask.any()
    assert not read[mask].any()
    assert not written[mask].any()


def test_the_router_of_deepseek_v3_converts_no_weights() -> None:
    """It multiplies in float32 by weights that are stored in bfloat16: 256 experts, 7,168 numbers each."""
    captured = models.library.load("deepseek-v3").step()
    numbers = 256 * 7168
    before, after = captured.costs(100), without_weight_casts(captured).costs(100)
    routers = [i for i, op in enumerate(captured.ops) if op.kind == "router"]
    changed = before - after
    for quantity, size in (("vector_ops", 1), ("act_read", 4), ("act_write", 4)):
        assert set(changed[QUANTITIES.index(quantity), routers].tolist()) == {size * numbers}, quantity
    assert changed.sum() == len(routers) * 9 * numbers, "nothing else"
    assert set(after[QUANTITIES.index("weight"), routers].tolist()) == {2 * (numbers + 256)}, "with biases"


def test_hyper_connections_convert_no_weights_and_keep_their_format() -> None:
    """A layer of DeepSeek-V4 has two, which make 24 numbers of 4 streams of 4,096; checkpoints keep them out of fp8."""
    captured = models.library.load("deepseek-v4-flash").step()
    numbers = 24 * 4 * 4096
    ops = with_formats(without_weight_casts(captured), Formats(weights="fp8", scale=4, group=128**2), element=2)
    i = next(i for i, op in enumerate(captured.ops) if op.kind == "hyper_connection")
    before, after = captured.costs(100)[:, i], ops.costs(100)[:, i]
    changed = dict(zip(QUANTITIES, (before - after).tolist(), strict=True))
    assert {name: amount for name, amount in changed.items() if amount} == {
        "vector_ops": numbers, "act_read": 4 * numbers, "act_write": 4 * numbers
    }  # fmt: skip
    assert not list(misaligned(captured, Formats(weights="fp8", scale=4, group=128**2)))


def test_capture_shows_no_more_weights_than_the_model_has() -> None:
    """Mixtral reads 2 of 8 experts per token: eight tokens choose 16, of which 8 are distinct."""
    parts = ["capture", "mixtral-8x7b", "--batch", "8"]
    ops = list(map(json.loads, CliRunner().invoke(cli, [*parts, "--json"]).output.splitlines()))
    model = models.library.load("mixtral-8x7b")
    shown = sum(op["weight"] for op in ops)
    table = 32_000 * 4096 * 2
    assert shown == model.parameter_bytes - table + 8 * 4096 * 2, "all, with 8 rows of the embedding's table"
    assert "weights of as many experts as can be distinct" in CliRunner().invoke(cli, parts).output
    assert "distinct" not in CliRunner().invoke(cli, [*parts[:-1], "4"]).output
