"""Energy figures of a machine, as integers whose products with counts are whole femtojoules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.formats import rate_of
from sim.machine.machine import PATHS, TIER_PATHS, Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRates:
    """flop: fJ of a FLOP of a matrix product, one for all formats or by torch's name of the arithmetic. byte: fJ of a byte
    through a channel of the memory, by the part that takes them; link, network, tiers: the same of a byte over a link between
    devices, over one to the network between islands, and to or from each tier (the host first); empty if that is not known.
    hops: links that a transfer between devices crosses at least, also where one device stands for both ends.
    device, engine: static power of the device, and of each engine, in mW, which are fJ a picosecond.
    """

    flop: int | Mapping[str, int]
    byte: Mapping[str, int]
    link: Mapping[str, int] = field(default_factory=dict)
    network: Mapping[str, int] = field(default_factory=dict)
    tiers: tuple[Mapping[str, int], ...] = ()
    hops: int = 1
    device: int = 0
    engine: int = 0

    def of_flop(self, dtype: str) -> int | None:
        """Femtojoules of a FLOP in `dtype`; None if the table does not have it."""
        return rate_of(self.flop, dtype)

    @property
    def paths(self) -> tuple[Mapping[str, int], ...]:
        """Femtojoules of a byte by part, of each of `PATHS`."""
        none: Mapping[str, int] = {}
        host, *others = (*self.tiers, *(none,) * (len(TIER_PATHS) - len(self.tiers)))
        return self.byte, self.link, host, self.network, *others

    @property
    def of_byte(self) -> tuple[int, ...]:
        """Femtojoules of a byte through each of `PATHS`, all parts together."""
        return tuple(sum(parts.values()) for parts in self.paths)

    @property
    def least_links(self) -> tuple[int, ...]:
        """Links of each of `PATHS` that a transfer crosses at least: to the network one out and one in."""
        of: dict[Path, int] = {"link": self.hops, "network": 2}
        return tuple(of.get(path, 1) for path in PATHS)

    def power(self, engines: int) -> int:
        """Static power of the machine, mW."""
        return self.device + self.engine * engines
