"""Use of a prefix cache in a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class TierUse(NamedTuple):
    """Use of a tier by a prefix cache: tokens of prompts that were found there, bytes that came to it, and blocks evicted."""

    hits: int = 0
    bytes: int = 0
    evicted: int = 0


class CacheUse(NamedTuple):
    """Use of a prefix cache: tokens of prompts that were looked up, those of them that were found, and blocks evicted.

    tiers: what was found in each tier, which `hits` count, too; and what became of blocks there.
    """

    tokens: int = 0
    hits: int = 0
    evicted: int = 0
    tiers: tuple[TierUse, ...] = ()


def in_all(caches: Iterable[CacheUse | None]) -> CacheUse | None:
    """The use of the caches of all loops together; None without one."""
    used = [each for each in caches if each is not None]
    if not used:
        return None
    tokens, hits, evicted = (sum(column) for column in zip(*(each[:3] for each in used), strict=True))
    tiers = (TierUse(*map(sum, zip(*each, strict=True))) for each in zip(*(each.tiers for each in used), strict=True))
    return CacheUse(tokens, hits, evicted, tuple(tiers))
