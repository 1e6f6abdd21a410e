"""Composition of steps: which of the sequences that run are members of the next step, and with how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.serving.batch import Member
from sim.serving.batching import ResolvedBatching
from sim.serving.sequence import SequenceState
from sim.serving.speculation import accepted


@dataclass(slots=True, eq=False)
class Composer:
    """Makes up the members of the steps of a loop."""

    batching: ResolvedBatching
    _overdue: SequenceState | None = None  # a prompt for which decodes left too little in the last step

    def members(self, running: Sequence[SequenceState]) -> tuple[list[Member], list[SequenceState]]:
        """The members of the next step and their sequences: decodes first, then prefills, each in order of admission."""
        overdue, self._overdue = self._overdue, None
        kept = self._chunk(overdue) if overdue is not None and overdue in running else 0
        ready = [sequence for sequence in running if sequence.ready]
        decoding, drafting, budget = self._choose_decodes(ready, kept)
        prefilling, chunks = self._choose_prefills(ready, budget, may_wait=bool(kept) or not decoding)
        members = self._decodes(decoding, drafting)
        for sequence, query in zip(prefilling, chunks, strict=True):
            last = int(query == sequence.pending)
            members.append(Member(sequence.number, sequence.cached, query, sequence.cached, last, last))
        return members, decoding + prefilling

    def _choose_decodes(self, ready: Sequence[SequenceState], kept: int) -> tuple[list[SequenceState], list[int], int | None]:
        """The sequences that decode, the tokens that each feeds in, and what is left of the budget (None if unbounded).

        kept: tokens of the budget that they leave to prefill.
        """
        budget = self.batching.settings.max_tokens
        chosen, queries = list[SequenceState](), list[int]()
        for sequence in ready:
            if sequence.pending:
                continue
            query = self.query(sequence)
            if budget is not None:
                if query > budget - kept:
                    continue
                budget -= query
            chosen.append(sequence)
            queries.append(query)
        return chosen, queries, budget

    def _choose_prefills(
        self, ready: Sequence[SequenceState], budget: int | None, *, may_wait: bool
    ) -> tuple[list[SequenceState], list[int]]:
        """The sequences that are prefilled, and the tokens of each: none after the first that does not fit the budget.

        may_wait: that one need not come first in the next step.
        """
        chunk = self.batching.prefill.chunk
        chosen, queries = list[SequenceState](), list[int]()
        for sequence in ready:
            if not sequence.pending:
                continue
            query = self._chunk(sequence)
            if budget is not None:
                query = self._chunk(sequence, budget) if chunk is not None else query
                if not query or query > budget:
                    self._overdue = None if may_wait or chosen or chunk is not None else sequence
                    break
                budget -= query
            chosen.append(sequence)
            queries.append(query)
        return chosen, queries

    def _chunk(self, sequence: SequenceState, budget: int | None = None) -> int:
        """Tokens of the next chunk of a sequence that is prefilled, if it has a budget of no more than so many."""
        limits = [limit for limit in (self.batching.prefill.chunk, budget) if limit is not None]
        return self.batching.chunk_of(sequence.cached, sequence.pending, min(limits, default=None))

    def query(self, sequence: SequenceState) -> int:
        """Tokens that a decoding sequence feeds in: the last one, and no more drafts than it still needs tokens after it."""
        missing = sequence.request.tokens - sequence.generated
        return 1 + (min(self.batching.speculation.draft, missing - 1) if self.batching.speculation is not None else 0)

    def _decodes(self, sequences: Sequence[SequenceState], queries: Sequence[int]) -> list[Member]:
        """Members that decode. The first sample of a prompt loads the cache that all samples in the step share."""
        members = list[Member]()
        leaders: dict[int, int] = {}  # group -> member
        decoding = zip(sequences, queries, self._emitted(sequences, queries), strict=True)
        for number, (sequence, query, emitted) in enumerate(decoding):
            leader, loads = -1, sequence.cached
            if sequence.shared and leaders.setdefault(sequence.request.group, number) != number:
                leader, loads = leaders[sequence.request.group], sequence.cached - sequence.shared
            members.append(Member(sequence.number, sequence.cached, query, loads, query, emitted, leader))
        return members

    def _emitted(self, sequences: Sequence[SequenceState], queries: Sequence[int]) -> Sequence[int]:
        """Output tokens of sequences that decode: one each, and the drafts that are accepted."""
        speculation = self.batching.speculation
        if speculation is None:
            return queries
        right = accepted(
            speculation.acceptance, [query - 1 for query in queries], seed=self.batching.seed,
            sequences=[s.number for s in sequences], steps=[s.decoded for s in sequences],
        )  # fmt: skip
        return [1 + count for count in right]
