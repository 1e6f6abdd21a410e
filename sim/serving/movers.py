"""Loops whose steps do nothing but move KV caches, beside those of the batchers that need these moves."""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.serving.batch import Batch, Member
from sim.serving.batcher import Batcher
from sim.serving.blocks import CacheMove
from sim.serving.routed import Inbox
from sim.serving.sequence import SequenceState


class _Moves(Batcher):
    """Steps that are asked for one by one, by what batchers do: no request arrives here, and none is waited for."""

    __slots__ = ()

    def steps_ahead(self) -> int:
        return 0

    @property
    def next_arrival(self) -> int | None:
        return None

    @property
    def until(self) -> int | None:
        return None


@dataclass(slots=True, eq=False)
class HandOver(_Moves):
    """One of the loops that hand over what a replica has prefilled: steps that send one KV cache each through the link.

    They send all of it, but for what steps have sent layer by layer, to the replica that a router chooses now, or has chosen.
    When all has been sent, blocks are freed, and the request is given to that replica.
    """

    _sending: tuple[SequenceState, Batcher] | None = None

    def next(self, now: int) -> Batch | None:
        if not self.prefilled:
            return None
        self._sending = self.prefilled.popleft()
        sequence, _ = self._sending
        assert isinstance(self.arrivals, Inbox)
        many, to = self.unsent(sequence), self.arrivals.receiver(sequence.number) * self.batching.devices
        return Batch((Member(sequence.number, many, 0, many, 0, 0),), "send", device=self.device, to=(to,))

    def ended(self, batch: Batch, now: int, steps: int = 1) -> None:
        assert self._sending is not None
        sequence, of = self._sending
        of.handed_over(sequence, now)


@dataclass(slots=True, eq=False)
class Mover(_Moves):
    """The loop that moves caches between the memory of a batcher and its tiers, one after another as they were asked for.

    So an engine with one stream for copies does. Whatever takes the place of what leaves is moved after it.
    """

    of: Batcher = field(kw_only=True)
    _moving: CacheMove | None = None

    def next(self, now: int) -> Batch | None:
        if not self.of.queued:
            return None
        self._moving = self.of.blocks.moves.popleft()
        return self._moving.step(self.device)

    def ended(self, batch: Batch, now: int, steps: int = 1) -> None:
        assert self._moving is not None
        self.of.moved(self._moving)

    @property
    def listens(self) -> bool:
        return not self.of.over
