"""Context parallelism: each device has its part of the positions, and the parts of a result are combined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import models.library
import sim
from models.graph import QUANTITIES, OpGraph
from models.rewrites import fuse, over_positions, refuse_context, shard
from sim.base.errors import ConfigError
from sim.runs.holdings import holdings
from sim.runs.model import models_of
from sim.runs.run import read
from tests.executors import assert_same

CONTEXT = 2048


def on_one_device(name: str, devices: int, context: int) -> OpGraph:
    ops = fuse(
        models.library.load(name).step(), element=2, softmax="online", kv_splits=1, qkv=True, gate_up=True, chunked=False
    )
    return over_positions(shard(ops, devices), devices, context)


def total(ops: OpGraph, quantity: str) -> int:
    return int(ops.costs(CONTEXT)[QUANTITIES.index(quantity)].sum())


@pytest.mark.parametrize(
    ("devices", "context", "kv"), [(8, 1, 33_554_432), (16, 1, 33_554_432), (16, 2, 16_777_216), (32, 4, 8_388_608)]
)
def test_kv_bytes_of_llama_8b(devices: int, context: int, kv: int) -> None:
    """268,435,456 bytes at context 2048: an n-th on each device, where without it each has a head of eight at least."""
    ops = on_one_device("llama-3.1-8b", devices, context)
    assert total(ops, "kv_read") == kv
    assert total(ops, "flops") == total(on_one_device("llama-3.1-8b", devices, 1), "flops")
    assert total(ops, "weight") == total(on_one_device("llama-3.1-8b", devices, 1), "weight")


def test_latents_are_divided() -> None:
    one, eight = (total(on_one_device("deepseek-v2-lite", 8, context), "kv_read") for context in (1, 8))
    assert one == 8 * eight


def test_what_is_sent() -> None:
    """Llama 8B on 16 devices, two per KV head: of 32 heads of 128 numbers, queries of four, and 130 float32 of each."""
    ops = on_one_device("llama-3.1-8b", 16, 2)
    sent = ops.costs(CONTEXT)[QUANTITIES.index("act_write")]
    assert set(sent[ops.kind == "context_gather"].tolist()) == {4 * 128 * 2}
    assert set(sent[ops.kind == "context_scatter"].tolist()) == {4 * 130 * 4}
    assert set(sent[ops.kind == "context_combine"].tolist()) == {2 * 128 * 2}
    assert {op.heads for op in ops.ops if op.kind == "attention"} == {4}
    assert (ops.kind == "context_gather").sum() == (ops.kind == "context_scatter").sum() == 32


@pytest.mark.parametrize(("name", "each"), [("llama-3.1-8b", 1), ("deepseek-v2-lite", 2), ("gpt-oss-20b", 1)])
def test_queries_are_gathered_once_a_layer(name: str, each: int) -> None:
    """Queries of latents are in two parts; attention of prompts reads a mask, too."""
    model = models.library.load(name)
    for variant in model.variants.values():
        ops = fuse(variant, element=2, softmax="online", kv_splits=1, qkv=True, gate_up=True, chunked=False)
        kinds = [op.kind for op in over_positions(shard(ops, 16), 16, 2).ops]
        assert kinds.count("context_gather") == each * model.layers
        assert kinds.count("context_scatter") == kinds.count("context_combine") == model.layers


def test_one_shard_is_tensor_parallelism() -> None:
    ops = shard(models.library.load("llama-3.1-8b").step(), 16)
    assert over_positions(ops, 16, 1) is ops


@pytest.mark.parametrize(("devices", "context", "message"), [
    (8, 2, "expected a divisor of the 1 devices of 8 that hold the same of 8 KV heads, found 2; possible: 1"),
    (32, 3, "expected a divisor of the 4 devices of 32 that hold the same of 8 KV heads, found 3; possible: 1, 2, 4"),
])  # fmt: skip
def test_devices_that_hold_other_heads(devices: int, context: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        refuse_context(devices, 8, context)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("context") / "base.yaml"
    path.write_text("model: {config: gemma-3-1b, layers: 2, scope: block}\n")  # four heads of queries, one of the cache
    return path


def run(base, *, executor: Any = "simpy", **changes: object) -> sim.Result:
    given: dict[str, object] = {
        "hardware.preset": "h100-sxm", "hardware.devices": "{count: 4, link: {bandwidth: 450 GB/s, latency: 1 us}}",
        "workload.sequences": "[{context: 4096, prompt: 5, tokens: 3, count: 2}]", "mapping.parallel.tensor": 4,
        "mapping.parallel.context": 2, "workload.batching.policy": "continuous",
    }  # fmt: skip
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    return sim.run(read(base, [f"{key}={value}" for key, value in given.items()]), executor=executor)


@pytest.mark.parametrize("attention", ["sequence", "batch"])
@pytest.mark.parametrize("fold", ["true", "false"])
def test_both_executors(base, fold: str, attention: str) -> None:
    given = {"mapping__parallel__fold": fold, "mapping__attention": attention}
    one, other = (run(base, executor=executor, **given) for executor in ("simpy", "compiled"))
    assert_same(one.log, other.log)


def test_all_devices_do_what_the_one_that_stands_for_them_does(base) -> None:
    assert run(base).log.steps.end.tolist() == run(base, mapping__parallel__fold="false").log.steps.end.tolist()


def test_groups_exchange_among_themselves(base) -> None:
    """Devices 0 and 1 divide positions, and devices 2 and 3."""
    graph = run(base, mapping__parallel__fold="false").log.graphs[0]
    sent, combine = (graph.kinds.index(kind) for kind in ("context_scatter_send", "context_combine"))
    found = set()
    for task in np.flatnonzero(graph.kind == combine).tolist():
        needed = graph.inputs[graph.input_start[task] : graph.input_start[task + 1]]
        found.add((int(graph.device[task]), tuple(sorted(graph.device[needed[graph.kind[needed] == sent]].tolist()))))
    assert found == {(0, (0, 1)), (1, (0, 1)), (2, (2, 3)), (3, (2, 3))}


def test_a_device_holds_its_positions(base) -> None:
    one, four = (holdings(models_of(run(base, mapping__parallel__context=context).scenario))[0] for context in (1, 4))
    assert one.kv == 2 * 2 * 256 * 2  # of two layers a key and a value of one head
    assert one.kv == 4 * four.kv
    assert one.weights == four.weights


def test_long_contexts_gain(base) -> None:
    """Reading a long context is most of a step; a short one takes less than two more launches and rounds."""

    def time(context: int, shards: int) -> int:
        given = {"workload__sequences": f"[{{context: {context}, tokens: 1}}]", "mapping__parallel__context": shards}
        return run(base, **given, workload__batching__policy="independent", model__config="llama-3.2-1b", model__layers=1,
                   mapping__parallel__tensor=32, hardware__devices__count=32).makespan  # fmt: skip

    assert time(120_000, 4) < time(120_000, 1)
    assert time(100, 4) > time(100, 1)


def test_three_passes(base) -> None:
    with pytest.raises(sim.InputError, match=r"context: expected 1 without mapping.softmax: online"):
        run(base, mapping__softmax="fused")
