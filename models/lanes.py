"""Steps of one graph side by side, one lane each: their contexts, and the sequences that take part in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.experts import share_of
from models.op import IntArray


def kept_of(context: IntArray, query: IntArray, logits: IntArray) -> IntArray:
    """Tokens in the caches of members after a step from whose last tokens they need logits, 0 of others: `Members.kept`."""
    return np.where(logits > 0, context + query, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Sequences that take part in some steps of one graph, int64 [member, lane].

    sequence: its number. context: its tokens in the KV cache. query: tokens that it feeds in. loads: how many of the cached
    tokens it loads itself; another member loads the rest, which they share. kept: tokens in its cache after a step that ends
    its prompt, 0 in other steps. logits: rows of logits that it needs. home: the device that it is on, where devices have
    sequences of their own. Where lanes have different numbers of members, the rest of the column is 0: with no query, a member
    takes no part.
    """

    sequence: IntArray
    context: IntArray
    query: IntArray
    loads: IntArray
    kept: IntArray
    logits: IntArray
    home: IntArray

    def of_chunk(self, chunk: int, chunks: int) -> Members:
        """The members with a chunk of the new tokens of each step. Chunks are equal but for a token, the first ones larger.

        Tokens of all members are cut one after another; a member without any in the chunk has a query of 0. Those in earlier
        chunks are in its KV cache, from which it loads them itself. One chunk is all: the members themselves.
        """
        if chunks == 1:
            return self
        end = np.cumsum(self.query, axis=0)
        begin, tokens = end - self.query, end[-1]
        first = np.maximum(begin, share_of(tokens, chunk, chunks))
        query = np.maximum(np.minimum(end, share_of(tokens, chunk + 1, chunks)) - first, 0)
        before = np.where(query > 0, first - begin, 0)
        kept = np.where(first + query == end, self.kept, 0) * (query > 0)
        return replace(self, context=self.context + before, query=query, loads=self.loads + before, kept=kept)

    @classmethod
    def side_by_side(cls, parts: Sequence[Members]) -> Members:
        """The lanes of all parts, one after another."""
        most = max(len(part.query) for part in parts)
        columns = {
            name: np.concatenate(
                [np.pad(column, ((0, most - len(column)), (0, 0))) for part in parts for column in (getattr(part, name),)],
                axis=1,
            )
            for name in cls.__dataclass_fields__
        }
        return cls(**columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLanes:
    """Some steps of one graph, one lane each: int64 vectors.

    sequence, token: which step, as in the event log. context: tokens in the KV cache, of all its members together.
    members: None where each step is one sequence that decodes one token.
    """

    sequence: IntArray
    token: IntArray
    context: IntArray
    members: Members | None = None

    def of_chunk(self, chunk: int, chunks: int) -> StepLanes:
        """The steps with what a chunk of so many has of their tokens: see `Members.of_chunk`."""
        assert self.members is not None
        return replace(self, members=self.members.of_chunk(chunk, chunks))
