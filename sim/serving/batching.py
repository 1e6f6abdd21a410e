"""Batching as batchers take it: sections of a scenario, and the limits that they come to for its model and machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.serving.settings import Batching, Prefill, Speculative


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBatching:
    """How steps are made up.

    settings, prefill, speculation: sections of the scenario; the last is None without drafts. sequences: most in a step.
    blocks: capacity of the KV cache, in blocks of `settings.kv.block` tokens; None if unbounded. seed: of accepted drafts.
    """

    settings: Batching = field(default_factory=Batching)
    prefill: Prefill = field(default_factory=Prefill)
    speculation: Speculative | None = None
    sequences: int = 1
    blocks: int | None = None
    seed: int = 0
