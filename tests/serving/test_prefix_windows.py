"""The prefix cache of layers with a window: hits, evictions and bytes by hand, and both executors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim.base.errors import InputError
from sim.executors import compiled, reference
from sim.machine.kv_cache import LayerGroup
from sim.runs.plan import plan
from sim.scenario import from_dict
from sim.serving.cache import CacheUse
from sim.serving.loops import loops
from sim.serving.prefix import SharedBlocks
from tests.executors import assert_same
from tests.machine.test_kv_cache import GPT_OSS
from tests.serving.test_batcher import resolved
from tests.serving.test_brute_force import QWEN, WINDOW
from tests.serving.test_prefix import BLOCK, asked, assert_conserved, served

#: Layers of a token of 100 B: 30 without a window, 70 with one of 6 tokens, of which a query sees 5 in the cache.
LAYERS = (LayerGroup(None, 30), LayerGroup(6, 70))


class TestByHand:
    """Blocks of 4 tokens are 120 B in the layers without a window, and 280 B in the others."""

    #: After its prompt of 13 tokens 8 more come to the cache: blocks 0 to 4 are full, and the window has left 0 to 3.
    LONG = asked(13, 1, 2, 3, tokens=9, conversation=0)

    def test_blocks_that_a_window_has_left_are_found(self) -> None:
        """The other prompt finds 12 tokens, of which its next token sees 5 in the window: blocks 1 and 2."""
        fed, blocks = served([self.LONG, asked(13, 1, 2, 3)], sequences=1, groups=LAYERS)
        assert fed == [(0, 0, 13)]
        assert blocks.use == CacheUse(26, 12, 0)

    def test_a_beginning_without_its_window_is_not_found(self) -> None:
        """2,400 B. The first request leaves 5 blocks of each group, 2,000 B; that of another 5 tokens takes 800.

        So blocks 1 and 0 of the window are evicted, which it has left first, the later one before the earlier one. Without
        them none of the beginnings of 4, 8 and 12 tokens can be gone on from, although the other layers have all of it.
        """
        _, blocks = served([self.LONG], sequences=1, blocks=6, groups=LAYERS)
        assert [(group, content.number) for group, content in blocks._free][:3] == [(1, 1), (1, 0), (1, 2)]
        fed, blocks = served([self.LONG, asked(5, 9)], sequences=1, blocks=6, groups=LAYERS)
        assert blocks.use == CacheUse(18, 0, 2)
        assert [group for group, content in blocks._holders if content.number < 2 and content.text != 4] == [0, 0]
        fed, blocks = served([self.LONG, asked(5, 9), asked(13, 1, 2, 3)], sequences=1, blocks=6, groups=LAYERS)
        assert fed == [(0, 0, 13), (1, 0, 5), (2, 0, 13)]
        assert blocks.hits == 0

    def test_the_next_turn_needs_the_last_blocks_of_the_window(self) -> None:
        """It finds blocks 0 to 4, and of the window 3 and 4, which are there; blocks 0 and 1 of it are not."""
        turn = asked(24, 1, 2, 3, conversation=0)
        fed, blocks = served([self.LONG, asked(5, 9), turn], sequences=1, blocks=6, groups=LAYERS)
        assert fed == [(0, 0, 13), (1, 0, 5), (2, 20, 4)]
        assert blocks.hits == 20

    def test_layers_that_all_have_a_window(self) -> None:
        """With 12 tokens found, blocks 1 and 2 are held, and block 0 is not looked at."""
        fed, blocks = served([self.LONG, asked(13, 1, 2, 3)], sequences=1, groups=LAYERS[1:])
        assert (fed, blocks.hits) == ([(0, 0, 13)], 12)

    def test_bytes_of_two_requests(self) -> None:
        """gpt-oss-20b, whose groups take 24,576 B a token each; 2,048 tokens that both begin with, and 16 and 100 more.

        Both end with 2,163 tokens, 136 blocks. After its prompt the first has all of these, and 9 of the window of 128 tokens,
        on which its last 127 tokens and a new one lie wherever they begin. The second finds 128 blocks and has 8 for itself. Of
        the window it finds blocks 120 to 127, of which the first has left 120 and still holds 7: these count apart. It leaves
        120 with its prompt, and will have 128 to 135 for itself. When the first has ended, it still holds block 127.
        """
        requests = [replace(asked(2064, *range(512), i, tokens=100), arrival=i - 512) for i in (512, 513)]
        batching = resolved("continuous", sequences=2, block=16, prefix_cache=True, groups=GPT_OSS)
        (batcher,) = loops(batching, requests)
        for now in range(2):
            batch = batcher.next(now)
            assert batch is not None
            batcher.ended(batch, now + 1)
        cache, block = batcher.blocks, 16 * 24576
        assert isinstance(cache, SharedBlocks)
        assert [member.context for member in batch.members] == [2064, 2048]
        assert cache.used == (136 + 9 + 8 + 7 + 8) * block
        while len(batcher.running) == 2:
            batch = batcher.next(2)
            assert batch is not None
            batcher.ended(batch, 2)
        assert cache.used == (136 + 9) * block
        assert_conserved(cache, batcher.running)


def test_executors_agree(tmp_path: Path) -> None:
    """Two layers, of which one has a window of 19 tokens, with too little memory for all."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(QWEN))
    prefixes = {"count": 2, "tokens": 3 * WINDOW}
    data: dict[str, Any] = {
        "model": {"config": str(config), "scope": "block"},
        "hardware": {"engines": {"count": 2}, "memory": {"bandwidth": "1 TB/s"}},
        "workload": {
            "generate": {"count": 10, "prompt": 20, "tokens": 20, "prefixes": prefixes},
            "batching": {
                "policy": "continuous", "max_batch": 3,
                "kv": {"prefix_cache": True, "block": 8, "capacity": f"{60 * 8 * 2048} B", "full": "recompute"},
            },
        },
        "mapping": {"heads": "fused"}, "seed": 3,
    }  # fmt: skip
    setup = plan(from_dict(data)).setup
    log, other = reference.simulate(setup), compiled.simulate(setup)
    assert other is not None
    assert_same(log, other)
    assert log.cache == other.cache
    assert log.cache is not None
    assert 0 < log.cache.hits < 8 * 56
    assert log.cache.evicted
    data["workload"]["batching"]["kv"]["evicted"] = "tiers"
    data["hardware"]["host"] = {"link": {"bandwidth": "50 GB/s"}}
    with pytest.raises(InputError, match=r"kv\.evicted: expected 'lost' with sliding windows"):
        plan(from_dict(data))


def test_a_window_that_is_left_block_by_block_is_stopped_at() -> None:
    """Steps are made up anew where a block is full (4, 8 tokens) and where the window leaves one (9, 13 tokens)."""
    batching = resolved("continuous", block=BLOCK, prefix_cache=True, groups=LAYERS)
    (batcher,) = loops(batching, [asked(1, tokens=16)])
    now, cached = 0, list[int]()
    while (batch := batcher.next(now)) is not None:
        many = batcher.steps_ahead() + 1
        batcher.ended(batch, now + many, many)
        cached += [sequence.cached for sequence in batcher.running]
        now += many
    assert cached == [1, 4, 8, 9, 12, 13]
