"""The prefix cache: hits and evictions of traces by hand, what is conserved, and both executors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from sim.base.errors import InputError
from sim.executors import compiled, reference
from sim.executors.compiled import rules, spans
from sim.machine.kv_cache import LayerGroup
from sim.render.summary import summary
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.serving.cache import CacheUse, TierUse
from sim.serving.loops import loops
from sim.serving.prefix import SharedBlocks
from sim.serving.sequence import SequenceState
from sim.workload.requests import Request
from tests.executors import assert_same
from tests.serving.test_batcher import GROUPS, drive, emitted, feasible, resolved

BLOCK = 4  # tokens


def asked(prompt: int, *prefix: int, tokens: int = 1, **other: Any) -> Request:
    """A request whose prompt begins with blocks of these ids, of one block of the cache each."""
    return Request(arrival=0, context=0, prompt=prompt, tokens=tokens, prefix=prefix, prefix_tokens=BLOCK, **other)


def served(requests: list[Request], **limits: Any) -> tuple[list[tuple[int, int, int]], SharedBlocks]:
    """(sequence, context, query) of all members that feed in prompts, one request after another; and the cache."""
    batching = resolved(**({"policy": "continuous", "block": BLOCK, "prefix_cache": True} | limits))
    (batcher,) = loops(batching, requests)
    steps = drive([batcher])
    assert isinstance(batcher.blocks, SharedBlocks)
    return [(m.sequence, m.context, m.query) for _, batch in steps for m in batch.members if m.query > 1], batcher.blocks


class TestByHand:
    def test_least_recently_used(self) -> None:
        """Three blocks of 4 tokens, served one at a time; a prompt of 9 tokens takes 3, of which two can be found.

        | request | ids  | found | then in the cache, next to go first |
        | ------- | ---- | ----- | ----------------------------------- |
        | 0       | 1, 2 | 0     | 2, 1                                |
        | 1       | 1, 2 | 8     | 2, 1                                |
        | 2       | 3    | 0     | 1, 3: its two blocks take a free place and that of 2 |
        | 3       | 1, 2 | 4     | 2, 1: its own two take a free place and that of 3 |
        | 4       | 3    | 0     | 1, 3                                |
        """
        requests = [asked(9, 1, 2), asked(9, 1, 2), asked(5, 3), asked(9, 1, 2), asked(5, 3)]
        fed, blocks = served(requests, sequences=1, blocks=3)
        assert fed == [(0, 0, 9), (2, 0, 5), (3, 4, 5), (4, 0, 5)]  # that of 1 feeds in its last token alone
        assert blocks.use == CacheUse(9 + 9 + 5 + 9 + 5, 8 + 4, 3)
        assert blocks.used == 0

    @pytest.mark.parametrize(
        ("tiers", "use", "moves"),
        [
            # What goes first in the memory, 2, goes to the tier with request 2, and 3 with request 3, which finds 1 in the
            # memory and loads 2; request 4 loads 3, and 2 goes out without a move: the first tier has it still.
            ((2,), [TierUse(8, 2, 0)], [(2, "spill", 0), (3, "spill", 0), (3, "fetch", 0), (4, "fetch", 0)]),
            # There is space for one: with request 3 block 2, loaded just before, moves on. It is in the second tier when it
            # is evicted again.
            (
                (1, None), [TierUse(8, 2, 1), TierUse(0, 1, 0)],
                [(2, "spill", 0), (3, "spill", 1), (3, "spill", 0), (3, "fetch", 0), (4, "fetch", 0)],
            ),
        ],
    )  # fmt: skip
    def test_what_is_evicted_is_found_in_tiers(
        self, tiers: tuple[int | None, ...], use: list[TierUse], moves: list[tuple[int, str, int]]
    ) -> None:
        """The trace of `test_least_recently_used`: of 37 tokens 20 are found, of 5 prompts nothing is computed twice."""
        requests = [asked(9, 1, 2), asked(9, 1, 2), asked(5, 3), asked(9, 1, 2), asked(5, 3)]
        batching = resolved("continuous", sequences=1, blocks=3, tiers=tiers, block=BLOCK, prefix_cache=True, evicted="tiers")
        (batcher,) = loops(batching, requests)
        steps = [batch for _, batch in drive([batcher])]
        computed = [(m.sequence, m.context, m.query) for batch in steps for m in batch.members if m.query]
        assert computed == [(0, 0, 9), (1, 8, 1), (2, 0, 5), (3, 8, 1), (4, 4, 1)]
        page = BLOCK * 100
        in_bytes = [TierUse(each.hits, each.bytes * page, each.evicted) for each in use]
        assert batcher.blocks.use == CacheUse(37, 8 + 8 + 4, 3, tuple(in_bytes))
        moved = [(m.sequence, b.shape.swap, b.shape.tier, m.context) for b in steps if b.shape.swap for m in b.members]
        assert moved == [(*move, BLOCK) for move in moves]

    def test_what_is_loaded_from_the_first_tier_is_the_warmest_there(self) -> None:
        """Before request 4 the tier has 1 and 3; it loads 1, and block 4, which goes out for it, takes the place of 3."""
        requests = [asked(9, 1, 2), asked(5, 3), asked(5, 4), asked(5, 5), asked(5, 1), asked(5, 3)]
        batching = resolved("continuous", sequences=1, blocks=3, tiers=(2,), block=BLOCK, prefix_cache=True, evicted="tiers")
        (batcher,) = loops(batching, requests)
        steps = [batch for _, batch in drive([batcher])]
        computed = [(m.sequence, m.context, m.query) for batch in steps for m in batch.members if m.query]
        assert computed == [(0, 0, 9), (1, 0, 5), (2, 0, 5), (3, 0, 5), (4, 4, 1), (5, 0, 5)]

    def test_without_a_limit_each_prefix_is_computed_once(self) -> None:
        requests = [asked(10, i % 2, 7, tokens=3) for i in range(6)]
        fed, blocks = served(requests, sequences=1)
        assert fed == [(0, 0, 10), (1, 0, 10), *((i, 8, 2) for i in range(2, 6))]
        assert blocks.use == CacheUse(60, 4 * 8, 0)

    def test_a_prefix_is_all_that_comes_before(self) -> None:
        """A block of the same id behind another beginning is another one; the last token is always computed."""
        fed, blocks = served([asked(8, 1, 2), asked(8, 3, 2), asked(8, 1, 2)], sequences=1)
        assert fed == [(0, 0, 8), (1, 0, 8), (2, 4, 4)]
        assert blocks.hits == 4

    def test_requests_that_run_share_blocks(self) -> None:
        """Two of four blocks are shared by two requests, which fit 4 blocks together, not 6."""
        one, other = asked(9, 1, 2, tokens=4), asked(9, 1, 2, tokens=3)
        fed, blocks = served([one, other], sequences=2, blocks=4, max_tokens=9)
        assert fed == [(0, 0, 9)]
        assert blocks.hits == 8
        assert blocks.evicted == 0

    def test_turns_find_the_turns_before(self) -> None:
        """The second prompt is the first, its answer, and 5 more; 13 tokens of 14 are in 3 full blocks."""
        turns = [asked(9, tokens=5, conversation=0), asked(19, tokens=1, conversation=0)]
        fed, blocks = served(turns, sequences=1)
        assert fed == [(0, 0, 9), (1, 12, 7)]
        assert blocks.hits == 12

    def test_a_request_that_was_dropped_finds_its_blocks(self) -> None:
        """Two requests of 5 tokens in 5 blocks: when the first needs a third, the other is dropped, and comes back."""
        requests = [asked(5, tokens=12), asked(5, tokens=6)]
        fed, blocks = served(requests, sequences=2, blocks=5, full="recompute")
        assert fed[:2] == [(0, 0, 5), (1, 0, 5)]
        assert blocks.hits > 0
        again = [context for sequence, context, _ in fed[2:] if sequence == 1]
        assert again in ([], [4], [8])


class TestLeastRecentlyUsed:
    """Prompts of one block that can be found and one token more, served one at a time: see `hits_of`."""

    @staticmethod
    def hits_of(references: Sequence[int], places: int, tier: int = 0) -> tuple[int, int]:
        """Prompts found in a memory with places for so many blocks, and in a tier for more, which does not keep what it gives.

        A block more is for the last token of the prompt in progress. The first tier, which keeps a copy, has no place.
        """
        requests = [asked(BLOCK + 1, each) for each in references]
        spills: dict[str, Any] = {"tiers": (0, tier), "evicted": "tiers"} if tier else {}
        batching = resolved("continuous", sequences=1, blocks=places + 1, block=BLOCK, prefix_cache=True, **spills)
        (batcher,) = loops(batching, requests)
        drive([batcher])
        use = batcher.blocks.use
        assert use is not None
        in_tier = use.tiers[1].hits if tier else 0
        return (use.hits - in_tier) // BLOCK, in_tier // BLOCK

    @pytest.mark.parametrize("places", [1, 3, 4, 5, 6])
    def test_a_cycle_has_all_hits_or_none(self, places: int) -> None:
        """The next of 5 prompts in turn, 4 times, is the one that went out last; 5 places have it from the second time on."""
        assert self.hits_of([*range(5)] * 4, places) == (15 if places >= 5 else 0, 0)

    @pytest.mark.parametrize(("places", "tier"), [(1, 3), (1, 4), (3, 1), (3, 2)])
    def test_a_cycle_over_a_tier(self, places: int, tier: int) -> None:
        """With 5 places of both together the next of 5 is always the one that is longest in the tier."""
        assert self.hits_of([*range(5)] * 4, places, tier) == (0, 15 if places + tier >= 5 else 0)

    def test_there_and_back(self) -> None:
        """0 1 2 3 2 1 0 1 2 3 2 1 0: on the way back from either end 2 places have the one before it, 3 the two before it.

        With 3 places of 4 the ends are missed as well, each time but the first that is computed: 0, 3, 0.
        """
        references = [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
        assert [self.hits_of(references, places)[0] for places in (1, 2, 3, 4)] == [0, 3, 6, 9]

    def test_independent_references(self) -> None:
        """Hits of n prompts that are equally likely, with places for c and d of them: c / n in memory, d / n in the tier.

        One is found where fewer others than there are places have come since it came last. Once all places are taken, hits of
        either are binomial.
        """
        prompts, places, tier, count = 8, 3, 2, 400
        references = np.random.default_rng(5).integers(prompts, size=count).tolist()
        expected = [0, 0]
        for i, each in enumerate(references):
            if each in references[:i]:  # others since then, and itself
                since = len(set(references[i - references[:i][::-1].index(each) : i]))
                expected[0] += since < places
                expected[1] += places <= since < places + tier
        assert self.hits_of(references, places, tier) == tuple(expected)
        assert self.hits_of(references, places) == (expected[0], 0)
        assert self.hits_of(references, places + tier) == (sum(expected), 0)
        for hits, share in zip(expected, (places / prompts, tier / prompts), strict=True):
            assert abs(hits - count * share) < 3 * (count * share * (1 - share)) ** 0.5


#: Layers of a model whose tokens take 100 B, some with windows; and of one with a state, too.
ALL_GROUPS = (*GROUPS, (LayerGroup(None, 60), LayerGroup(7, 40), LayerGroup(0, 500)))

cases = st.lists(
    st.builds(
        asked, st.integers(0, 30), st.integers(0, 1), st.integers(0, 1), st.integers(0, 1),
        tokens=st.integers(1, 9), conversation=st.sampled_from((-1, -1, -1, 0)),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


def assert_conserved(cache: SharedBlocks, running: Sequence[SequenceState]) -> None:
    """Bytes that are used are those that each sequence has for itself, and those that count apart, once each."""
    running = [*running, *(prompt for prompt, _ in cache._prompts.values())]
    sizes = {key: cache._groups[key[0]].bytes(0, 1) for key in cache._holders}
    apart = [each.key for sequence in running for shares in sequence.shares for each in shares.blocks if each.apart]
    within = [each.key for sequence in running for shares in sequence.shares for each in shares.blocks if not each.apart]
    assert all(apart.count(key) == count for key, count in cache._holders.items())
    assert len(within) == len(set(within))
    assert set(within) == cache._reserved
    assert cache._free == {key: sizes[key] for key, count in cache._holders.items() if not count and key not in within}
    assert cache.used == sum(sequence.held for sequence in running) + sum(sizes[key] for key in set(apart))
    assert cache.kept == sum(cache._free.values())
    assert cache.batching.capacity is None or cache.used + cache.kept <= cache.batching.capacity
    block = cache.batching.layout.block
    for sequence in running:
        for g, group in enumerate(cache._groups):
            shares = sequence.shares[g]
            first = shares.first
            assert all(first <= each.number < -(-sequence.allocated // block) for each in shares.blocks)
            # All blocks that it has now fit what is counted for it.
            now = group.bytes(first, -(-min(sequence.cached, sequence.allocated) // block))
            most = cache.batching.at_once(0 if sequence.shared else sequence.pending)
            assert now <= shares.apart + group.held(first, -(-sequence.allocated // block), most, apart=shares.apart)


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 4), st.none() | st.integers(10, 16), st.sampled_from(("wait", "recompute")), st.data())
def test_blocks_are_conserved(requests: list[Request], sequences: int, blocks: int | None, full: str, data: Any) -> None:
    chunk, groups = data.draw(st.sampled_from((None, 3, 8))), data.draw(st.sampled_from(ALL_GROUPS))
    tiers = data.draw(st.sampled_from(((), (3,), (2, None), (0, 2, 3)))) if len(groups) == 1 else ()
    batching = resolved(
        "continuous", sequences=sequences, blocks=blocks, full=full, chunk=chunk, block=BLOCK, prefix_cache=True, tiers=tiers,
        evicted="tiers" if tiers else "lost", groups=groups,
    )  # fmt: skip
    if not feasible(batching, requests):
        return
    (batcher,) = loops(batching, requests)
    cache = batcher.blocks
    assert isinstance(cache, SharedBlocks)
    ahead, steps, now = data.draw(st.booleans()), [], 0
    while (batch := batcher.next(now)) is not None:
        assert_conserved(cache, batcher.running)
        for tier, limit in enumerate(tiers):
            assert cache.tiers.used[tier] == cache.tiers.taken[tier] - cache.tiers.freed[tier]
            assert limit is None or cache.tiers.used[tier] <= limit * BLOCK * 100
        many = 1 + (batcher.steps_ahead() if ahead else 0)
        steps += [(now, batch if not i else batch.decoded_on(i)) for i in range(many)]
        batcher.ended(batch, now, many)
    assert not batcher.waiting
    assert cache.used == 0
    assert emitted(steps) == {number: request.tokens for number, request in enumerate(requests)}
    assert cache.kept == sum(cache._free.values())
    plain = loops(resolved("continuous", sequences=sequences, full=full, chunk=chunk, block=BLOCK, groups=groups), requests)
    if blocks is None:  # as many tokens fewer as were found
        computed = [sum(m.query for _, b in each for m in b.members) for each in (steps, drive(plain))]
        assert computed[0] == computed[1] - cache.hits


def scenario(**workload: Any) -> sim.Scenario:
    return from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
        "hardware": {"engines": {"count": 2}, "memory": {"bandwidth": "1 TB/s"}},
        "workload": workload, "mapping": {"heads": "fused"}, "seed": 3,
    })  # fmt: skip


GENERATED = {
    "generate": {"count": 12, "prompt": 20, "tokens": 9, "prefixes": {"count": 2, "tokens": 64}},
    "batching": {"policy": "continuous", "max_batch": 3, "kv": {"prefix_cache": True}},
}  # fmt: skip


@pytest.mark.parametrize(
    "kv", [{}, {"capacity": f"{16 * 30 * 4096} B"}, {"capacity": f"{16 * 15 * 4096} B", "full": "recompute"}]
)
@pytest.mark.parametrize("evicted", [{}, {"evicted": "tiers"}, {"evicted": "tiers", "moves": "between"}])
@pytest.mark.parametrize("arrivals", [{}, {"process": "poisson", "rate": "2000/s"}])
def test_executors_agree(kv: dict[str, Any], arrivals: dict[str, Any], evicted: dict[str, str]) -> None:
    batching = GENERATED["batching"] | {"kv": {"prefix_cache": True, **evicted, **kv}}
    generate = GENERATED["generate"] | ({"arrivals": arrivals} if arrivals else {})
    data = scenario(generate=generate, batching=batching).to_dict()
    data["hardware"] |= {
        "host": {"memory": f"{16 * 5 * 4096} B", "link": {"bandwidth": "50 GB/s"}},
        "tiers": [{"name": "ssd", "link": {"bandwidth": "7 GB/s"}}],
    }
    setup = plan(from_dict(data)).setup
    log = reference.simulate(setup)
    other = compiled.simulate(setup)
    assert other is not None
    assert_same(log, other)
    assert log.cache == other.cache
    assert log.cache is not None
    assert log.cache.tokens >= 12 * 84
    if not arrivals and setup.batching is not None and not setup.batching.beside:
        assert spans.simulate(setup, rules.disciplines(setup), 3).cache == log.cache


def test_what_is_found_is_not_computed(tmp_path: Path) -> None:
    """Each of two prefixes of 64 tokens is computed by those that come before it is there, and 64 tokens fewer by others."""
    result = sim.run(scenario(**GENERATED))
    cache, members = result.log.cache, result.log.members
    assert cache is not None
    assert int(members.query.sum()) == 12 * (84 + 8) - cache.hits
    assert cache.hits % 64 == 0
    assert 12 - 2 * 3 <= cache.hits // 64 <= 12 - 2
    data = summary(result, timing=False)["requests"]["prefix_cache"]
    assert data == {
        "tokens": 12 * 84, "hits": cache.hits, "hit_rate": round(cache.hits / (12 * 84), 6),
        "bytes_saved": cache.hits * 2 * 2048, "evicted_blocks": 0,
    }  # fmt: skip
    pytest.importorskip("pyarrow")
    sim.save_log(result.log, result.scenario, tmp_path / "run.parquet")
    log, _ = sim.load_log(tmp_path / "run.parquet")
    assert log.cache == cache


def test_each_of_several_loops_has_a_cache() -> None:
    """All prompts are looked up in one of three caches, and what is found in any of them is not computed."""
    data = scenario(**GENERATED).to_dict()
    data["mapping"]["parallel"] = {"micro_batches": 3}
    setup = plan(from_dict(data)).setup
    log, other = reference.simulate(setup), compiled.simulate(setup)
    assert other is not None
    assert log.cache is not None
    assert log.cache == other.cache
    assert log.cache.tokens == 12 * 84
    assert 0 < log.cache.hits == 12 * (84 + 8) - int(log.members.query.sum())


def test_turns_by_hand() -> None:
    """Prompts of 100 + 200, 540, 780: after 339 and 579 tokens 21 and 36 blocks are full, and 6 of a beginning."""
    generate = {"count": 3, "turns": 3, "prompt": 200, "tokens": 40, "prefixes": {"tokens": 100}}
    batching = {"policy": "continuous", "kv": {"prefix_cache": True}}
    log = plan(scenario(generate=generate, batching=batching, concurrency=1)).setup
    assert [request.prompt for request in log.sequences] == [300, 540, 780] * 3
    assert reference.simulate(log).cache == CacheUse(3 * (300 + 540 + 780), 16 * (3 * (21 + 36) + 2 * 6), 0)


def test_hash_ids_of_mooncake(tmp_path: Path) -> None:
    """The last block of a prompt has fewer than 512 tokens; the second request shares the first block of the first one."""
    rows = ((0, 600, [1, 2]), (100_000, 600, [1, 3]), (200_000, 600, [1, 2]))
    lines = [f'{{"timestamp": {t}, "input_length": {n}, "output_length": 2, "hash_ids": {ids}}}' for t, n, ids in rows]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))
    batching = {"policy": "continuous", "kv": {"prefix_cache": True}}
    log = sim.run(scenario(trace=str(path), batching=batching)).log
    context = [int(log.members.context[np.flatnonzero(log.members.sequence == number)[0]]) for number in range(3)]
    assert context == [0, 512, 592]
    assert log.cache == CacheUse(1800, 512 + 592, 0)
    path.write_text("\n".join(line.replace("hash_ids", "other") for line in lines))
    columns = {"arrival": "timestamp", "prompt": "input_length", "tokens": "output_length", "prefix": "other"}
    trace = {"file": str(path), "columns": columns, "unit": "ms"}
    with pytest.raises(InputError, match=r"workload\.trace\.prefix_tokens: expected the number of tokens"):
        plan(scenario(trace=trace, batching=batching))
    assert sim.run(scenario(trace=trace | {"prefix_tokens": 512}, batching=batching)).log.cache == log.cache


def test_swapping_is_refused() -> None:
    kv = {"prefix_cache": True, "full": "swap", "capacity": "1 GB"}
    with pytest.raises(InputError, match=r"prefix_cache: expected full: wait or recompute"):
        plan(scenario(sequences=[{"prompt": 600, "tokens": 2}], batching={"policy": "continuous", "kv": kv}))
