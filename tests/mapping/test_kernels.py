"""Activations off chip: bytes that kernels read and write, by hand; and weights that no step converts."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import models.library
import sim
from models.graph import QUANTITIES
from models.rewrites import without_weight_casts
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


def test_capture_shows_no_more_weights_than_the_model_has() -> None:
    """Mixtral reads 2 of 8 experts a token: eight tokens choose 16, of which 8 are distinct."""
    parts = ["capture", "mixtral-8x7b", "--batch", "8"]
    ops = list(map(json.loads, CliRunner().invoke(cli, [*parts, "--json"]).output.splitlines()))
    model = models.library.load("mixtral-8x7b")
    shown = sum(op["weight"] for op in ops)
    table = 32_000 * 4096 * 2
    assert shown == model.parameter_bytes - table + 8 * 4096 * 2, "all, with 8 rows of the embedding's table"
    assert "weights of as many experts as can be distinct" in CliRunner().invoke(cli, parts).output
    assert "distinct" not in CliRunner().invoke(cli, [*parts[:-1], "4"]).output
