"""Steps with several new tokens charge the pairs that masks let through: by hand, and what follows for prompts in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.graph import QUANTITIES
from sim.executors import Executor
from sim.log.tables import EventLog
from sim.runs.run import run
from sim.scenario import from_dict

FLOPS, VECTOR_OPS = QUANTITIES.index("flops"), QUANTITIES.index("vector_ops")
ATTENTION = ("scores", "softmax", "weighted_values", "attention")

#: A decode past the window, a prompt that crosses it, one in chunks that fills it, and one that is as long by itself.
SEQUENCES = [
    {"context": 600, "tokens": 4}, {"context": 500, "prompt": 40, "tokens": 3}, {"prompt": 700, "tokens": 2},
    {"context": 3, "prompt": 2, "tokens": 1},
]  # fmt: skip


def log_of(mapping: dict[str, Any], executor: Executor) -> EventLog:
    """Six layers of Gemma 3 1B, the last of them global, on an engine of 1 FLOP and 1,000,000 elements a picosecond."""
    workload = {"sequences": SEQUENCES, "batching": "continuous", "prefill": {"chunk": 300}}
    engines = {"count": 1, "flops": "1 TFLOP/s", "vector_flops": "1000000 TOP/s"}
    scenario = {
        "model": {"config": "gemma-3-1b", "layers": 6}, "workload": workload, "hardware": {"engines": engines},
        "mapping": {"heads": "fused", "execution": "stream", **mapping}, "cost": "roofline",
    }  # fmt: skip
    return run(from_dict(scenario), executor=executor).log


def flops_by_hand(context: int, query: int) -> int:
    """FLOPs of attention to new tokens: 4 heads of 256, five layers with a window of 512, and one without."""
    keys = [position + 1 for position in range(context, context + query)]
    return 4 * 4 * 256 * sum(5 * min(each, 512) + each for each in keys)


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
@pytest.mark.parametrize("attention", ["sequence", "batch"])
@pytest.mark.parametrize("softmax", ["fused", "online"])
def test_every_step_charges_the_visible_pairs_of_each_member(softmax: str, attention: str, executor: Executor) -> None:
    log = log_of({"softmax": softmax, "attention": attention}, executor)
    queries = set()
    for step in range(len(log.steps)):
        graph = log.graphs[log.steps.graph[step]]
        costs = graph.ops.costs_of(log.lanes(np.array([step])))[:, :, 0]
        mine = [i for i, kind in enumerate(graph.ops.kind) if kind in ATTENTION]
        members = np.flatnonzero(log.members.step == step)
        wanted = [(int(log.members.context[m]), int(log.members.query[m])) for m in members]
        queries |= {query for _, query in wanted}
        assert costs[FLOPS, mine].sum() == sum(flops_by_hand(*each) for each in wanted)
        rows = np.flatnonzero(log.tasks.step == step)
        computing = rows[np.isin(graph.op[log.tasks.task[rows]], mine) & (log.tasks.engine[rows] >= 0)]
        time = np.maximum(costs[FLOPS, mine], -(-costs[VECTOR_OPS, mine] // 10**6))
        assert log.tasks.compute[computing].sum() == time.sum()
    assert {1, 2, 40, 300, 100} <= queries


@pytest.mark.parametrize("mapping", [{"heads": "split"}, {"kv_splits": 3}, {"heads": "split", "kv_splits": 2}])
def test_heads_and_splits_share_the_visible_pairs_out(mapping: dict[str, Any]) -> None:
    """Tasks of an attention have its FLOPs together: each some of the pairs, rounded up by less than its number of tasks."""
    whole = log_of({"softmax": "online"}, "simpy")
    split = log_of({"softmax": "online", **mapping}, "simpy")
    assert len(split.tasks) > len(whole.tasks)
    for step in range(len(whole.steps)):
        times = []
        for log in (whole, split):
            graph, rows = log.graphs[log.steps.graph[step]], np.flatnonzero(log.tasks.step == step)
            kind = np.array(graph.kinds)[graph.kind[log.tasks.task[rows]]]
            times.append(log.tasks.compute[rows][kind == "attention"])
        assert times[0].sum() <= times[1].sum() <= times[0].sum() + len(times[1])


@st.composite
def prompts(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A lone prompt on one engine with as much SRAM as it likes; and the size of a chunk of it.

    No chunk is of one token: for that the captured model runs other code, which makes no mask and copies no queries.
    """
    config = draw(st.sampled_from(("llama-3.2-1b", "gemma-3-1b", "gemma-2-2b", "mistral-7b-v0.1", "phi-3-mini-4k", "gpt2")))
    prompt = draw(st.integers(2, 900 if config == "gpt2" else 12_000))
    hardware = {
        "engines": {"count": 1, "flops": draw(st.sampled_from(("2 TFLOP/s", "900 TFLOP/s"))), "vector_flops": "9 TOP/s"},
        "memory": {"bandwidth": draw(st.sampled_from(("50 GB/s", "3 TB/s")))},
    }
    mapping = {
        "softmax": draw(st.sampled_from(("fused", "online"))), "heads": "fused",
        "execution": draw(st.sampled_from(("blocking", "stream", "prefetch"))),
        "attention": draw(st.sampled_from(("sequence", "batch"))),
    }  # fmt: skip
    if mapping["execution"] != "prefetch" and draw(st.booleans()):
        mapping["kv"] = "operands"
    scenario = {
        "model": {"config": config, "layers": draw(st.integers(1, 6))}, "hardware": hardware, "mapping": mapping,
        "cost": "roofline", "workload": {"sequences": [{"prompt": prompt, "tokens": 1}], "batching": "continuous"},
    }  # fmt: skip
    chunk = draw(st.integers(max(2, -(-prompt // 9)), prompt).filter(lambda chunk: prompt % chunk != 1))
    return scenario, chunk


@settings(max_examples=60, deadline=None)
@given(prompts())
def test_a_lone_prompt_in_chunks_never_gets_its_first_token_sooner(drawn: tuple[dict[str, Any], int]) -> None:
    """Chunks read the weights once each and see the same pairs, so that there is nothing to gain."""
    scenario, chunk = drawn
    whole = run(from_dict(scenario))
    parts = run(from_dict({**scenario, "workload": {**scenario["workload"], "prefill": {"chunk": chunk}}}))
    assert len(parts.log.steps) == -(-scenario["workload"]["sequences"][0]["prompt"] // chunk)
    assert parts.makespan >= whole.makespan
