"""Limits and defaults of the keys on serving, as the reference of a scenario has them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sim.serving.settings import Batching, KVPages, Prefill, RoutingFile, Speculative

#: Section, its other keys, key: the least and the largest number.
LIMITS: list[tuple[Any, dict[str, Any], str, int, int]] = [
    (KVPages, {}, "block", 1, 65_536),
    (Batching, {"policy": "static"}, "max_batch", 1, 65_536),
    (Batching, {"policy": "continuous"}, "max_tokens", 1, 100_000_000),
    (Prefill, {}, "chunk", 1, 100_000_000),
    (Speculative, {"acceptance": 0.5}, "draft", 1, 1024),
    (Speculative, {"draft": 1}, "acceptance", 0, 1),
]


@pytest.mark.parametrize(("section", "others", "key", "least", "most"), LIMITS, ids=[key for _, _, key, _, _ in LIMITS])
def test_limits_are_inclusive(section: Any, others: dict[str, Any], key: str, least: int, most: int) -> None:
    for value in (least, most):
        assert getattr(section(**others, **{key: value}), key) == value
    for value in (least - 1, most + 1):
        with pytest.raises(ValidationError, match=key):
            section(**others, **{key: value})


def test_a_table_of_accepted_drafts_has_an_entry() -> None:
    assert Speculative(draft=2, acceptance=[0, 2]).acceptance == (0, 2)
    assert len(Speculative(draft=1, acceptance=[0] * 100_000).acceptance) == 100_000
    for table in ([], [-1], [0] * 100_001):
        with pytest.raises(ValidationError, match="acceptance"):
            Speculative(draft=2, acceptance=table)


def test_defaults() -> None:
    assert (KVPages().capacity, KVPages().block, KVPages().full) == (None, 16, "wait")
    batching = Batching()
    assert (batching.policy, batching.max_batch, batching.max_tokens, batching.kv) == ("independent", None, None, KVPages())
    assert Prefill().chunk is None
    with pytest.raises(ValidationError, match="file"):
        RoutingFile(file="")


def test_a_request_alone_has_nothing_to_limit() -> None:
    for key, value in (("max_batch", 1), ("max_tokens", 1), ("kv", {"block": 8})):
        assert getattr(Batching(policy="continuous", **{key: value}), key) != getattr(Batching(), key)
        with pytest.raises(ValidationError, match=f"expected '{key}' only with 'static' or 'continuous'"):
            Batching(policy="independent", **{key: value})
    with pytest.raises(ValidationError, match="expected 'max_batch' only with"):
        Batching(policy="independent", max_tokens=3, max_batch=2)
