"""Parts of plans that scenarios with equal sections share, such as all points of a study."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

KEPT = 16  # parts of a kind


class Shared:
    """Parts by what they are made of. Files that they are read from must stay as they are while it is used."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, list[tuple[tuple[Any, ...], Any]]] = {}

    def get(self, kind: Hashable, of: tuple[Any, ...], make: Callable[[], T]) -> T:
        """The part of a kind that is made of equal values, or a new one. Raises what `make` raises."""
        kept = self._kept.setdefault(kind, [])
        for i, (before, part) in enumerate(kept):
            if before == of:
                kept.insert(0, kept.pop(i))  # the one that was used last is compared first
                found: T = part
                return found
        made = make()
        kept.insert(0, (of, made))
        del kept[KEPT:]
        return made
