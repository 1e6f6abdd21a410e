"""KV blocks: the paged KV cache from which the sequences of a loop allocate.

Samples of one prompt share the blocks that it fills, which are freed with the last of them. Each has other blocks to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.base.units import ceil_div
from sim.serving.sequence import SequenceState


@dataclass(slots=True)
class KVBlocks:
    """Blocks of some tokens each. capacity: how many there are, None if unbounded. used: how many are allocated."""

    tokens: int
    capacity: int | None
    used: int = 0
    _sharing: dict[int, int] = field(default_factory=dict)  # group -> samples that hold its shared blocks

    def grow(self, sequence: SequenceState, tokens: int) -> bool:
        """Allocate what a sequence lacks to hold so many tokens; returns False, and changes nothing, if it does not fit."""
        missing = max(0, self._own(sequence, tokens) - sequence.blocks)
        if not self._fits(missing):
            return False
        sequence.blocks += missing
        self.used += missing
        return True

    def allocate_samples(self, samples: Sequence[SequenceState]) -> bool:
        """Allocate everything that the samples of a prompt will ever hold; returns False if it does not fit."""
        shared, group = self._shared(samples[0]), samples[0].request.group
        for sample in samples:
            sample.shared = sample.request.context + sample.request.prompt
        own = [self._own(sample, max(sample.request.final, sample.shared)) for sample in samples]
        if not self._fits(sum(own) + shared):
            return False
        self.used += sum(own) + shared
        self._sharing[group] = len(samples)
        for sample, blocks in zip(samples, own, strict=True):
            sample.blocks = blocks
        return True

    def free(self, sequence: SequenceState) -> None:
        """Free the blocks of a sequence, and those it shares if no other sample holds them."""
        self.used -= sequence.blocks
        sequence.blocks = 0
        group = sequence.request.group
        if group >= 0:
            self._sharing[group] -= 1
            if not self._sharing[group]:
                self.used -= self._shared(sequence)

    def _fits(self, blocks: int) -> bool:
        return self.capacity is None or self.used + blocks <= self.capacity

    def _own(self, sequence: SequenceState, tokens: int) -> int:
        """Number of blocks that a sequence needs for so many tokens, without those it shares."""
        return ceil_div(tokens, self.tokens) - sequence.shared // self.tokens

    def _shared(self, sample: SequenceState) -> int:
        """Number of blocks that its prompt fills."""
        return (sample.request.context + sample.request.prompt) // self.tokens
