"""Caches of a model and its draft model that move to tiers together: their steps and bytes by hand, with both executors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.analysis.moved import moved_by_kind
from sim.executors import compiled, reference
from sim.render.trace.requests import _names
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.serving.batch import Batch
from sim.serving.loops import loops
from sim.serving.settings import Speculative
from sim.workload.requests import Request
from tests.executors import assert_same
from tests.serving.test_batcher import resolved
from tests.serving.test_drafting import DRAFTS, LIKE, rounds

ROW, DRAFT_ROW = 2048, 4096  # bytes of a token in a layer of Llama 3.2 1B, and in one of Qwen3 0.6B


def moved_by(batches: list[Batch]) -> list[tuple[str, bool, int, int]]:
    """Direction, whether the draft model's cache moves, sequence, and tokens."""
    return [
        (batch.shape.swap, batch.shape.draft, member.sequence, member.context)
        for batch in batches
        for member in batch.members
        if batch.shape.swap
    ]


def test_a_cache_is_swapped_with_that_of_the_draft_model() -> None:
    """Two sequences of 6 tokens and 3 blocks of 8: with 7 tokens each needs 9 for its draft, so that the second goes out.

    Right drafts leave one token less in the cache of the draft model than in that of the model.
    """
    asked = [Request(context=6, prompt=0, tokens=8, arrival=0)] * 2
    limits: dict[str, Any] = {"policy": "continuous", "sequences": 2, "block": 8, "full": "swap"}
    both = [("out", False, 1, 7), ("out", True, 1, 7), ("in", False, 1, 7), ("in", True, 1, 7)]
    assert moved_by(rounds(asked, (0,), 1, blocks=3, **limits)) == both
    right = [("out", False, 1, 8), ("out", True, 1, 7), ("in", False, 1, 8), ("in", True, 1, 7)]
    assert moved_by(rounds(asked, (1,), 1, blocks=3, **limits)) == right
    assert not moved_by(rounds(asked, (0,), 1, blocks=4, **limits))


def test_blocks_are_free_when_both_caches_are_out() -> None:
    asked = [Request(context=6, prompt=0, tokens=8, arrival=0)] * 2
    speculation = Speculative(draft=1, acceptance=(0,), model=DRAFTS)
    limits: dict[str, Any] = {"sequences": 2, "block": 8, "blocks": 3, "full": "swap", "moves": "beside"}
    batcher, _ = loops(resolved("continuous", speculation=speculation, **limits), asked)
    for now in range(2):  # a draft, and its verification; the step after these has one member
        batch = batcher.next(now)
        assert batch is not None
        batcher.ended(batch, now)
    batcher.next(2)
    first, second = batcher.blocks.moves
    assert batcher.blocks.used == 3 * 8 * 100
    batcher.moved(first)
    assert batcher.blocks.used == 3 * 8 * 100
    batcher.moved(second)
    assert batcher.blocks.used == 2 * 8 * 100


def test_evicted_blocks_move_with_those_of_the_draft_model() -> None:
    """Three blocks of 4 tokens, served one at a time: the two of the first prompt go out for the second, and come back."""
    asked = [Request(context=0, prompt=9, tokens=3, arrival=0, prefix=(i,), prefix_tokens=8) for i in (1, 2, 1)]
    batches = rounds(asked, (0,), 1, policy="continuous", block=4, blocks=3, prefix_cache=True, evicted="tiers", tiers=(None,))
    expected = [("spill", 1), ("spill", 2), ("fetch", 2)]
    assert moved_by(batches) == [(swap, draft, number, 8) for swap, number in expected for draft in (False, True)]
    computed = [(m.sequence, b.shape.draft, m.context, m.query) for b in batches for m in b.members if m.query > 2]
    assert computed == [(0, False, 0, 9), (0, True, 0, 10), (1, False, 0, 9), (1, True, 0, 10)]


SWAPPED: dict[str, Any] = {
    "sequences": [{"prompt": 60, "tokens": 8}, {"prompt": 60, "tokens": 40}, {"prompt": 60, "tokens": 30}],
    "kv": {"full": "swap", "capacity": f"{13 * 16 * (ROW + DRAFT_ROW)} B"},
}
SPILLED: dict[str, Any] = {
    "generate": {"count": 6, "prompt": 20, "tokens": 9, "prefixes": {"count": 3, "tokens": 64}},
    "kv": {"prefix_cache": True, "evicted": "tiers", "capacity": f"{9 * 16 * (ROW + DRAFT_ROW)} B"},
}


@pytest.mark.parametrize("attention", ["sequence", "batch"])
@pytest.mark.parametrize("of", ["beside", "between"])
@pytest.mark.parametrize("what", [SWAPPED, SPILLED], ids=["swapped", "spilled"])
def test_executors_agree(what: dict[str, Any], of: str, attention: str) -> None:
    requests = {key: value for key, value in what.items() if key != "kv"}
    batching = {"policy": "continuous", "max_batch": 3, "kv": {**what["kv"], "moves": of}}
    draft = {"config": "qwen3-0.6b", "layers": 1}
    scenario = {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "mapping": {**LIKE["mapping"], "attention": attention},
        "hardware": {**LIKE["hardware"], "host": {"link": {"bandwidth": "10 GB/s"}}},
        "workload": {
            **requests, "batching": batching, "speculative": {"draft": 2, "acceptance": (0, 2, 1), "model": draft},
        },
    }  # fmt: skip
    setup = plan(from_dict(scenario)).setup
    log, other = reference.simulate(setup), compiled.simulate(setup)
    assert other is not None
    assert_same(log, other)
    assert log.cache == other.cache
    moves = {"swap out", "swap in"} if what is SWAPPED else {"spill", "fetch"}
    names = set(_names(log, np.flatnonzero(log.members.query == 0)))
    assert names == moves | {f"draft {name}" for name in moves}
    moved = {kind: sum(both) for kind, both in moved_by_kind(log).items()}
    if what is SWAPPED:
        assert moved["kv_swap_out"] == moved["kv_swap_in"] > 0 == moved["kv_swap_in"] % ROW
        assert moved["draft kv_swap_out"] == moved["draft kv_swap_in"] > 0 == moved["draft kv_swap_in"] % DRAFT_ROW
        return
    assert log.cache is not None
    for kind in ("kv_spill", "kv_fetch"):
        assert moved[kind] > 0 == moved[kind] % (16 * ROW)
        assert moved[f"draft {kind}"] == moved[kind] // ROW * DRAFT_ROW
    assert log.cache.tiers[0].bytes == moved["kv_spill"] + moved["draft kv_spill"]
