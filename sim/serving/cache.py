"""Use of a prefix cache in a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class CacheUse(NamedTuple):
    """Use of a prefix cache: tokens of prompts that were looked up, those of them that were found, and blocks evicted."""

    tokens: int = 0
    hits: int = 0
    evicted: int = 0


def in_all(caches: Iterable[CacheUse | None]) -> CacheUse | None:
    """The use of the caches of all loops together; None without one."""
    used = [each for each in caches if each is not None]
    return CacheUse(*map(sum, zip(*used, strict=True))) if used else None
