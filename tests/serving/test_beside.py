"""Moves of caches beside steps: what they hide, what they delay, by hand; and both executors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sim
from sim.base.units import PS_PER_S, ceil_div
from sim.executors import compiled, reference
from sim.log.tables import EventLog
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.workload.requests import Request
from tests.executors import assert_same

LAYER, LAYERS = 2048, 2  # bytes of the KV cache of a token in a layer of Llama 3.2 1B
BLOCK = 16 * LAYER * LAYERS

#: Each has four of 13 blocks at first. At 65 tokens each needs a fifth, and one is free: the last request is swapped out.
SWAPS = {
    "sequences": [{"prompt": 60, "tokens": 8}, {"prompt": 60, "tokens": 40}, {"prompt": 60, "tokens": 30}],
    "batching": {"policy": "continuous", "kv": {"capacity": f"{13 * BLOCK} B", "full": "swap"}},
}


def scenario(workload: dict[str, Any], bandwidth: int, *, latency: int = 0, **kv: Any) -> sim.Scenario:
    """A host link of so many bytes/s, and ps of latency."""
    data = from_dict({
        "model": {"config": "llama-3.2-1b", "layers": LAYERS, "scope": "block"},
        "hardware": {
            "engines": {"count": 1}, "memory": {"bandwidth": "1 TB/s"},
            "host": {"link": {"bandwidth": f"{bandwidth} B/s", "latency": f"{latency} ps"}},
        },
        "workload": workload, "mapping": {"heads": "fused"},
    }).to_dict()  # fmt: skip
    data["workload"]["batching"]["kv"] |= kv
    return from_dict(data)


class Steps:
    """Steps of a log: the members of those of the batch, and the moves, in order of time."""

    def __init__(self, log: EventLog) -> None:
        self.batch: list[tuple[int, int, set[int]]] = []
        self.moves: list[tuple[int, int, str, int, int]] = []  # begin, end, direction, sequence, tokens
        for step in np.argsort(log.steps.released, kind="stable").tolist():
            rows = log.members.step == step
            begin, end = int(log.steps.released[step]), int(log.steps.end[step])
            shape = log.graphs[log.steps.graph[step]].ops.shape if not log.members.query[rows].any() else None
            if shape is None:
                self.batch.append((begin, end, set(log.members.sequence[rows].tolist())))
            else:
                self.moves.append(
                    (begin, end, shape.swap, int(log.members.sequence[rows][0]), int(log.members.context[rows][0]))
                )


def test_moves_within_a_step_cost_nothing() -> None:
    """The last of three gives its blocks up while the others decode, and comes back beside them; no step waits for it.

    Each move takes its bytes over the rate of the link, less than a step. So another rate changes no step.
    """
    fast, faster = (Steps(sim.run(scenario(SWAPS, rate * 10**9)).log) for rate in (100, 400))
    assert [move[2:] for move in fast.moves] == [move[2:] for move in faster.moves]
    assert {move[2] for move in fast.moves} == {"out", "in"}
    for begin, end, *_, tokens in fast.moves:
        assert end - begin == LAYERS * ceil_div(LAYER * tokens * PS_PER_S, 100 * 10**9)
    assert fast.batch == faster.batch
    assert all(before[1] == after[0] for before, after in zip(fast.batch, fast.batch[1:], strict=False))
    between = Steps(sim.run(scenario(SWAPS, 100 * 10**9, moves="between")).log)
    waited = sum(end - begin for begin, end, *_ in between.moves)
    gaps = sum(after[0] - before[1] for before, after in zip(between.batch, between.batch[1:], strict=False))
    assert gaps == waited > 0


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
def test_a_long_move_delays_its_own_request_alone(executor: Any) -> None:
    """At 50 MB/s a cache of 256 kB takes 5 ms, many steps. The others go on, one behind another; it joins when it is there."""
    slow = Steps(sim.run(scenario(SWAPS, 50 * 10**6), executor=executor).log)
    for begin, end, swap, sequence, _ in slow.moves:
        meanwhile = [members for start, _, members in slow.batch if begin <= start < end]
        assert all(sequence not in members for members in meanwhile)
        if swap == "in":
            assert len(meanwhile) > 3
            first = min(start for start, _, members in slow.batch if start >= end)
            assert sequence in next(members for start, _, members in slow.batch if start == first)
    # A sequence that lacks a block waits until the last one is out; a sequence that has its block goes on.
    (out,) = [move for move in slow.moves if move[2] == "out"]
    alone = [members for start, _, members in slow.batch if out[0] <= start < out[1]]
    assert alone
    assert all(out[3] not in members for members in alone)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"workload": {"step_overhead": "30 us"}},
        {"workload": {"concurrency": {"users": 4, "think": "90 us"}}},
        {"hardware": {"host": None}},
        {"mapping": {"execution": "blocking", "attention": "batch"}},
    ],
)
def test_executors_agree(change: dict[str, Any]) -> None:
    """Five that come apart, over a link on which a move takes about as long as two steps; or at the memory, beside loads."""
    each = {"prompt": 60, "tokens": 12}
    arrivals = [{**each, "arrival": f"{number * 700} us"} for number in range(5)]
    data = scenario({"sequences": arrivals, "batching": SWAPS["batching"]}, 500 * 10**6, latency=7_000_000).to_dict()
    for section, keys in change.items():
        data[section] |= keys
    if "concurrency" in change.get("workload", {}):
        data["workload"]["sequences"] = [each] * 5
    setup = plan(from_dict(data)).setup
    log = reference.simulate(setup)
    assert_same(log, compiled.simulate(setup))
    assert {"kv_swap_out", "kv_swap_in"} <= {graph.kinds[0] for graph in log.graphs}


def with_prefixes(executor: str, requests: list[Request], *, tokens: int, max_batch: int, capacity: int) -> EventLog:
    """A run of requests with prefixes beside one that decodes so many tokens; what the cache evicts goes to the host."""
    kv = {"capacity": f"{capacity} B", "prefix_cache": True, "evicted": "tiers"}
    workload = {
        "sequences": [{"prompt": 1, "tokens": tokens}],
        "batching": {"policy": "continuous", "max_batch": max_batch, "kv": kv},
    }
    setup = plan(scenario(workload, 50 * 10**6)).setup
    setup = replace(setup, sequences=[*setup.sequences, *requests])
    log = (reference if executor == "simpy" else compiled).simulate(setup)
    assert log is not None
    return log


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
def test_a_prompt_waits_for_its_blocks_while_others_decode(executor: Any) -> None:
    """Two texts of 64 tokens take turns in three blocks beside a request that decodes: found in the host, they are loaded.

    A prompt of 65 tokens computes one of them, once the 64 others are there; the one that decodes waits for no move.
    """
    asked = Request(context=0, tokens=1, arrival=0, prompt=65, prefix_tokens=64)
    texts = [replace(asked, prefix=(text,)) for text in (1, 2, 1)]
    log = with_prefixes(executor, texts, tokens=100, max_batch=2, capacity=12 * BLOCK)
    steps = Steps(log)
    assert [move[2:] for move in steps.moves] == [("spill", 2, 64), ("spill", 3, 64), ("fetch", 3, 64)]
    assert all(0 in members for *_, members in steps.batch[:100])
    assert all(before[1] == after[0] for before, after in zip(steps.batch, steps.batch[1:], strict=False))
    queries = [(1, 65), (2, 65), (3, 1)]  # found are 64 of the last
    for sequence, query in queries:
        (row,) = np.flatnonzero((log.members.sequence == sequence) & (log.members.query > 0))
        assert log.members.query[row] == query
        there = max((end for _, end, _, of, _ in steps.moves if of == sequence), default=0)
        begin = int(log.steps.released[log.members.step[row]])
        assert begin == min(start for start, *_ in steps.batch if start > there or not there)


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
def test_blocks_on_their_way_are_not_there_yet(executor: Any) -> None:
    """Text 1 has 4 blocks, text 2 has 6; one of either and the rest of a prompt fill the 7 beside a request that decodes.

    The last two ask for text 1. When they come, all that they evict is in the host already, so that one move is left, the load
    of text 1 for the first of them. It takes 5.2 ms at 50 MB/s. The other one, which moves nothing, computes nothing before.
    """
    asked = Request(context=0, tokens=1, arrival=0, prompt=0, prefix_tokens=16)
    one = replace(asked, prompt=16 * 4 + 1, prefix=(0, 1, 2, 3))
    two = replace(asked, prompt=16 * 6 + 1, prefix=(4, 5, 6, 7, 8, 9))
    log = with_prefixes(executor, [one, two, one, one, two, one, one], tokens=200, max_batch=3, capacity=20 * BLOCK)
    steps = Steps(log)
    begin, end, *last = steps.moves[-1]
    assert last == ["fetch", 6, 64]
    assert end - begin == LAYERS * ceil_div(64 * LAYER * PS_PER_S, 50 * 10**6)
    assert len([0 for start, *_ in steps.batch if begin <= start < end]) > 3
    (first,) = [start for start, _, members in steps.batch if 7 in members]
    assert first == min(start for start, *_ in steps.batch if start > end)
