"""Use of a prefix cache in a run."""

from __future__ import annotations

from typing import NamedTuple


class CacheUse(NamedTuple):
    """Use of a prefix cache: tokens of prompts that were looked up, those of them that were found, and blocks evicted."""

    tokens: int = 0
    hits: int = 0
    evicted: int = 0
