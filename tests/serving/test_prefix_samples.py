"""The prefix cache beside samples of a prompt: blocks by hand, what is conserved, and both executors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.base.errors import InputError
from sim.executors import compiled, reference
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.serving.cache import CacheUse
from sim.serving.limits import check_feasible
from sim.serving.loops import loops
from sim.serving.prefix import SharedBlocks
from sim.workload.requests import Request
from tests.executors import assert_same
from tests.serving.test_batcher import drive, emitted, feasible, resolved
from tests.serving.test_prefix import ALL_GROUPS, BLOCK, asked, assert_conserved, cases, scenario, served


def test_samples_share_what_their_prompt_finds() -> None:
    """Two samples of 14 tokens and 5 more: of 18 tokens each has the last two blocks to itself, and 3 are of the prompt.

    The prompt finds two blocks of the request before, which it computes no more; the request after finds all three.
    """
    samples = [asked(14, 1, 2, 3, tokens=5, group=1)] * 2
    requests = [asked(9, 1, 2), *samples, asked(13, 1, 2, 3)]
    fed, blocks = served(requests, sequences=2, blocks=7)
    assert fed == [(0, 0, 9), (1, 8, 6)]
    assert blocks.use == CacheUse(9 + 14 + 13, 8 + 12, 0)
    with pytest.raises(InputError, match=r"2 samples of one prompt end in 7 blocks \(28 tokens, 2\.800 kB\), more than the 6"):
        check_feasible(resolved("continuous", sequences=2, blocks=6, block=BLOCK, prefix_cache=True), samples)


def test_blocks_of_the_prompt_are_released_with_the_last_sample() -> None:
    """Prompts of 9 tokens: two full blocks, and a copy of the third for each, which goes on in it with its own tokens."""
    batching = resolved("continuous", sequences=3, block=BLOCK, prefix_cache=True)
    (batcher,) = loops(batching, [asked(9, 1, 2, tokens=3, group=0)] * 3)
    used = list[int]()
    while (batch := batcher.next(len(used))) is not None:
        used.append(batcher.blocks.used // (BLOCK * 100))
        batcher.ended(batch, len(used))
    assert used == [2 + 3] * 3
    assert isinstance(batcher.blocks, SharedBlocks)
    assert batcher.blocks.used == 0
    assert sorted(content.number for _, content in batcher.blocks._free) == [0, 1]


@settings(max_examples=40, deadline=None)
@given(cases, st.lists(st.integers(1, 3), min_size=8, max_size=8), st.none() | st.integers(12, 30), st.data())
def test_blocks_are_conserved(requests: list[Request], samples: list[int], blocks: int | None, data: Any) -> None:
    groups, chunk = data.draw(st.sampled_from(ALL_GROUPS)), data.draw(st.sampled_from((None, 3, 8)))
    several = [
        replace(request, conversation=-1, group=number if many > 1 else -1)
        for number, (request, many) in enumerate(zip(requests, samples, strict=False))
        for _ in range(many)
    ]
    batching = resolved("continuous", sequences=4, blocks=blocks, chunk=chunk, block=BLOCK, prefix_cache=True, groups=groups)
    if not feasible(batching, several):
        return
    (batcher,) = loops(batching, several)
    cache, steps, now = batcher.blocks, [], 0
    assert isinstance(cache, SharedBlocks)
    while (batch := batcher.next(now)) is not None:
        assert_conserved(cache, batcher.running)
        many = 1 + (batcher.steps_ahead() if data.draw(st.booleans()) else 0)
        steps += [(now, batch if not i else batch.decoded_on(i)) for i in range(many)]
        batcher.ended(batch, now, many)
        now += 1
    assert not batcher.waiting
    assert cache.used == 0
    assert emitted(steps) == {number: request.tokens for number, request in enumerate(several)}
    if blocks is None:  # as many tokens fewer as were found
        plain = drive(loops(resolved("continuous", sequences=4, chunk=chunk, block=BLOCK, groups=groups), several))
        computed = [sum(m.query for _, b in each for m in b.members) for each in (steps, plain)]
        assert computed[0] == computed[1] - cache.hits


@pytest.mark.parametrize("evicted", ["lost", "tiers"])
def test_executors_agree(evicted: str) -> None:
    """Prompts of two beginnings of 64 tokens and 20 more, of which three sequences each are sampled; 30 blocks of 16 tokens."""
    generate = {"count": 6, "samples": 3, "prompt": 20, "tokens": 9, "prefixes": {"count": 2, "tokens": 64}}
    kv = {"prefix_cache": True, "capacity": f"{16 * 30 * 4096} B", "evicted": evicted}
    data = scenario(generate=generate, batching={"policy": "continuous", "max_batch": 6, "kv": kv}).to_dict()
    data["hardware"]["host"] = {"link": {"bandwidth": "50 GB/s"}}
    setup = plan(from_dict(data)).setup
    assert [request.group for request in setup.sequences] == [number for number in range(6) for _ in range(3)]
    log, other = reference.simulate(setup), compiled.simulate(setup)
    assert other is not None
    assert_same(log, other)
    assert log.cache == other.cache
    assert log.cache is not None
    assert log.cache.tokens == 6 * 84
    assert 0 < log.cache.hits == 6 * 84 + 18 * 8 - int(log.members.query.sum())


def test_samples_of_turns_are_refused() -> None:
    generate = {"count": 2, "samples": 3, "prompt": 20, "tokens": 9, "turns": 2}
    with pytest.raises(InputError, match=r"expected samples 1 with turns: a turn follows one answer"):
        scenario(generate=generate, batching="continuous", concurrency=1)
    with pytest.raises(InputError, match=r"expected samples only with 'static' or 'continuous' batching and kv\.full 'wait'"):
        scenario(generate={**generate, "turns": 1}, batching="independent")
