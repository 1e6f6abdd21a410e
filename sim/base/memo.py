"""Memo of results derived from large objects: the runs of a sweep, for example, share their graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """The results used last, of a total size of at most `most`; size: of one result.

    An object is known by its identity, because to compare two graphs by value would take longer than to derive most results.
    Threads may share it.
    """

    def __init__(self, most: int, size: Callable[[T], int] = len) -> None:  # type: ignore[assignment]  # of what has a length
        self.most, self._size, self._held = most, size, 0
        self._kept: OrderedDict[tuple[int, Hashable], tuple[object, T]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of results."""
        return len(self._kept)

    def of(self, origin: object, how: Hashable, make: Callable[[], T]) -> T:
        """The result of `make` for an object, from an earlier call or made now. how: everything else that it depends on."""
        key = (id(origin), how)
        with self._lock:
            if key in self._kept:  # the entry keeps the object alive, so no other has its id
                self._kept.move_to_end(key)
                return self._kept[key][1]
        made = make()
        with self._lock:
            if key in self._kept:  # another thread made it meanwhile: all get the same one
                return self._kept[key][1]
            self._kept[key] = (origin, made)
            self._held += self._size(made)
            while self._held > self.most:
                _, (_, oldest) = self._kept.popitem(last=False)
                self._held -= self._size(oldest)
        return made
