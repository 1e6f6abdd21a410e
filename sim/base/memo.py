"""What has been made of a large object is kept for the next time: graphs are the same in every run of a sweep."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """The last things made of objects, as many as are no larger than `most` together; `size` says how large one is.

    An object is known by its identity: to compare the values of two graphs would take longer than most of what is made of one.
    Threads may share it.
    """

    def __init__(self, most: int, size: Callable[[T], int] = len) -> None:  # type: ignore[assignment]  # of what has a length
        self.most, self._size, self._held = most, size, 0
        self._kept: OrderedDict[tuple[int, Hashable], tuple[object, T]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    def of(self, origin: object, how: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of an object, made before or now. how: all else that it depends on."""
        key = (id(origin), how)
        with self._lock:
            if key in self._kept:  # it holds the object, so its identity is nobody else's
                self._kept.move_to_end(key)
                return self._kept[key][1]
        made = make()
        with self._lock:
            if key in self._kept:  # by another thread meanwhile: all get the same one
                return self._kept[key][1]
            self._kept[key] = (origin, made)
            self._held += self._size(made)
            while self._held > self.most:
                _, (_, oldest) = self._kept.popitem(last=False)
                self._held -= self._size(oldest)
        return made
