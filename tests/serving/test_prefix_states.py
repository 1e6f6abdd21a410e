"""The prefix cache of layers with a state: copies at ends of blocks, hits and bytes by hand, and both executors."""

from __future__ import annotations

from typing import Any

import pytest

from sim.base.errors import InputError
from sim.executors import compiled
from sim.machine.kv_cache import KVLayout, LayerGroup
from sim.render.summary import summary
from sim.runs.plan import plan
from sim.runs.run import run
from sim.scenario import from_dict
from sim.serving.batching import ResolvedBatching
from sim.serving.cache import CacheUse
from sim.serving.limits import check_feasible
from sim.serving.loops import loops
from sim.serving.prefix import SharedBlocks
from sim.serving.settings import Prefill
from tests.executors import assert_same
from tests.serving.test_batcher import resolved
from tests.serving.test_prefix import BLOCK, asked, served
from tests.serving.test_states import BLOCK as OF_BLOCK
from tests.serving.test_states import STATE, scenario

LAYERS = (LayerGroup(None, 100), LayerGroup(0, 1000))  # blocks of 400 B, a state of 1,000 B


class TestByHand:
    def test_a_state_is_kept_where_a_step_ends(self) -> None:
        """A prompt of 14 tokens has a chunk up to its last full block, after 12 tokens, and one of the rest.

        The second request goes on from there. The third has 8 tokens in common with them, after which no step has ended.
        """
        fed, blocks = served([asked(14, 1, 2, 3), asked(14, 1, 2, 3), asked(14, 1, 2, 9)], sequences=1, groups=LAYERS)
        assert fed == [(0, 0, 12), (0, 12, 2), (1, 12, 2), (2, 0, 12), (2, 12, 2)]
        assert blocks.hits == 12

    def test_chunks_of_a_block_keep_all(self) -> None:
        """Chunks of 5 tokens are cut to 4, so that the third request finds the state after 8 tokens."""
        fed, _ = served([asked(14, 1, 2, 3), asked(14, 1, 2, 9)], sequences=1, groups=LAYERS, chunk=5)
        assert fed == [(0, 0, 4), (0, 4, 4), (0, 8, 4), (0, 12, 2), (1, 8, 4), (1, 12, 2)]

    def test_a_turn_goes_on_from_the_last_block_of_the_turn_before(self) -> None:
        """The first has 9 tokens and 8 of output, of which 7 come to the cache: states after 8, 12 and 16 tokens are kept."""
        turns = [asked(9, tokens=8, conversation=0), asked(22, conversation=0)]
        fed, blocks = served(turns, sequences=1, groups=LAYERS)
        assert fed == [(0, 0, 8), (1, 16, 4), (1, 20, 2)]
        assert blocks.use == CacheUse(31, 16, 0)
        assert sorted(content.number for group, content in blocks._holders if group) == [1, 2, 3, 4]

    def test_states_are_evicted_as_blocks_are(self) -> None:
        """4,800 B. The first request leaves blocks 0 to 2, 1,200 B, and the states after 8 and 12 tokens.

        Then 5 tokens take 800 B and two states: with 3,200 B that there were and 2,800 B, 1,200 B too many. The state after 8
        tokens, left first, and block 2 go. The state after 12 tokens stays, but without its block it is of no use.
        """
        requests = [asked(9, 1, 2, tokens=5, conversation=0), asked(5, 9), asked(18, 1, 2, conversation=0)]
        fed, _ = served(requests, sequences=1, blocks=12, groups=LAYERS)
        assert fed == [(0, 0, 8), (1, 0, 4), (2, 0, 16), (2, 16, 2)]

    def test_states_alone(self) -> None:
        """Without layers of attention there are no bytes of a token; a step at the end of a block has two states."""
        batching = resolved("continuous", blocks=1, block=BLOCK, prefix_cache=True, groups=(LayerGroup(0, 1000),))
        with pytest.raises(InputError, match=r"takes up to 2\.000 kB, more than the \d+ B of the KV cache"):
            check_feasible(batching, [asked(9, tokens=8)])

    def test_bytes(self) -> None:
        """16 tokens are 4 blocks, and a step at the end of a block reads one state and writes another: 3,600 B."""
        request = asked(9, tokens=8)
        check_feasible(resolved("continuous", blocks=9, block=BLOCK, prefix_cache=True, groups=LAYERS), [request])
        batching = resolved("continuous", blocks=8, block=BLOCK, prefix_cache=True, groups=LAYERS)
        with pytest.raises(InputError, match=r"ends with 16 tokens and takes up to 3\.600 kB, more than the 3\.200 kB"):
            check_feasible(batching, [request])
        batching = resolved("continuous", blocks=9, block=BLOCK, prefix_cache=True, groups=LAYERS, full="recompute")
        (batcher,) = loops(batching, [request])
        cache, held = batcher.blocks, list[tuple[int, int]]()
        assert isinstance(cache, SharedBlocks)
        while (batch := batcher.next(len(held))) is not None:
            batcher.ended(batch, len(held) + 1)
            held.append((cache.used, cache.kept))
        # After 8 tokens 9 have blocks, and the state after 8 is read next; it is left, and kept, after 9 tokens.
        assert held[:2] == [(3 * 400 + 2000, 0), (3 * 400 + 1000, 1000)]
        # After 12 tokens, and after 13, where the state after 12 is left, and that after 8 is evicted for want of 1,000 B.
        assert held[4:6] == [(3 * 400 + 1000, 1000), (4 * 400 + 1000, 1000)]
        assert cache.evicted == 1
        assert held[-1] == (0, 4 * 400 + 2 * 1000)


