"""KV blocks: the paged KV cache from which the sequences of a loop allocate, and their states.

Samples of one prompt share the pages that it fills, which are freed with the last of them. Each has other pages to itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.mapping.steps import Swap
from sim.serving.batching import ResolvedBatching
from sim.serving.cache import CacheUse
from sim.serving.sequence import SequenceState
from sim.workload.requests import Request


@dataclass(slots=True)
class SharedPages:
    """Pages that a prompt fills. samples: those that hold them. held: bytes."""

    samples: list[SequenceState]
    held: int


class BlockMove(NamedTuple):
    """A move of full blocks between tiers, over the link of one: `spill` to it, or `fetch` from it.

    sequence: number of the one for which it is made. tokens: in all of these blocks.
    """

    swap: Swap
    tier: int
    sequence: int
    tokens: int


@dataclass(slots=True)
class KVBlocks:
    """Pages of a KV cache; `batching` has their layout and the capacity. used: bytes that are allocated. moves: of blocks, that
    must be made before the next step.
    """

    batching: ResolvedBatching
    used: int = 0
    moves: deque[BlockMove] = field(default_factory=deque)
    _sharing: dict[int, SharedPages] = field(default_factory=dict)  # by group

    @property
    def use(self) -> CacheUse | None:
        """Use of the prefix cache; None without one."""
        return None

    def grow(self, sequence: SequenceState, tokens: int) -> bool:
        """Allocate what a sequence lacks to get to so many tokens; returns False, and changes nothing, if it does not fit."""
        before, sequence.allocated = sequence.allocated, max(sequence.allocated, tokens)
        missing = _own(self.batching, sequence) - sequence.held
        if not self._fits(missing):
            sequence.allocated = before
            return False
        sequence.held += missing
        self.used += missing
        return True

    def admit(self, sequence: SequenceState, tokens: int) -> bool:
        """Allocate what a sequence that joins needs to get to so many tokens, as `grow`."""
        return self.grow(sequence, tokens)

    def filled(self, sequences: Iterable[SequenceState]) -> None:
        """Take note of what a step has put into the cache of sequences."""

    def allocate_samples(self, samples: Sequence[SequenceState]) -> bool:
        """Allocate everything that the samples of a prompt will ever hold; returns False if it does not fit."""
        request = samples[0].request
        needed = bytes_of_samples(self.batching, request, len(samples))
        if not self._fits(needed):
            return False
        for sample in samples:
            sample.shared = request.context + request.prompt
            sample.allocated = max(request.final, sample.shared)
            sample.held = _own(self.batching, sample)
        self.used += needed
        self._sharing[request.group] = SharedPages(list(samples), needed - sum(sample.held for sample in samples))
        return True

    def free_unseen(self, sequences: Sequence[SequenceState]) -> None:
        """Free the pages of sequences that no later query sees, and what they do not need after all."""
        for sequence in sequences:
            unseen = sequence.held - _own(self.batching, sequence)
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

    def _fits(self, missing: int) -> bool:
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


def _own(batching: ResolvedBatching, sequence: SequenceState) -> int:
    """Bytes that a sequence holds, without the pages it shares, on its way to the tokens allocated to it."""
    pending = 0 if sequence.shared else sequence.pending  # of a shared prompt, no more than a page is left out of it
    most = batching.at_once(pending)
    return batching.layout.held_in_all(sequence.cached, sequence.allocated, most, after=sequence.shared)
