"""Tiers: what a loop keeps of KV caches in the memory of the host, or in others beside that of the device.

What has no space in one tier goes to the next: of what is there the coldest moves on first, as long as that makes space for
what comes. So what was used last is nearest. A swapped cache is colder than those that were swapped after it: it returns later.
"""

from __future__ import annotations

from collections import OrderedDict
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


class Held(NamedTuple):
    """Something in a tier: bytes, and when it was used last, as a count of uses."""

    size: int
    used: int


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
    _held: list[OrderedDict[Item, Held]] = field(init=False)  # of each tier, coldest first
    _tier: dict[Item, int] = field(default_factory=dict)
    _uses: int = 0

    def __post_init__(self) -> None:
        self.used, self.taken, self.freed, self.evicted = ([0] * len(self.capacity) for _ in range(4))
        self._held = [OrderedDict() for _ in self.capacity]

    def tier_of(self, item: Item) -> int:
        """The tier where something is, -1 if in none."""
        return self._tier.get(item, -1)

    def put(self, item: Item, size: int) -> list[Move[Item]] | None:
        """Put something of so many bytes, the warmest of all, into the first tier that can take it.

        Returns the moves in the order in which they must be made, its own last; None, without a change, if none has space.
        """
        for tier in range(len(self.capacity)):
            moved = list[tuple[Item, int, Held]]()
            if self._make_space(tier, size, moved):
                self._uses += 1
                self._hold(tier, item, Held(size, self._uses))
                self.taken[tier] += size
                for _, to, held in moved:
                    self._count(to, held)
                self._verify(tier)
                return [*(Move(which, to, held.size) for which, to, held in moved), Move(item, tier, size)]
            for which, to, held in reversed(moved):
                if to < len(self.capacity):
                    self._drop(to, which)
                self._hold(to - 1, which, held)
        return None

    def take(self, item: Item) -> int:
        """Take something out; returns the tier where it was."""
        tier = self._tier[item]
        self.freed[tier] += self._drop(tier, item).size
        self._verify(tier)
        return tier

    def touch(self, item: Item) -> None:
        """Make something the warmest of its tier, where it stays."""
        tier = self._tier[item]
        self._uses += 1
        self._hold(tier, item, self._drop(tier, item)._replace(used=self._uses))

    def _make_space(self, tier: int, size: int, moved: list[tuple[Item, int, Held]]) -> bool:
        """Move what is coldest down until a tier has space for so many bytes; False if it never has.

        moved: what has moved so far, each to the tier after its own.
        """
        if tier == len(self.capacity):
            return self.lossy
        limit = self.capacity[tier]
        if limit is None:
            return True
        if size > limit:
            return False
        while self.used[tier] + size > limit:
            item, held = next(iter(self._held[tier].items()))
            if not self._make_space(tier + 1, held.size, moved):
                return False
            self._drop(tier, item)
            if tier + 1 < len(self.capacity):
                self._hold(tier + 1, item, held)
            moved.append((item, tier + 1, held))
        return True

    def _hold(self, tier: int, item: Item, held: Held) -> None:
        """Have something in a tier, after all that is colder."""
        of = self._held[tier]
        in_order = not of or of[next(reversed(of))].used < held.used
        of[item], self._tier[item] = held, tier
        self.used[tier] += held.size
        if not in_order:  # rare: something was put into this tier past a nearer one
            self._held[tier] = OrderedDict(sorted(of.items(), key=lambda each: each[1].used))

    def _drop(self, tier: int, item: Item) -> Held:
        held = self._held[tier].pop(item)
        del self._tier[item]
        self.used[tier] -= held.size
        return held

    def _count(self, to: int, held: Held) -> None:
        """Count what a move has brought to a tier from the one before it."""
        self.freed[to - 1] += held.size
        self.evicted[to - 1] += 1
        if to < len(self.capacity):
            self.taken[to] += held.size

    def _verify(self, tier: int) -> None:
        """Raise SimulationError where a tier has lost bytes, or holds more than it can; and those after it."""
        for each in range(tier, len(self.capacity)):
            used, limit = self.used[each], self.capacity[each]
            if used != self.taken[each] - self.freed[each] or used < 0 or (limit is not None and used > limit):
                held = f"{self.taken[each]} taken, {self.freed[each]} freed, {used} held of {limit}"
                raise SimulationError(
                    f"invariant does not hold: bytes taken by tier {each} = freed + held, within its capacity: {held}"
                )
