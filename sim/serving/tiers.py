"""Tiers: what a loop keeps of KV caches in the memory of the host, or in others beside that of the device.

What has no space in one tier goes to the next: of what is there the coldest moves on first, as long as that makes space for
what comes. So what was used last is nearest. A swapped cache is colder than those that were swapped after it: it returns later.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from sim.base.errors import SimulationError

Item = TypeVar("Item", bound=Hashable)


class Move(NamedTuple, Generic[Item]):
    """A move of an item of some bytes to a tier, over the link of that; from the memory of the device, or from another tier."""

    item: Item
    tier: int
    size: int


@dataclass(slots=True)
class Tiers(Generic[Item]):
    """Contents of each tier.

    capacity: bytes of each tier, nearest first, None if unbounded. lossy: the coldest is lost where no tier has space; else
    what comes is refused. used: bytes that are held; taken, freed: bytes that have come to each tier, and have left it, so that
    taken = freed + used. evicted: items that left each tier for want of space; from the last they are lost.
    """

    capacity: tuple[int | None, ...]
    lossy: bool = False
    used: list[int] = field(init=False)
    taken: list[int] = field(init=False)
    freed: list[int] = field(init=False)
    evicted: list[int] = field(init=False)
    _held: dict[Item, tuple[int, int]] = field(default_factory=dict)  # tier and bytes, coldest first

    def __post_init__(self) -> None:
        self.used, self.taken, self.freed, self.evicted = ([0] * len(self.capacity) for _ in range(4))

    def tier_of(self, item: Item) -> int:
        """The tier where something is, -1 if in none."""
        return self._held.get(item, (-1, 0))[0]

    def put(self, item: Item, size: int) -> list[Move[Item]] | None:
        """Put something of so many bytes, the warmest of all, into the first tier that can take it.

        Returns the moves in the order in which they must be made, its own last; None, without a change, if none has space.
        """
        for tier in range(len(self.capacity)):
            moves = self._space(tier, size, dict(self._held), list(self.used))
            if moves is not None:
                moves = [*moves, Move(item, tier, size)]
                for move in moves:
                    self._make(move)
                return moves
        return None

    def take(self, item: Item) -> int:
        """Take something out; returns the tier where it was."""
        tier, size = self._held.pop(item)
        self.used[tier] -= size
        self.freed[tier] += size
        self._verify(tier)
        return tier

    def touch(self, item: Item) -> None:
        """Make something the warmest of its tier, where it stays."""
        self._held[item] = self._held.pop(item)

    def _verify(self, tier: int) -> None:
        """Raise SimulationError where a tier has lost bytes, or holds more than it can."""
        used, limit = self.used[tier], self.capacity[tier]
        if used != self.taken[tier] - self.freed[tier] or used < 0 or (limit is not None and used > limit):
            held = f"{self.taken[tier]} taken, {self.freed[tier]} freed, {used} held of {limit}"
            raise SimulationError(
                f"invariant does not hold: bytes taken by tier {tier} = freed + held, within its capacity: {held}"
            )

    def _space(self, tier: int, size: int, held: dict[Item, tuple[int, int]], used: list[int]) -> list[Move[Item]] | None:
        """Moves that make space for so many bytes in a tier; None if none do. held, used: as they are by then, changed."""
        if tier == len(self.capacity):
            return [] if self.lossy else None
        limit = self.capacity[tier]
        if limit is None:
            return []
        if size > limit:
            return None
        moves = list[Move[Item]]()
        for item, (where, its_size) in list(held.items()):
            if used[tier] + size <= limit:
                break
            if where != tier:
                continue
            before = self._space(tier + 1, its_size, held, used)
            if before is None:
                return None
            moves += [*before, Move(item, tier + 1, its_size)]
            used[tier] -= its_size
            if tier + 1 < len(self.capacity):
                held[item] = tier + 1, its_size
                used[tier + 1] += its_size
            else:
                del held[item]
        return moves

    def _make(self, move: Move[Item]) -> None:
        """Make a move; to after the last tier it is lost."""
        if move.item in self._held:
            where, _ = self._held[move.item]
            self.used[where] -= move.size
            self.freed[where] += move.size
            self.evicted[where] += 1
        if move.tier == len(self.capacity):
            del self._held[move.item]
            return
        self._held[move.item] = move.tier, move.size  # in its place, if it was there: no warmer than before
        self.used[move.tier] += move.size
        self.taken[move.tier] += move.size
        self._verify(move.tier)
