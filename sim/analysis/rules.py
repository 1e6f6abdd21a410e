"""Rules under which a log came about: all that an analysis needs beside the event log."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from sim.analysis.parts import Conserving, Latency
from sim.machine.energy import EnergyRates
from sim.machine.kv_cache import LayerGroup
from sim.machine.machine import TIER_PATHS


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The semantics of a run, as plain values.

    arrivals: ps, per sequence. cap: largest share of the channel that one requester draws, (numerator, denominator).
    open_loop: requests come at times of their own, not when others have ended. sram: bytes for operands that are in use on
    each device, None if unbounded. stripes: over how many channels each transfer is spread (interleaved).
    efficiency: the least and the largest share of its bandwidth that a channel can deliver, however many it serves.
    kv_layers: layers that have a KV cache. energy: what ops, transfers and time cost; None if that is not known.
    latency, link_latency, network_latency, tier_latencies: ps, of the memory, and of links between devices, to the network
    between islands, and to each tier. work_conserving_channel, .._link, .._network, .._tiers: as in `conserving`.
    """

    arrivals: tuple[int, ...]
    dependency: Literal["sampled", "known"]
    execution: Literal["blocking", "stream", "prefetch"]
    latency: int
    cap: tuple[int, int]
    sram: tuple[int, ...] | None
    work_conserving_channel: bool
    work_conserving_scheduler: bool
    open_loop: bool = True
    stripes: int = 1
    efficiency: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    kv_layers: tuple[LayerGroup, ...] = ()
    energy: EnergyRates | None = None
    link_latency: int = 0
    work_conserving_link: bool = True
    network_latency: int = 0
    work_conserving_network: bool = True
    tier_latencies: tuple[int, ...] = ()
    work_conserving_tiers: tuple[bool, ...] = ()

    @property
    def latencies(self) -> Latency:
        """Latencies as kernels take them."""
        host, *others = self.tier_latencies + (0,) * (len(TIER_PATHS) - len(self.tier_latencies))
        return Latency(self.latency, self.link_latency, host, self.network_latency, *others)

    @property
    def conserving(self) -> Conserving:
        """Conservation of work by channels, as kernels take it."""
        host, *others = self.work_conserving_tiers + (True,) * (len(TIER_PATHS) - len(self.work_conserving_tiers))
        return Conserving(
            self.work_conserving_channel, self.work_conserving_link, host, self.work_conserving_network, *others
        )  # fmt: skip

    @property
    def waits_for_sram(self) -> bool:
        """Whether a task that loads its own operands waits for nothing but SRAM while an engine is idle."""
        return self.sram is not None and self.work_conserving_scheduler

    @property
    def fastest(self) -> Fraction:
        """The largest share of a channel that one transfer can get."""
        return _smaller(self.cap, self.efficiency[1])

    @property
    def limit(self) -> str:
        """Limit of a transfer that is alone, below the full bandwidth: `efficiency` of the channel, or the `port`."""
        return "efficiency" if self.efficiency[1] < Fraction(*self.cap) else "port"

    @property
    def slowest(self) -> Fraction:
        """The least share of its bandwidth that a busy channel delivers, if its arbiter conserves work."""
        return _smaller(self.cap, self.efficiency[0])


@lru_cache(256)
def _smaller(cap: tuple[int, int], share: Fraction) -> Fraction:
    return min(Fraction(*cap), share)


#: For sums that depend on no rules but are found in one pass with sums that do.
ANY_RULES = Rules(
    arrivals=(), dependency="known", execution="blocking", latency=0, cap=(1, 1), sram=None,
    work_conserving_channel=False, work_conserving_scheduler=False,
)  # fmt: skip
