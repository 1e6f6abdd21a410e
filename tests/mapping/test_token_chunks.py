"""Steps in chunks of tokens: collectives of one chunk overlap what the other computes, in closed form, with the same bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import sim
from models.graph import QUANTITIES, IntArray, Members
from sim.base.units import ceil_div
from sim.cost.amounts import AmountTable
from sim.executors.setup import Setup, lanes_of
from sim.mapping.tasks import TaskGraph
from sim.runs.plan import plan
from sim.runs.run import read
from sim.serving.batch import Batch, Member
from tests.executors import assert_same

LATENCY, DEVICES, TOKENS, LAYERS = 1_000_000, 8, 4096, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("chunks") / "base.yaml"
    path.write_text(f"model: {{config: llama-3.1-8b, layers: {LAYERS}, scope: block}}\n")
    return path


def given(base, **changes: object) -> sim.scenario.Scenario:
    """A prompt through two layers on eight devices, at roofline costs; `a__b` of the changes is the key `a.b`."""
    keys: dict[str, object] = {
        "hardware.preset": "h100-sxm",
        "hardware.devices": f"{{count: {DEVICES}, link: {{bandwidth: 450 GB/s, latency: 1 us}}}}",
        "workload.sequences": f"[{{prompt: {TOKENS}, tokens: 1}}]", "mapping.parallel.tensor": DEVICES,
        "mapping.parallel.algorithm": "one_shot", "cost.model": "roofline", "hardware.engines.overhead": "0 ns",
    }  # fmt: skip
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return read(base, [f"{key}={value}" for key, value in keys.items()])


def run(base, *, executor: Any = "simpy", **changes: object) -> sim.Result:
    return sim.run(given(base, **changes), executor=executor)


CHUNKS = {"mapping__parallel__token_chunks": 2}
SMALL = {"mapping__parallel__token_chunks": 2, "mapping__parallel__token_chunks_from": 2}


def test_tokens_of_all_members_are_cut_one_after_another() -> None:
    """The first chunk of 1 + 1 + 11 tokens has 7: two that decode, and 5 of a prompt, which the second sees in the cache."""
    lane: dict[str, IntArray] = {
        name: np.array(values)[:, None]
        for name, values in {
            "sequence": [3, 1, 7],
            "context": [90, 20, 4],
            "query": [1, 1, 11],
            "loads": [90, 15, 4],
            "kept": [91, 0, 15],
        }.items()
    }
    whole = Members(**lane, logits=np.ones((3, 1), dtype=np.int64), home=np.zeros((3, 1), dtype=np.int64))
    first, second = (whole.of_chunk(chunk, 2) for chunk in range(2))
    assert (first.query.ravel().tolist(), second.query.ravel().tolist()) == ([1, 1, 5], [0, 0, 6])
    assert (first.context.ravel().tolist(), second.context.ravel().tolist()) == ([90, 20, 4], [90, 20, 9])
    assert (first.loads.ravel().tolist(), second.loads.ravel().tolist()) == ([90, 15, 4], [90, 15, 9])
    assert (first.kept.ravel().tolist(), second.kept.ravel().tolist()) == ([91, 0, 0], [0, 0, 15])
    assert (first.sequence.ravel().tolist(), first.logits.ravel().tolist()) == ([3, 1, 7], [1, 1, 1])
    assert whole.of_chunk(0, 1) is whole  # nothing is computed for steps that are not cut, which are most


def graph_of(setup: Setup, batch: Batch) -> TaskGraph:
    assert setup.graphs is not None
    return setup.graphs(batch.shape)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-1b", "deepseek-v2-lite", "mixtral-8x7b"])
def test_arithmetic_and_messages_sum_to_those_of_the_whole(base, name: str) -> None:
    """A step of two sequences that decode and a prompt: weights are read once a chunk, those of the LM head once."""
    batch = Batch([Member(0, 700, 1, 700, 1, 1), Member(1, 9, 1, 9, 1, 1), Member(2, 600, 801, 600, 1, 1)])
    costs = {}
    for chunks in (1, 3):
        changes = {"model__config": name, "model__scope": "model", "mapping__parallel__token_chunks": chunks, "seed": 1}
        tensor = {"mapping__parallel__tensor": 2, "hardware__devices__count": 2, "workload__batching": "continuous"}
        setup = plan(given(base, **changes, **tensor)).setup
        ops = graph_of(setup, batch).ops
        costs[chunks] = ops, ops.costs_of(lanes_of(0, 0, batch))[:, :, 0]
    (whole, one), (parts, three) = costs[1], costs[3]
    of = {name: (one[i], three[i]) for i, name in enumerate(QUANTITIES)}
    for quantity in ("flops", "kv_write"):
        assert of[quantity][0].sum() == of[quantity][1].sum() > 0
    reduced = whole.kind == "all_reduce", parts.kind == "all_reduce"
    assert reduced[0].sum() * 3 == reduced[1].sum() > 0
    assert of["act_write"][0][reduced[0]].sum() == of["act_write"][1][reduced[1]].sum()
    head = whole.kind == "lm_head", parts.kind == "lm_head"
    assert of["weight"][0][head[0]].sum() == of["weight"][1][head[1]].sum() > 0
    dense = whole.kind == "qkv_proj", parts.kind == "qkv_proj"
    assert of["weight"][0][dense[0]].sum() * 3 == of["weight"][1][dense[1]].sum()


def test_experts_are_those_of_the_tokens_of_a_chunk(base) -> None:
    """Tokens of each half of this prompt choose two experts of their own: a chunk reads two, the whole step four."""
    routes = base.parent / "routes.jsonl"
    chosen = [
        {"sequence": 0, "position": token, "layer": layer, "experts": [2 * (token // 8), 2 * (token // 8) + 1]}
        for layer in range(LAYERS) for token in range(16)
    ]  # fmt: skip
    routes.write_text("".join(f"{json.dumps(each)}\n" for each in chosen))
    changes = {
        "model__config": "mixtral-8x7b", "workload__sequences": "[{prompt: 16, tokens: 1}]", "mapping__parallel__tensor": 2,
        "hardware__devices__count": 2, "workload__routing": f"{{file: {routes}}}",
    }  # fmt: skip
    each = 3 * 4096 * 14336 * 2 // 2  # bytes of an expert on one of two devices
    for chunks, read_of in ((1, [4]), (2, [2, 2])):
        more = SMALL if chunks == 2 else {}
        log = run(base, **changes, **more).log
        (graph,) = log.graphs
        experts = np.array([op.experts is not None for op in graph.ops.ops])[graph.op] & (graph.layer == 0)
        chunk = graph.ops.chunk[graph.op]  # type: ignore[attr-defined]
        found = [int(log.bytes_moved()[experts & (chunk == number)].sum()) for number in range(chunks)]
        assert found == [many * each for many in read_of]


def test_small_steps_stay_whole_to_the_picosecond(base) -> None:
    small = {"workload__sequences": "[{prompt: 511, tokens: 3}]"}
    assert_same(run(base, **small, **CHUNKS).log, run(base, **small).log)


def busy(result: sim.Result) -> int:
    """Picoseconds of all tasks on engines, one after another."""
    log, (graph,) = result.log, result.log.graphs
    return int((log.tasks.end - log.tasks.start)[graph.engine].sum())


def test_all_reduces_hide_behind_the_other_chunk(base) -> None:
    """Where a chunk computes longer than another sends, the engine never waits but for the last all-reduce."""
    fast = {"hardware__devices": "{count: 8, link: {bandwidth: 8 TB/s, latency: 1 us}}"}
    whole, chunks = run(base, **fast), run(base, **fast, **CHUNKS)
    sends, half = (LATENCY + (DEVICES - 1) * ceil_div(size * 4096 * 2 * 10**12, 8 * 10**12) for size in (TOKENS, TOKENS // 2))
    assert whole.makespan == busy(whole) + 2 * LAYERS * sends
    last = chunks.log.graphs[0].kind == chunks.log.graphs[0].kinds.index("residual")
    after = int(
        (chunks.log.tasks.end - chunks.log.tasks.start)[last][-2]
    )  # of the first chunk, while the last all-reduce is sent
    assert chunks.makespan == busy(chunks) + half - after
    assert whole.metrics.bytes_sent == chunks.metrics.bytes_sent


def test_a_slow_link_is_busy_from_the_first_all_reduce_to_the_last(base) -> None:
    """Where a chunk sends longer than the other computes: all bytes one after another, with one latency before them."""
    result = run(base, **CHUNKS, hardware__devices="{count: 8, link: {bandwidth: 20 GB/s, latency: 1 us}}")
    log, (graph,) = result.log, result.log.graphs
    sends = graph.kind == graph.kinds.index("all_reduce_send")
    each = ceil_div(TOKENS // 2 * 4096 * 2 * 10**12, 20 * 10**9)
    begin = log.tasks.start[sends].min()
    assert log.tasks.end[sends].max() == begin + LATENCY + 2 * 2 * LAYERS * (DEVICES - 1) * each


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("attention", {}), ("kv_load", {"mapping__kv": "transfers", "mapping__execution": "prefetch"})],
    ids=("operands", "transfers"),
)
def test_later_tokens_of_a_prompt_see_the_earlier_ones(base, kind: str, changes: dict[str, object]) -> None:
    """Attention of the second chunk, or its load, begins when the first has stored its rows, in each layer, and reads them."""
    log = run(base, **CHUNKS, **changes).log
    (graph,) = log.graphs
    chunk = graph.ops.chunk[graph.op]  # type: ignore[attr-defined]
    row = 2 * 1024 * 2 // DEVICES  # bytes of a token in a layer: keys and values of one head of 128
    for layer in range(LAYERS):
        stores = np.flatnonzero((graph.layer == layer) & (graph.kind == graph.kinds.index("kv_store")) & (chunk == 0))
        (reads,) = np.flatnonzero((graph.layer == layer) & (graph.kind == graph.kinds.index(kind)) & (chunk == 1))
        assert log.tasks.start[reads] >= log.tasks.end[stores].max()
        assert log.bytes_moved()[reads] == TOKENS // 2 * row
        assert set(stores.tolist()) <= set(graph.inputs[graph.input_start[reads] : graph.input_start[reads + 1]].tolist())


def test_decode_reads_weights_once_a_chunk(base) -> None:
    """Sixteen sequences: a step that is bound by the memory takes longer, since weights are most of what it reads."""
    batch = {"workload__sequences": "[{context: 100, tokens: 1, count: 16}]", "workload__batching": "static"}
    whole, chunks = run(base, **batch), run(base, **batch, **SMALL)
    weights = LAYERS * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) * 2 // DEVICES
    norms = 2 * LAYERS * 4096 * 2
    assert chunks.metrics.bytes_read - whole.metrics.bytes_read == weights + norms
    assert chunks.makespan > whole.makespan


MIXED = {
    "workload__sequences": "[{prompt: 19, tokens: 2, count: 2}, {context: 64, tokens: 4}]", "workload__prefill__chunk": 16,
    "workload__batching": "continuous", "mapping__parallel__tensor": 2, "hardware__devices__count": 2, "model__layers": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"mapping__parallel__token_chunks": 3, "mapping__parallel__algorithm": "auto"},
        {"mapping__parallel__fold": "false", "mapping__parallel__sequence": "true", "mapping__parallel__overlap_chunks": 2},
        {"mapping__parallel__pipeline": 2, "hardware__devices__count": 4, "model__layers": 2},
        {
            "model__config": "mixtral-8x7b", "mapping__parallel__expert": 2, "mapping__parallel__sequence": "true",
            "mapping__parallel__dispatch": "all_to_all",
            "workload__sequences": "[{prompt: 19, tokens: 2}, {context: 64, tokens: 3}]",
        },
        {"model__config": "gemma-3-1b", "mapping__kv": "transfers", "mapping__execution": "prefetch", "model__layers": 2},
    ],
    ids=str,
)  # fmt: skip
def test_both_executors(base, changes: dict[str, object]) -> None:
    """Prompts in pieces beside sequences that decode: steps of all numbers of tokens, some with fewer than chunks."""
    every = MIXED | SMALL | changes
    log = run(base, **every).log
    assert max(getattr(graph.ops, "chunks", 1) for graph in log.graphs) == every["mapping__parallel__token_chunks"]
    assert_same(log, run(base, executor="compiled", **every).log)
    for step in range(len(log.steps)):
        table, rows = AmountTable(log.graphs[log.steps.graph[step]]), log.rows(step)
        moved = table.amounts(log.lanes(np.array([step])))[1][0, table.rows.of]
        assert np.array_equal(moved, log.bytes_moved()[rows])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mapping__parallel__tensor": 1, "hardware__devices__count": 1, **CHUNKS},
            r"mapping.parallel.token_chunks: expected 1 without tensor parallelism, which has all-reduces, found 2",
        ),
        (
            {"mapping__attention": "sequence", **CHUNKS},
            r"mapping.parallel.token_chunks: expected 1 with mapping.attention: sequence, found 2; write batch there",
        ),
        ({"mapping__parallel__token_chunks_from": 64}, r"expected 'token_chunks_from' only with 'token_chunks' above 1"),
    ],
)
def test_what_has_no_effect_is_refused(base, changes: dict[str, object], message: str) -> None:
    with pytest.raises(sim.InputError, match=message):
        run(base, **changes)
