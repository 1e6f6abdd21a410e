"""Pages of sequences by hand: 4 tokens in a page, and two layers of 1 B a token, the second with a window of 6."""

from __future__ import annotations

from sim.machine.kv_cache import KVLayout, LayerGroup
from sim.serving.batching import ResolvedBatching
from sim.serving.blocks import KVBlocks
from sim.serving.sequence import SequenceState
from sim.serving.settings import Batching, Prefill, Speculative
from sim.workload.requests import Request

PAGE = 4
LAYOUT = KVLayout(PAGE, (LayerGroup(None, 1), LayerGroup(6, 1)))


def blocks(pages: int | None = None, *, chunk: int | None = None, drafts: int = 0, max_tokens: int | None = None) -> KVBlocks:
    """pages: of one layer, that fit."""
    return KVBlocks(
        ResolvedBatching(
            settings=Batching(policy="continuous", max_tokens=max_tokens), prefill=Prefill(chunk=chunk), layout=LAYOUT,
            speculation=Speculative(draft=drafts, acceptance=0.5) if drafts else None,
            capacity=None if pages is None else pages * PAGE,
        )
    )  # fmt: skip


def waiting(*, context: int = 0, prompt: int = 0, tokens: int = 1, group: int = -1) -> SequenceState:
    request = Request(context=context, prompt=prompt, tokens=tokens, arrival=0, group=group)
    return SequenceState(0, request, request.context, request.prompt)


def test_a_sequence_frees_what_its_window_has_left() -> None:
    cache, sequence = blocks(), waiting(context=9, tokens=8)
    held = []
    for cached in range(9, 17):
        sequence.cached = cached
        cache.free_unseen([sequence])
        assert cache.grow(sequence, cached + 1)
        held.append((cache.used // PAGE, sequence.held // PAGE))
    # Pages of tokens 0 to `cached`, and those of the last six: from token `cached` - 5 on.
    assert held == [(n, n) for n in (3 + 2, 3 + 2, 3 + 2, 4 + 3, 4 + 2, 4 + 2, 4 + 2, 5 + 3)]
    cache.free(sequence)
    assert cache.used == sequence.held == sequence.allocated == 0


def test_growth_that_does_not_fit_changes_nothing() -> None:
    cache, sequence = blocks(6), waiting(context=11, tokens=9)
    assert cache.grow(sequence, 12)  # 3 + 2 pages
    assert not cache.grow(sequence, 13)
    assert (cache.used, sequence.held, sequence.allocated) == (5 * PAGE, 5 * PAGE, 12)


def test_pages_for_drafts_remain() -> None:
    """A step of three drafts from 10 tokens takes pages up to token 13; if all are wrong, the next one has them already."""
    cache, sequence = blocks(drafts=3), waiting(context=10, tokens=9)
    assert cache.grow(sequence, 14)
    assert cache.used == (4 + 3) * PAGE
    sequence.cached = 11
    cache.free_unseen([sequence])
    assert cache.used == (4 + 3) * PAGE  # tokens 6 to 13
    sequence.cached = 13
    cache.free_unseen([sequence])
    assert cache.used == (4 + 2) * PAGE  # tokens 8 to 13


def test_chunks_of_a_prompt() -> None:
    """40 tokens, 10 pages. Chunks of 7 and the 5 tokens before them are on at most 4 pages, if max_tokens allows 7."""
    for chunk, max_tokens, most in ((None, None, 10), (7, None, 4), (9, 7, 4), (1, 1, 3)):
        cache, sequence = blocks(chunk=chunk, max_tokens=max_tokens), waiting(prompt=40)
        assert cache.grow(sequence, 40)
        assert cache.used == (10 + most) * PAGE
        sequence.cached, sequence.pending = 40, 0
        cache.free_unseen([sequence])
        assert cache.used == (10 + 2) * PAGE  # tokens 35 to 39 are on pages 8 and 9


def test_samples_free_what_the_last_of_them_has_left() -> None:
    """A prompt of 22 tokens in chunks of 5 fills pages 0 to 4; two samples then go on to 60 tokens, by pages 5 to 14."""
    cache, samples = blocks(chunk=5), [waiting(prompt=22, tokens=39, group=0) for _ in range(2)]
    assert cache.allocate_samples(samples)
    first, second = samples
    second.forked = True
    # Of the prompt, 5 + 5 tokens are on at most 4 pages; when all decode, 6 tokens are on at most 3.
    assert [sample.held // PAGE for sample in samples] == [10 + 3, 10 + 3]
    own = 26
    assert cache.used // PAGE == 5 + 4 + own
    first.cached, first.pending = 15, 7  # sees from token 10 on: pages 2, 3 and 4
    cache.free_unseen(samples)
    assert cache.used // PAGE == 5 + 3 + own
    first.cached, first.pending = 20, 2  # from token 15 on: pages 3 and 4
    cache.free_unseen(samples)
    assert cache.used // PAGE == 5 + 2 + own
    first.pending, second.pending, second.forked = 0, 0, False
    first.cached, second.cached = 25, 22  # the second sees from token 17 on: page 4
    cache.free_unseen(samples)
    assert cache.used // PAGE == 5 + 1 + own
    second.cached = 59  # from token 54 on, its own pages 13 and 14; the first sees from token 20 on, none of the prompt's
    cache.free_unseen(samples)
    assert [sample.held // PAGE for sample in samples] == [10 + 3, 10 + 2]
    assert cache.used // PAGE == 5 + 25
    cache.free(second)
    assert cache.used // PAGE == 5 + 13
    cache.free(first)
    assert cache.used == 0
