"""Results kept from earlier runs."""

from __future__ import annotations

from sim.base.memo import Memo


def test_is_made_once_for_each_object_and_way() -> None:
    memo, origin, made = Memo[list[int]](10), [1], list[str]()

    def make(name: str) -> list[int]:
        made.append(name)
        return [0]

    first = memo.of(origin, "a", lambda: make("a"))
    assert memo.of(origin, "a", lambda: make("a")) is first
    assert memo.of(origin, "b", lambda: make("b")) is not first
    assert memo.of([1], "a", lambda: make("equal, and another object")) is not first
    assert made == ["a", "b", "equal, and another object"]


def test_the_oldest_goes_first() -> None:
    memo, origin = Memo[range](10), object()
    first = memo.of(origin, 1, lambda: range(4))
    memo.of(origin, 2, lambda: range(4))
    assert memo.of(origin, 1, lambda: range(1)) is first  # asked for again, so number 2 is older
    memo.of(origin, 3, lambda: range(4))
    assert memo.of(origin, 1, lambda: range(1)) is first
    assert memo.of(origin, 2, lambda: range(1)) == range(1)


def test_values_that_are_too_large_are_not_kept() -> None:
    memo, origin = Memo[int](10, size=lambda made: made), object()
    assert memo.of(origin, "large", lambda: 11) == 11
    assert not len(memo)
