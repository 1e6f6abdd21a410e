"""Values of documents: what is accepted, and errors with their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sim.base.documents import Node, parse
from sim.base.errors import InputError
from sim.base.quantities import BANDWIDTH
from sim.base.values import items, numbered, one_of, quantity, real, whole


def node(text: str) -> Node:
    return parse(f"key: {text}\n", "file").root.needed("key")


def test_values() -> None:
    assert quantity(node("3 GB/s"), BANDWIDTH) == 3 * 10**9
    assert whole(node("7")) == 7
    assert real(node("7")) == 7.0
    assert [each.value for each in items(node("[1, a]"))] == [1, "a"]
    assert one_of(node("later"), ("sum", "later")) == "later"
    assert [(number, each.value) for number, each in numbered(node('{"10": b, "2": a}'), "rows").items()] == [
        (2, "a"),
        (10, "b"),
    ]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (lambda n: quantity(n, BANDWIDTH), "3 GB", "file:1:6: unknown unit 'GB'"),
        (whole, "0", "file:1:6: expected a whole number from 1, found 0"),
        (whole, "true", "file:1:6: expected a whole number from 1, found true"),
        (whole, "1.5", "file:1:6: expected a whole number from 1, found 1.5"),
        (real, "-1", "file:1:6: expected a number from 0, found -1"),
        (real, "1e9", "file:1:6: expected a number from 0, found "),
        (items, "{a: 1}", "file:1:6: expected a list, found "),
        (lambda n: one_of(n, ("sum", "later")), "sums", "file:1:6: expected one of sum, later, found 'sums'"),
        (lambda n: one_of(n, ("sum", "later")), "[sum]", "file:1:6: expected one of sum, later, found "),
        (lambda n: numbered(n, "rows"), '{"1": a, "0": b}', "file:1:15: expected a number of rows as key, found '0'"),
        (lambda n: numbered(n, "rows"), "[1]", "file:1:6: expected a mapping, found "),
    ],
)
def test_errors(read: Callable[[Node], Any], text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        read(node(text))
    assert str(raised.value).startswith(message)
