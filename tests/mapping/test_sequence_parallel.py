"""Sequence parallelism: sums of some tokens on each device, the same bytes, and norms divided."""

from __future__ import annotations

import numpy as np
import pytest

import models.library
import sim
from models.graph import QUANTITIES, OpGraph
from models.rewrites import shard
from sim.base.errors import ConfigError
from sim.mapping.collectives import rounds
from sim.runs.run import read
from tests.executors import assert_same

DEVICES = 8
VECTOR, WEIGHT = QUANTITIES.index("vector_ops"), QUANTITIES.index("weight")


def of_kind(ops: OpGraph, *kinds: str) -> list[int]:
    return [i for i, op in enumerate(ops.ops) if op.kind in kinds and op.layer >= 0]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-2-2b", "mixtral-8x7b", "deepseek-v2-lite", "gpt2"])
def test_collectives(name: str) -> None:
    """In each layer two sums by token, and two gatherings in place of two all-reduces."""
    model = models.library.load(name)
    plain, ops = (shard(model.step(), 2, sequence=sequence) for sequence in (False, True))
    assert len(of_kind(plain, "all_reduce")) == len(of_kind(ops, "reduce_scatter")) == 2 * model.layers
    assert len(of_kind(ops, "all_gather")) - len(of_kind(plain, "all_gather")) == 2 * model.layers
    assert not of_kind(ops, "all_reduce")


def test_the_first_norm_is_that_of_the_embedding() -> None:
    """All others within layers are divided, the weights of norms are not, and the last norm is of all tokens."""
    plain, ops = (shard(models.library.load("llama-3.1-8b").step(), DEVICES, sequence=each) for each in (False, True))
    whole, parts = (
        [cost for op, cost in zip(each.ops, each.costs(100).T, strict=True) if op.kind in ("norm", "residual")]
        for each in (plain, ops)
    )
    assert len(whole) == len(parts) == 4 * 32 + 1
    assert whole[0].tolist() == parts[0].tolist()
    assert whole[-1].tolist() == parts[-1].tolist()
    for one, part in zip(whole[1:-1], parts[1:-1], strict=True):
        assert part[VECTOR] == -(-one[VECTOR] // DEVICES)
        assert part[WEIGHT] == one[WEIGHT]


@pytest.mark.parametrize("algorithm", ["ring", "two_shot"])
def test_as_many_bytes(algorithm) -> None:
    """A reduce-scatter and an all-gather send what the all-reduce does, in as many rounds."""
    both = [rounds(kind, algorithm, DEVICES) for kind in ("reduce_scatter", "all_gather")]
    one = rounds("all_reduce", algorithm, DEVICES)
    assert sum(each.number for each in both) == one.number
    assert {(each.sends, each.parts) for each in both} == {(one.sends, one.parts)}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("sequence") / "base.yaml"
    path.write_text("model: {config: llama-3.1-8b, layers: 2, scope: block}\n")
    return path


def run(base, *, executor="simpy", **changes: object) -> sim.Result:
    given: dict[str, object] = {
        "hardware.preset": "h100-sxm", "hardware.devices": "{count: 8, link: {bandwidth: 450 GB/s, latency: 1 us}}",
        "workload.sequences": "[{prompt: 4096, tokens: 1}]", "mapping.parallel.tensor": DEVICES,
    }  # fmt: skip
    given |= {f"mapping.parallel.{key}": value for key, value in changes.items()}
    return sim.run(read(base, [f"{key}={value}" for key, value in given.items()]), executor=executor)


def test_a_prompt(base) -> None:
    """The last sums are gathered by none here, so one of the four gatherings is missing; norms take less time."""
    plain, parts = run(base), run(base, sequence="true")
    assert parts.metrics.bytes_sent * 8 == plain.metrics.bytes_sent * 7
    (graph,), tasks = parts.log.graphs, parts.log.tasks
    norms = np.flatnonzero(graph.kind == graph.kinds.index("norm"))
    times = (tasks.end - tasks.start)[norms].tolist()
    assert max(times[1:]) < times[0]
    assert parts.makespan < plain.makespan


@pytest.mark.parametrize("fold", ["true", "false"])
def test_both_executors(base, fold) -> None:
    one, other = (run(base, sequence="true", fold=fold, overlap_chunks=2, executor=each) for each in ("simpy", "compiled"))
    assert_same(one.log, other.log)


def test_all_devices_do_what_the_one_that_stands_for_them_does(base) -> None:
    assert run(base, sequence="true").makespan == run(base, sequence="true", fold="false").makespan


def test_ops_that_are_no_norms() -> None:
    ops = models.library.load("llama-3.2-1b", granularity="aten").step()
    with pytest.raises(ConfigError, match=r"sequence: expected false: no norm or residual"):
        shard(ops, 2, sequence=True)


def test_one_device(base) -> None:
    with pytest.raises(sim.InputError, match=r"mapping.parallel.sequence: expected false without tensor parallelism"):
        sim.run(read(base, ["mapping.parallel.sequence=true"]))
