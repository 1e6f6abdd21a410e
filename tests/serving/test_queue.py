"""Reasons why requests wait in the queue: by hand for each, in exact sums; and both executors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sim
from sim.executors import compiled, reference
from sim.executors.compiled import rules, spans
from sim.executors.setup import Setup
from sim.render import story
from sim.render.summary import summary
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.serving.queue import Queue, Reason
from sim.workload.requests import Request
from tests.executors import assert_same, assert_saved

BLOCK = 16 * 2 * 2048  # bytes of 16 tokens in two layers of Llama 3.2 1B
ONE = {"prompt": 20, "tokens": 4}  # 23 tokens at the end: two blocks


def scenario(sequences: list[dict[str, Any]], *, policy: str = "continuous", **changed: Any) -> sim.Scenario:
    kv = changed.pop("kv", {})
    limits = {name: changed.pop(name) for name in ("max_batch", "max_tokens") if name in changed}
    return from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
        "hardware": {"engines": {"count": 1, "flops": "100 TFLOP/s"}, "memory": {"bandwidth": "1 TB/s"}},
        "workload": {"sequences": sequences, "batching": {"policy": policy, **limits, "kv": kv}, **changed},
        "mapping": {"heads": "fused"},
    })  # fmt: skip


def queue(setup: Setup) -> tuple[list[dict[str, int]], list[tuple[int, int]]]:
    """Time in the queue of each request by reason, without zeros, in both executors; begin and end of steps of loop 0."""
    log = reference.simulate(setup)
    assert_same(log, compiled.simulate(setup))
    assert log.queue is not None
    assert (log.queue.sum(axis=1) == log.started - log.arrival).all()
    first = log.steps.sequence == 0
    steps = list(zip(log.steps.released[first].tolist(), log.steps.end[first].tolist(), strict=True))
    waits = [{Reason(i).name: ps for i, ps in enumerate(row) if ps} for row in log.queue.tolist()]
    return waits, steps


def test_a_full_kv_cache() -> None:
    """Three blocks hold one request of two at a time. The second waits for blocks to the end of the first, after four steps.

    The third comes in the middle of the second step, and waits for its end, then for blocks; behind the second, too.
    """
    _, steps = queue(plan(scenario([ONE, ONE], kv={"capacity": f"{3 * BLOCK} B"})).setup)
    middle = sum(steps[1]) // 2
    late = {**ONE, "arrival": f"{middle} ps"}
    waits, steps = queue(plan(scenario([ONE, ONE, late], kv={"capacity": f"{3 * BLOCK} B"})).setup)
    assert waits == [
        {},
        {"KV_BLOCKS": steps[3][1]},
        {"STEP": steps[1][1] - middle, "KV_BLOCKS": steps[7][1] - steps[1][1]},
    ]


@pytest.mark.parametrize(("change", "reason"), [({"max_batch": 1}, "MAX_BATCH"), ({"policy": "static"}, "POLICY")])
def test_limits_of_a_batch(change: dict[str, Any], reason: str) -> None:
    """The second comes during the first step. One is served at a time, or it is not in the batch that has begun."""
    waits, steps = queue(plan(scenario([ONE, {**ONE, "arrival": "1 us"}], **change)).setup)
    assert waits == [{}, {"STEP": steps[0][1] - 1_000_000, reason: steps[3][1] - steps[0][1]}]


def test_the_tokens_of_a_step() -> None:
    """A step feeds in 20 tokens. Both are admitted at once; the second prompt comes after a step in which the first decodes."""
    waits, steps = queue(plan(scenario([ONE, ONE], max_tokens=20)).setup)
    assert waits == [{}, {"MAX_TOKENS": steps[1][1]}]


def test_samples_begin_with_their_prompt() -> None:
    """In chunks of 8 a prompt of 20 takes three steps; the second sample begins with the last of them."""
    waits, steps = queue(plan(scenario([{**ONE, "samples": 2}], prefill={"chunk": 8})).setup)
    assert waits == [{}, {"PROMPT": steps[1][1]}]


@pytest.mark.parametrize("moves", ["beside", "between"])
def test_blocks_on_their_way(moves: str) -> None:
    """Blocks of the first text go to the host for the second, and come back for the third in the place of those of the second.

    Between steps, the third waits for the moves of the second, too.
    """
    kv = {"capacity": f"{6 * BLOCK} B", "prefix_cache": True, "evicted": "tiers", "moves": moves}
    data = scenario([ONE], max_batch=1, kv=kv).to_dict()
    data["hardware"]["host"] = {"link": {"bandwidth": "1 GB/s"}}
    asked = Request(context=0, tokens=1, arrival=0, prompt=65, prefix_tokens=64)
    setup = replace(plan(from_dict(data)).setup, sequences=[replace(asked, prefix=(text,)) for text in (1, 2, 1)])
    waits, _ = queue(setup)
    log = reference.simulate(setup)
    moved = log.members.query == 0
    step = log.members.step[moved]
    took, of = log.steps.end[step] - log.steps.released[step], log.members.sequence[moved]
    assert of.tolist() == [1, 2, 2]
    assert waits[1]["MOVES"] == took[0]
    assert waits[2]["MOVES"] == took[1:].sum() + (took[0] if moves == "between" else 0)
    assert waits[2]["MAX_BATCH"] == log.started[2] - waits[2]["MOVES"]


def test_spans_know_the_same() -> None:
    """Steps of a loop that run in parallel: stamps are numbers of steps, and the times those of the whole."""
    setup = plan(scenario([{**ONE, "count": 9}], max_batch=2, max_tokens=24, kv={"capacity": f"{5 * BLOCK} B"})).setup
    log = reference.simulate(setup)
    assert log.queue is not None
    assert (log.queue[:, [Reason.MAX_BATCH, Reason.MAX_TOKENS]].sum(axis=0) > 0).all()
    assert_same(log, spans.simulate(setup, rules.disciplines(setup), 3))


def test_reports_say_it(tmp_path: Any) -> None:
    result = sim.run(scenario([{**ONE, "count": 4}], kv={"capacity": f"{4 * BLOCK} B"}))
    waits = result.requests.queued.tolist()
    data = summary(result, timing=False)["requests"]
    none = {reason.name.lower(): 0 for reason in Reason}
    assert data["queued_for_ps"] == none | {"kv_blocks": sum(waits)}
    assert [each["queued_for_ps"]["kv_blocks"] for each in data["each"]] == waits
    assert story.request(result, 3)["queued_for_ps"] == none | {"kv_blocks": waits[3]}
    assert_saved(result, tmp_path)


def test_a_queue_by_hand() -> None:
    """A request joins at 10 and is admitted at 30; the reason changes at 20. It is held up from 30 to 40. A stamp is 2 ps."""
    queue = Queue()
    queue.joined[0] = 10
    queue.blocked(10, Reason.KV_BLOCKS)
    queue.blocked(20, Reason.MAX_BATCH)
    queue.blocked(25, Reason.MAX_BATCH)
    queue.admit(0, 30)
    queue.hold(0, 30, Reason.MOVES)
    queue.begin(0, 40)
    waits = np.zeros(len(Reason), dtype=np.int64)
    for _, reason, wait in queue.waits(lambda stamp: 2 * stamp):
        waits[reason] += wait
    assert dict(zip(Reason, waits.tolist(), strict=True)) == dict.fromkeys(Reason, 0) | {
        Reason.KV_BLOCKS: 20, Reason.MAX_BATCH: 20, Reason.MOVES: 20,
    }  # fmt: skip
