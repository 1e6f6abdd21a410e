"""Batching as batchers take it: sections of a scenario, and the limits that they come to for its model and machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.base.units import ceil_div
from sim.machine.kv_cache import KVLayout
from sim.serving.settings import Batching, Prefill, Router, Speculative


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """A replica of several that is simulated alone. requests: numbers of those that are routed to it, in order of arrival."""

    replica: int
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBatching:
    """How steps are made up.

    settings, prefill, speculation: sections of the scenario; the last is None without drafts. sequences: most in a step. loops:
    batches in flight at a time in each of the replicas, each with its own share of the requests. router: gives requests to
    replicas, where there are several. devices: of a replica, that are simulated. homes: how many of them have sequences of
    their own, with these limits each, to which the router gives requests then; 0 if all work on the same. prefilling: replicas,
    the first ones, that prefill for the others; hand_overs: caches that each of them sends at a time; by_layer: their steps
    send what they store. only: the one replica that is simulated, None for all (`sim.serving.routed.routed`). layout: pages of
    the KV cache of a loop. capacity: its bytes, None if unbounded. tiers: bytes of each tier for a loop, None if unbounded.
    seed: of accepted drafts.
    """

    settings: Batching = field(default_factory=Batching)
    prefill: Prefill = field(default_factory=Prefill)
    speculation: Speculative | None = None
    sequences: int = 1
    loops: int = 1
    replicas: int = 1
    router: Router = field(default_factory=Router)
    devices: int = 1
    homes: int = 0
    prefilling: int = 0
    hand_overs: int = 0
    by_layer: bool = False
    only: Only | None = None
    layout: KVLayout = field(default_factory=lambda: KVLayout(16, ()))
    capacity: int | None = None
    tiers: tuple[int | None, ...] = ()
    seed: int = 0

    @property
    def first_loop(self) -> int:
        """Number of the first loop that is simulated."""
        return 0 if self.only is None else self.only.replica * self.loops

    @property
    def drafts(self) -> bool:
        """Whether a draft model takes steps of its own."""
        return self.speculation is not None and self.speculation.model is not None

    @property
    def follows(self) -> bool:
        """Whether there are layers that send what they store alone, so that what was cached before follows."""
        return any(group.window is None and group.rate == 1 for group in self.layout.groups)

    @property
    def beside(self) -> bool:
        """Whether moves to and from tiers are made by loops of their own, beside those that they are for."""
        kv = self.settings.kv
        return kv.moves == "beside" and self.capacity is not None and kv.moving

    def batches_of(self, requests: int) -> int:
        """Number of loops that batch so many requests."""
        return self.replicas * min(self.loops, requests)

    def loops_of(self, requests: int) -> int:
        """Number of loops that serve so many requests, with those that move caches."""
        if self.settings.alone:
            return requests
        return (1 + self.beside) * self.batches_of(requests) + self.prefilling * self.hand_overs

    @property
    def prefills_again(self) -> bool:
        """Whether a sequence may lose its KV cache, and be prefilled with all of its tokens."""
        full, bounded = self.settings.kv.full, bool(self.tiers) and None not in self.tiers
        return self.capacity is not None and (full == "recompute" or (full == "swap" and bounded))

    def chunk_of(self, cached: int, pending: int, most: int | None) -> int:
        """Tokens of the next chunk of a prompt of which so many are cached and so many pending. most: tokens, None: any number.

        Where states are kept, a chunk ends at the end of a block if it can, and one ends at the last of them: as in vLLM, where
        a state is kept where a step ends (`mamba_cache_mode: align`, https://github.com/vllm-project/vllm/pull/30877).
        """
        chunk = pending if most is None else min(pending, most)
        if not self.layout.keeps_states:
            return chunk
        block = self.layout.block
        end = min(cached + chunk, (cached + pending) // block * block) // block * block
        return end - cached if end > cached else chunk

    def chunks_of(self, prompt: int) -> int:
        """Number of chunks of a prompt that is alone, as `chunk_of` makes them."""
        chunk, block = self.prefill.chunk or prompt, self.layout.block
        if not self.layout.keeps_states:
            return ceil_div(prompt, chunk)
        whole, rest = divmod(prompt, block)
        to_end = ceil_div(whole, chunk // block) if chunk >= block else whole * ceil_div(block, chunk)
        return to_end + ceil_div(rest, chunk)

    def at_once(self, pending: int) -> int:
        """Most new tokens in a step of a sequence with so many tokens to prefill, from here to its end."""
        limits = (pending, self.prefill.chunk, self.settings.max_tokens)
        drafts = self.speculation.draft if self.speculation is not None else 0
        return max(1 + drafts, min(limit for limit in limits if limit is not None))
