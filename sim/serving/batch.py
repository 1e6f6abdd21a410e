"""The step of a decode loop: a batch, the table of its members."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.mapping.steps import Shape, Swap


class Member(NamedTuple):
    """One sequence in a step; counts of tokens, but for the numbers of sequences and members.

    sequence: its number. context: tokens in its KV cache. query: new tokens that it feeds in. loads: cached tokens that it
    loads itself. logits: rows of logits that are needed. emitted: output tokens that it gets from the step. leader: the
    member that loads the cache that both share, -1 if it loads all of its own.
    """

    sequence: int
    context: int
    query: int
    loads: int
    logits: int
    emitted: int
    leader: int = -1


#: Added to a member that decodes one token for its next step: one more token in its cache and to load. int64 [field of Member]
ONE_MORE = np.array([name in ("context", "loads") for name in Member._fields], dtype=np.int64)


class Batch:
    """The members of a step.

    table: int64 [member, field of Member]. swap: direction in which the KV cache of the only member moves, in a step that does
    nothing else. forks: sequences outside of the step whose first token comes from the logits of another sample of their
    prompt. draft: it is a step of the draft model, from which no member gets a token. device, tier, to: as in `Shape`.
    emitted: output tokens of members and forks. context, tokens, logits: totals over the members, of their context, query and
    logits. shape: everything that the structure of the step's graph depends on.
    """

    __slots__ = ("_members", "context", "emitted", "forks", "logits", "shape", "swap", "table", "tokens")

    def __init__(
        self, members: Sequence[Member], swap: Swap = "", forks: tuple[int, ...] = (), *,
        draft: bool = False, device: int = 0, tier: int = 0, to: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self._members: tuple[Member, ...] | None = tuple(members)
        _, context, query, _, logits, emitted, leader = zip(*members, strict=True)
        words = np.fromiter(chain.from_iterable(members), dtype=np.int64, count=len(members) * len(Member._fields))
        self.table: npt.NDArray[np.int64] = words.reshape(len(members), -1)
        self.swap, self.forks = swap, forks
        self.context, self.tokens, self.logits = sum(context), sum(query), sum(logits)
        self.emitted = sum(emitted) + len(forks)
        leaders = leader if max(leader) >= 0 else ()
        self.shape = Shape(
            several=tuple(q > 1 for q in query), logits=self.logits > 0, leaders=leaders, swap=swap, draft=draft,
            tokens=self.tokens, device=device, tier=tier, to=to,
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of members."""
        return len(self.table)

    @property
    def members(self) -> tuple[Member, ...]:
        """The rows of the table."""
        if self._members is None:
            self._members = tuple(map(Member._make, self.table.tolist()))
        return self._members

    def decoded_on(self, steps: int = 1) -> Batch:
        """The step so many after this one, where all members have decoded one token in each and decode another."""
        after = Batch.__new__(Batch)
        after._members, after.table = None, self.table + steps * ONE_MORE
        after.swap, after.forks, after.shape, after.emitted = "", (), self.shape, self.emitted
        after.context, after.tokens, after.logits = self.context + steps * len(self.table), self.tokens, self.logits
        return after