@pytest.mark.parametrize(("prompt", "chunk"), [(14, None), (12, None), (3, None), (30, 9), (32, 4), (30, 3), (5, 16)])
def test_chunks_are_counted(prompt: int, chunk: int | None) -> None:
    batching = ResolvedBatching(prefill=Prefill(chunk=chunk), layout=KVLayout(BLOCK, LAYERS))
    cached = chunks = 0
    while cached < prompt:
        cached, chunks = cached + batching.chunk_of(cached, prompt - cached, chunk), chunks + 1
    assert batching.chunks_of(prompt) == chunks


@pytest.mark.parametrize("full", ["wait", "recompute"])
def test_executors_agree(full: str) -> None:
    """Four layers of Qwen3-Next: three users whose turns find those before them, and states of 6.5 MB for some of them."""
    data: dict[str, Any] = scenario(9 * STATE, full=full, prefix_cache=True, block=32).to_dict()
    del data["workload"]["sequences"]
    data["workload"] |= {"generate": {"count": 3, "turns": 3, "prompt": 50, "tokens": 20}, "concurrency": 3}
    result = run(from_dict(data), executor="simpy")
    log, other = result.log, compiled.simulate(result.plan.setup)
    assert other is not None
    assert_same(log, other)
    assert log.cache == other.cache
    assert log.cache is not None
    # Of 50, 120 and 190 tokens the turns before have 69 and 139 in the cache: 2 and 4 full blocks.
    assert (log.cache.tokens, log.cache.hits) == (3 * 360, 3 * 32 * 6)
    assert log.cache.evicted
    assert (
        summary(result, timing=False)["requests"]["prefix_cache"]["bytes_saved"] == log.cache.hits * OF_BLOCK // 16
    )  # of keys and values, no states


def test_a_draft_model_is_refused() -> None:
    data = scenario(9 * STATE, full="wait", prefix_cache=True).to_dict()
    data["workload"]["speculative"] = {"draft": 2, "acceptance": 0.5, "model": {"config": "llama-3.2-1b", "layers": 1}}
    with pytest.raises(InputError, match=r"prefix_cache: expected false with states and a draft model"):
        plan(from_dict(data))
