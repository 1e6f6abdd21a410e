"""KV blocks: the paged KV cache from which the sequences of a loop allocate, and their states.

Samples of one prompt share the pages that it fills, which are freed with the last of them. Each has other pages to itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.mapping.steps import Swap
from sim.serving.batch import Batch, Member
from sim.serving.batching import ResolvedBatching
from sim.serving.cache import CacheUse
from sim.serving.sequence import SequenceState
from sim.workload.requests import Request


@dataclass(slots=True)
class SharedPages:
    """Pages that a prompt fills. samples: those that hold them. held: bytes."""

    samples: list[SequenceState]
    held: int


class CacheMove(NamedTuple):
    """A move over the link of a tier: of the cache of a sequence `out` to it or back `in`, of a cache or of blocks on to it
    (`spill`), or of blocks from it (`fetch`).

    sequence: the one whose cache moves, or for which blocks do: it takes part in no step meanwhile. tokens: that move. others:
    sequences that have found blocks that are on their way, and wait for them, too. draft: it is the cache of the draft model
    that moves, after that of the model. last: nothing of the same moves after it.
    """

    swap: Swap
    tier: int
    sequence: SequenceState
    tokens: int
    others: list[SequenceState]
    draft: bool = False
    last: bool = True

    def step(self, device: int) -> Batch:
        """The step that makes it."""
        member = Member(self.sequence.number, self.tokens, 0, self.tokens, 0, 0)
        return Batch((member,), self.swap, draft=self.draft, tier=self.tier, device=device)


@dataclass(slots=True)
class KVBlocks:
    """Pages of a KV cache; `batching` has their layout and the capacity. used: bytes that are allocated. moves: to and from
    tiers that are still to be begun, in order. moving: how many have not ended.
    """

    batching: ResolvedBatching
    used: int = 0
    moves: deque[CacheMove] = field(default_factory=deque)
    moving: int = 0
    _sharing: dict[int, SharedPages] = field(default_factory=dict)  # by group

    @property
    def use(self) -> CacheUse | None:
        """Use of the prefix cache; None without one."""
        return None

    def lacks(self, sequence: SequenceState, tokens: int) -> int:
        """Bytes that a sequence lacks to get to so many tokens."""
        return self.own(sequence, max(sequence.allocated, tokens)) - sequence.held

    def own(self, sequence: SequenceState, allocated: int) -> int:
        """Bytes that a sequence holds, without the pages it shares, on its way to so many tokens."""
        pending = 0 if sequence.shared else sequence.pending  # of a shared prompt, no more than a page is left out of it
        most = self.batching.at_once(pending)
        return self.batching.layout.held_in_all(sequence.cached, allocated, most, after=sequence.shared)

    def grow(self, sequence: SequenceState, tokens: int, *, leave: int = 0) -> bool:
        """Allocate what a sequence lacks to get to so many tokens; returns False, and changes nothing, if it does not fit.

        leave: bytes that are left for others.
        """
        missing = self.lacks(sequence, tokens)
        if missing > 0 and not self.fits(missing + leave):
            return False
        sequence.allocated = max(sequence.allocated, tokens)
        sequence.held += missing
        self.used += missing
        return True

    def move(self, swap: Swap, tier: int, sequence: SequenceState, tokens: int, *, drafted: int | None = None) -> CacheMove:
        """Have so many tokens move to or from a tier, after all moves before; with a draft model those of its cache, too.

        drafted: tokens that it has in its cache, None: as many. Returns the last of these moves.
        """
        drafted = tokens if drafted is None else drafted
        both = self.batching.drafts and drafted > 0
        moves = [CacheMove(swap, tier, sequence, tokens, [], last=not both)]
        moves += [CacheMove(swap, tier, sequence, drafted, [], draft=True)] if both else []
        self.moves += moves
        self.moving += len(moves)
        sequence.moving += len(moves)
        return moves[-1]

    def moved(self, move: CacheMove) -> None:
        """Take note that a move has ended."""
        self.moving -= 1
        for sequence in (move.sequence, *move.others):
            sequence.moving -= 1

    def admit(self, sequence: SequenceState, tokens: int) -> bool:
        """Allocate what a sequence that joins needs to get to so many tokens, as `grow`."""
        return self.grow(sequence, tokens)

    def steady(self, sequence: SequenceState) -> int:
        """Steps of a sequence that decodes one token in each, at the end of the last of which its blocks may change."""
        return sequence.request.tokens - sequence.generated

    def filled(self, sequences: Iterable[SequenceState]) -> None:
        """Take note of what a step has put into the cache of sequences."""

    def allocate_samples(self, samples: Sequence[SequenceState]) -> bool:
        """Allocate everything that the samples of a prompt will ever hold; returns False if it does not fit."""
        request = samples[0].request
        needed = bytes_of_samples(self.batching, request, len(samples))
        if not self.fits(needed):
            return False
        for sample in samples:
            sample.shared = request.context + request.prompt
            sample.allocated = max(request.final, sample.shared)
            sample.held = self.own(sample, sample.allocated)
        self.used += needed
        self._sharing[request.group] = SharedPages(list(samples), needed - sum(sample.held for sample in samples))
        return True

    def free_unseen(self, sequences: Sequence[SequenceState]) -> None:
        """Free the pages of sequences that no later query sees, and what they do not need after all."""
        for sequence in sequences:
            unseen = sequence.held - self.own(sequence, sequence.allocated)
            sequence.held -= unseen
            self.used -= unseen
        for pages in self._sharing.values():
            self._free_unseen_of(pages)

    def free(self, sequence: SequenceState) -> None:
        """Free the pages of a sequence, and those it shares if no other sample holds them."""
        self.used -= sequence.held
        sequence.held = sequence.allocated = 0
        pages = self._sharing.get(sequence.request.group)
        if pages is not None:
            pages.samples.remove(sequence)
            if not pages.samples:
                self.used -= pages.held
                del self._sharing[sequence.request.group]

    def _free_unseen_of(self, pages: SharedPages) -> None:
        """Free the shared pages that no query of any sample sees: the one that has the fewest tokens sees the first page."""
        cached = min(sample.cached for sample in pages.samples if not sample.forked)
        unseen = pages.held - _shared(self.batching, pages.samples[0].request, cached)
        pages.held -= unseen
        self.used -= unseen

    def fits(self, missing: int) -> bool:
        """Whether so many bytes can be allocated."""
        return self.batching.capacity is None or self.used + missing <= self.batching.capacity


def bytes_of_samples(batching: ResolvedBatching, request: Request, samples: int) -> int:
    """Bytes of all pages that so many samples of a request's prompt will ever hold together."""
    shared = request.context + request.prompt
    own = batching.layout.held_in_all(request.context, max(request.final, shared), batching.at_once(0), after=shared)
    return _shared(batching, request, request.context) + samples * own


def _shared(batching: ResolvedBatching, request: Request, cached: int) -> int:
    """Bytes of the pages that a request's prompt fills, from where the first of its samples has `cached` tokens."""
    block = batching.layout.block
    full = (request.context + request.prompt) // block * block
    return batching.layout.held(cached, full, batching.at_once(request.prompt))
