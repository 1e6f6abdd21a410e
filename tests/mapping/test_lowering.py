"""How ops are cut into tasks: times by hand where an op takes as many ps as it has FLOPs and as it has bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import models.library
from models.graph import QUANTITIES, OpGraph
from models.rewrites import fuse, with_kv_heads
from sim.executors.reference import simulate
from sim.log.tables import EventLog
from sim.mapping.lowering import lower
from sim.mapping.settings import ModelMapping
from sim.mapping.tasks import CLASS_BIT, TaskGraph
from sim.runs.model import op_graphs
from sim.runs.plan import plan
from sim.scenario import from_dict
from tests.analysis import machine
from tests.graphs import GraphBuilder


def attention(heads: int = 1, kv_heads: int = 1, **fusion: object) -> OpGraph:
    """A KV load of 8 bytes; attention to 4 keys, for each of them and each head 2 FLOPs of scores and 2 of values."""
    build = GraphBuilder()
    per_key = {"scores": (heads * 4, heads), "flops": (2 * heads * 4, 2 * heads)}
    load = build.add("kv_load", kv_read=8)
    last = build.add("scores", load, heads=heads, flops=per_key["flops"], act_read=heads)
    for kind in ("softmax_max", "softmax_exp", "softmax_norm"):
        last = build.add(kind, last, heads=heads, vector_ops=per_key["scores"])
    values = {"flops": per_key["flops"], "act_read": per_key["scores"], "act_write": heads}
    last = build.add("weighted_values", load, last, heads=heads, **values)
    build.add("o_proj", last, flops=5)
    return with_kv_heads(fuse(build.graph(), element=1, **fusion), kv_heads)


def run(ops: OpGraph, mapping: ModelMapping, engines: int) -> EventLog:
    return simulate(replace(machine.setup(ops, engines=engines), graph=lower(ops, mapping)))


def spans(log: EventLog, kind: str) -> list[tuple[int, int]]:
    rows = [row for row in range(len(log.tasks)) if log.name(row).split()[0] == kind]
    return [(int(log.tasks.start[row]), int(log.tasks.end[row])) for row in rows]


def test_splits_overlap_their_loads_with_the_attention_before() -> None:
    """Loads of 2 one after another; after each, 4 of attention begin on another engine; combine, o_proj."""
    ops = attention(softmax="online", kv_splits=4)
    log = run(ops, ModelMapping(weights="resident"), engines=4)
    assert spans(log, "kv_load") == [(0, 2), (0, 4), (0, 6), (0, 8)]  # asked for at once, served in turn
    assert spans(log, "attention") == [(2, 6), (4, 8), (6, 10), (8, 12)]
    assert spans(log, "combine") == [(12, 13)]  # no FLOPs: the least that a task takes
    assert log.makespan == 13 + 5


@pytest.mark.parametrize(
    ("splits", "engines", "end"),
    [
        (1, 4, 8 + 16),  # one task: more engines do not help, and it waits for the whole cache
        (1, 1, 8 + 16),
        (2, 2, 8 + 8 + 1),  # loads of 4, attention of 8
        (2, 1, 4 + 16 + 1),  # one engine is busy from the first load on
        (4, 1, 2 + 16 + 1),
        (4, 2, 2 + 8 + 2 + 1),  # the last load ends at 8: engine 0 is busy from 2 to 10, engine 1 from 4 to 12
    ],
)
def test_splits_on_engines(splits: int, engines: int, end: int) -> None:
    log = run(attention(softmax="online", kv_splits=splits), ModelMapping(weights="resident"), engines)
    assert spans(log, "o_proj") == [(end, end + 5)]


def test_three_passes_take_the_time_of_their_parts() -> None:
    """Load 8, scores 8, three passes of 1 (no FLOPs), values 8: further engines do not help."""
    for engines in (1, 4):
        assert spans(run(attention(), ModelMapping(weights="resident"), engines), "o_proj") == [(27, 32)]


def test_query_heads_share_the_load_of_their_kv_head() -> None:
    """4 query heads on 2 KV heads, online: loads of 4, attention of 16 each."""
    ops = attention(heads=4, kv_heads=2, softmax="online")
    by_head = run(ops, ModelMapping(weights="resident", kv_loads="head"), engines=4)
    assert spans(by_head, "kv_load") == [(0, 4), (0, 8)]
    assert spans(by_head, "attention") == [(4, 20), (4, 20), (8, 24), (8, 24)]
    by_layer = run(ops, ModelMapping(weights="resident"), engines=4)
    assert spans(by_layer, "kv_load") == [(0, 8)]
    assert spans(by_layer, "attention") == [(8, 24)] * 4
    fused = run(ops, ModelMapping(weights="resident", kv_loads="head", heads="fused"), engines=4)
    assert spans(fused, "attention") == [(8, 72)]  # one task for all heads needs all of the cache


def test_scores_and_values_share_the_load_of_their_kv_head_too() -> None:
    ops = attention(heads=4, kv_heads=2)
    graph = lower(ops, ModelMapping(weights="resident", kv_loads="head"))
    for kind in ("scores", "weighted_values"):
        for head in range(4):
            task = next(t for t in range(len(graph)) if graph.name(t) == f"{kind} h{head}")
            loads = [graph.name(s) for s in sources(graph, task) if graph.kind_of(s) == "kv_load"]
            assert loads == [f"kv_load h{head // 2}"]


def test_heads_and_splits_together() -> None:
    """4 query heads, 2 KV heads and 3 splits: task h, s needs only the load of head h // 2 and split s."""
    graph = lower(
        attention(heads=4, kv_heads=2, softmax="online", kv_splits=3), ModelMapping(weights="resident", kv_loads="head")
    )
    names = {graph.name(task): [graph.name(s) for s in sources(graph, task)] for task in range(len(graph))}
    assert [name for name in names if name.startswith("kv_load")] == [f"kv_load h{h} s{s}" for h in (0, 1) for s in (0, 1, 2)]
    for head in range(4):
        for split in range(3):
            assert names[f"attention h{head} s{split}"] == [f"kv_load h{head // 2} s{split}"]
        assert names[f"combine splits h{head}"] == [f"attention h{head} s{split}" for split in range(3)]
    assert names["o_proj"] == [f"combine splits h{head}" for head in range(4)]


