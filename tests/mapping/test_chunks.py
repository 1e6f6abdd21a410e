"""Collectives in chunks: overlap by dependence alone, in closed form, with the same bytes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import models.library
import sim
from models.graph import QUANTITIES, OpGraph
from models.rewrites import chunked, shard
from sim.analysis.parts import PARTS
from sim.base.errors import ConfigError
from sim.base.units import ceil_div
from sim.runs.run import read

LATENCY, BANDWIDTH, DEVICES, TOKENS = 1_000_000, 450 * 10**9, 8, 512
MESSAGE = TOKENS * 4096 * 2  # bytes of the results of all tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("chunks") / "base.yaml"
    path.write_text("model: {config: llama-3.1-8b, layers: 2, scope: block}\n")
    return path


def run(base, *, executor: Any = "simpy", **changes: object) -> sim.Result:
    """A prompt of 512 tokens through two layers on eight devices, at roofline costs; `a__b` of the changes is the key `a.b`."""
    given: dict[str, object] = {
        "hardware.preset": "h100-sxm",
        "hardware.devices": f"{{count: {DEVICES}, link: {{bandwidth: 450 GB/s, latency: 1 us}}}}",
        "workload.sequences": f"[{{prompt: {TOKENS}, tokens: 1}}]", "mapping.parallel.tensor": DEVICES,
        "mapping.parallel.algorithm": "one_shot", "cost.model": "roofline", "hardware.engines.overhead": "0 ns",
    }  # fmt: skip
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    return sim.run(read(base, [f"{key}={value}" for key, value in given.items()]), executor=executor)


def total(ops: OpGraph, quantity: str) -> int:
    """Sum of a cost over all ops but collectives."""
    own = np.char.find(ops.kind, "all_") < 0
    return int(ops.costs(100)[QUANTITIES.index(quantity), own].sum())


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v2-lite", "gpt-oss-20b", "gemma-2-2b"])
@pytest.mark.parametrize("chunks", [2, 4])
def test_costs_sum_to_those_of_the_whole(name: str, chunks: int) -> None:
    """And each chunk of a collective needs the same chunk of the results that it adds up, alone."""
    whole = shard(models.library.load(name).step(), 2)
    parts = chunked(whole, chunks)
    for quantity in QUANTITIES:
        assert total(parts, quantity) == total(whole, quantity)
    reduced = [op for op in parts.ops if op.kind == "all_reduce"]
    assert len(reduced) == chunks * sum(op.kind == "all_reduce" for op in whole.ops)
    for op in reduced:
        assert {parts.ops[j].part for j in op.inputs} == {op.part}
    sent = parts.costs(100)[QUANTITIES.index("act_write"), parts.kind == "all_reduce"]
    assert sent.sum() == whole.costs(100)[QUANTITIES.index("act_write"), whole.kind == "all_reduce"].sum()


def test_one_chunk_is_the_whole() -> None:
    ops = shard(models.library.load("llama-3.1-8b").step(), 2)
    assert chunked(ops, 1) is ops


def test_one_chunk_is_no_overlap_to_the_picosecond(base) -> None:
    one, none = run(base, mapping__parallel__overlap_chunks=1), run(base)
    for field in fields(one.log.tasks):
        assert np.array_equal(getattr(one.log.tasks, field.name), getattr(none.log.tasks, field.name))


def of_chunks(result: sim.Result, kind: str) -> tuple[list[int], list[int]]:
    """Start of the first and end of the last task of each op of a kind, in the first layer."""
    (graph,), tasks = result.log.graphs, result.log.tasks
    rows = np.flatnonzero((graph.kind == graph.kinds.index(kind)) & (graph.layer == 0))
    ops = np.unique(graph.op[rows])
    return ([int(tasks.start[rows[graph.op[rows] == op]].min()) for op in ops],
            [int(tasks.end[rows[graph.op[rows] == op]].max()) for op in ops])  # fmt: skip


@pytest.mark.parametrize("chunks", [1, 2, 8])
def test_chunks_follow_one_another_on_the_link(base, chunks: int) -> None:
    """A chunk is sent when it is computed and the one before has left: the latency of each hides behind those before it."""
    result = run(base, mapping__parallel__overlap_chunks=chunks)
    each = (DEVICES - 1) * ceil_div(MESSAGE // chunks * 10**12, BANDWIDTH)
    computed = of_chunks(result, "o_proj")[1]
    _, launched = of_chunks(result, "all_reduce")
    sent = of_chunks(result, "all_reduce_send")[1]
    free = 0
    for k in range(chunks):
        assert launched[k] == computed[k] + 1
        free = max(launched[k] + LATENCY, free) + each
        assert sent[k] == free


def test_less_communication_is_exposed_with_the_same_bytes(base) -> None:
    """The link is busy from the first chunk on: all but the first of what a matmul computes is hidden, and nothing else."""
    one, eight = (run(base, mapping__parallel__overlap_chunks=chunks) for chunks in (1, 8))
    assert one.metrics.bytes_sent == eight.metrics.bytes_sent

    def exposed(result: sim.Result) -> int:
        along = dict(zip(PARTS, result.breakdown.tokens.sum(axis=0).tolist(), strict=True))
        return along["link"] + along["wait_link"]

    hidden = 2 * sum(ends[-1] - ends[0] for ends in (of_chunks(eight, kind)[1] for kind in ("o_proj", "down_proj")))
    assert hidden > 0.05 * one.makespan
    assert abs(one.makespan - eight.makespan - hidden) < 1_000
    assert abs(exposed(one) - exposed(eight) - hidden) < 1_000


@pytest.mark.parametrize("parallel", [{}, {"mapping__parallel__fold": "false"}])
def test_both_executors(base, parallel: dict[str, object]) -> None:
    given = {"mapping__parallel__overlap_chunks": 4, **parallel}
    one, other = (run(base, executor=executor, **given) for executor in ("simpy", "compiled"))
    for field in fields(one.log.tasks):
        assert np.array_equal(getattr(one.log.tasks, field.name), getattr(other.log.tasks, field.name))


def test_columns_that_do_not_divide() -> None:
    with pytest.raises(
        ConfigError, match=r"overlap_chunks: expected a divisor of the 4096 columns of o_proj, found 3; .* 2, 4, 8"
    ):
        chunked(shard(models.library.load("llama-3.1-8b").step(), 2), 3)


def test_one_device_has_no_collectives(base) -> None:
    with pytest.raises(sim.InputError, match=r"overlap_chunks: expected 1 without tensor parallelism.*, found 2"):
        run(base, mapping__parallel__overlap_chunks=2, mapping__parallel__tensor=1, hardware__devices__count=1)
