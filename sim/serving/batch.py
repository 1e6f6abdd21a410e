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
    member that loads the cache that both share, -1 if it loads all of its own. home: the device of its replica that it is on,
    where devices have sequences of their own.
    """

    sequence: int
    context: int
    query: int
    loads: int
    logits: int
    emitted: int
    leader: int = -1
    home: int = 0


#: Columns of the table of a batch.
SEQUENCE, CONTEXT, QUERY, LOADS, LOGITS, EMITTED, LEADER, HOME = range(len(Member._fields))

#: Added to a member that decodes one token for its next step: one more token in its cache and to load. int64 [field of Member]
ONE_MORE = np.array([name in ("context", "loads") for name in Member._fields], dtype=np.int64)


class Batch:
    """The members of a step.

    table: int64 [member, field of Member]. swap: direction in which the KV cache of the only member moves, in a step that does
    nothing else. forks: sequences outside of the step whose first token comes from the logits of another sample of their
    prompt. draft: it is a step of the draft model, from which no member gets a token. device, tier, to: as in `Shape`.
    fork_homes: the devices that forks are on, where these have sequences of their own; empty: all are on the first.
    emitted: output tokens of members and forks. context, tokens, logits: totals over the members, of their context, query and
    logits. shape: everything that the structure of the step's graph depends on.
    """

    __slots__ = ("_members", "context", "emitted", "fork_homes", "forks", "logits", "shape", "swap", "table", "tokens")

    def __init__(
        self, members: Sequence[Member], swap: Swap = "", forks: tuple[int, ...] = (), *,
        draft: bool = False, device: int = 0, tier: int = 0, to: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self._members: tuple[Member, ...] | None = tuple(members)
        _, context, query, _, logits, emitted, leader, _ = zip(*members, strict=True)
        words = np.fromiter(chain.from_iterable(members), dtype=np.int64, count=len(members) * len(Member._fields))
        self.table: npt.NDArray[np.int64] = words.reshape(len(members), -1)
        self.swap, self.forks, self.fork_homes = swap, forks, tuple[int, ...]()
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

    @property
    def forked(self) -> list[Member]:
        """Forks as members that feed in nothing and get a token."""
        homes = self.fork_homes or (0,) * len(self.forks)
        return [Member(number, 0, 0, 0, 0, 1, home=home) for number, home in zip(self.forks, homes, strict=True)]

    @classmethod
    def of_devices(cls, parts: Sequence[tuple[int, Batch]]) -> Batch:
        """The step of all devices that have sequences of their own: (device, its batch) of those that have something to do."""
        members = list[Member]()
        for home, part in parts:
            first = len(members)
            for each in part.members:
                leader = each.leader if each.leader < 0 else first + each.leader
                members.append(each._replace(leader=leader, home=home))
        forks = tuple(fork for _, part in parts for fork in part.forks)
        whole = cls(members, forks=forks, device=parts[0][1].shape.device)
        whole.fork_homes = tuple(home for home, part in parts for _ in part.forks)
        homes = tuple(member.home for member in members)
        sampling = tuple(sorted({member.home for member in members if member.logits}))
        whole.shape = whole.shape._replace(homes=homes, sampling=sampling)
        return whole

    def decoded_on(self, steps: int = 1) -> Batch:
        """The step so many after this one, where all members have decoded one token in each and decode another."""
        after = Batch.__new__(Batch)
        after._members, after.table = None, self.table + steps * ONE_MORE
        after.swap, after.forks, after.fork_homes, after.shape, after.emitted = "", (), (), self.shape, self.emitted
        after.context, after.tokens, after.logits = self.context + steps * len(self.table), self.tokens, self.logits
        return after