def sources(graph: TaskGraph, task: int) -> list[int]:
    return graph.inputs[graph.input_start[task] : graph.input_start[task + 1]].tolist()


MAPPINGS = {
    "online": {"softmax": "online"},
    "splits": {"softmax": "online", "kv_splits": 5},
    "heads": {"kv_loads": "head"},
    "heads fused": {"kv_loads": "head", "heads": "fused"},
    "splits fused": {"softmax": "online", "kv_splits": 3, "heads": "fused"},
    "operands": {"softmax": "online", "kv_splits": 3, "kv": "operands", "execution": "stream"},
    "tiles": {"tiles": {"default": 2, "down_proj": 3}},
    "everything": {"softmax": "online", "kv_splits": 3, "kv_loads": "head", "fuse": {"qkv": True, "gate_up": True}, "tiles": 3},
}


@pytest.mark.parametrize("name", MAPPINGS)
@pytest.mark.parametrize("model", models.library.names())
def test_shares_sum_to_the_captured_costs(model: str, name: str) -> None:
    """Under any mapping, FLOPs of all tasks, and bytes of each class but activations, are the captured ones."""
    text = {"model": {"config": model, "layers": 2}, "mapping": MAPPINGS[name]}
    plain = op_graphs(from_dict({**text, "mapping": {}}))[1][False, False].costs(1234)
    scenario = from_dict(text)
    graph = plan(scenario).setup.graph
    costs = graph.ops.costs(1234)
    for number, quantity in enumerate(QUANTITIES):
        shares = graph.share(costs[number])
        if quantity == "flops":
            assert shares[graph.computes].sum() == plain[number].sum()
        elif quantity in CLASS_BIT and not quantity.startswith("act"):
            assert shares[(graph.moves & CLASS_BIT[quantity]) != 0].sum() == plain[number].sum()


def test_a_latent_cache_has_one_head() -> None:
    scenario = from_dict({"model": {"config": "deepseek-v2-lite", "layers": 1}, "mapping": {"kv_loads": "head"}})
    graph = plan(scenario).setup.graph
    assert np.count_nonzero(graph.kind == graph.kinds.index("kv_load")) == 1


@pytest.mark.parametrize("activations", ["on_chip", "off_chip"])
def test_tasks_that_read_the_cache_themselves_are_its_loads(activations: str) -> None:
    """The loads of a layer wait for the stores of earlier tokens, so they are tasks that read, not those that end an op."""
    mapping = ModelMapping(kv="operands", execution="stream", activations=activations)  # type: ignore[arg-type]
    graph = lower(attention(heads=4, kv_heads=2), mapping)
    reads = np.flatnonzero(graph.moves & CLASS_BIT["kv_read"]).tolist()
    assert [task for tasks in graph.kv_loads.values() for task in tasks] == reads
    assert len(reads) == 4 * 2  # scores and weighted values of each head
