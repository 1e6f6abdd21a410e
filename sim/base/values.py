"""Values of a document's nodes. Each function raises InputError at the place of a node that holds something else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from sim.base.documents import Node
from sim.base.errors import nearest
from sim.base.quantities import Dimension, show

T = TypeVar("T")


def parsed(node: Node, parse: Callable[[Any], T], key: str = "") -> T:
    """The result of `parse` for a plain value; its ValueError becomes an InputError, which begins with the key if given."""
    try:
        return parse(node.plain())
    except ValueError as error:
        raise node.place.error(f"{key}: {error}" if key else str(error)) from None


def quantity(node: Node, dimension: Dimension) -> int:
    """A quantity with its unit, in base units."""
    return parsed(node, dimension.parse)


def whole(node: Node) -> int:
    """A whole number from 1."""
    if not isinstance(node.value, int) or isinstance(node.value, bool) or node.value < 1:
        raise node.place.error(f"expected a whole number from 1, found {show(node.plain())}")
    return node.value


def real(node: Node) -> float:
    """A number from 0 to below 1e9."""
    if not isinstance(node.value, (int, float)) or isinstance(node.value, bool) or not 0 <= node.value < 1e9:
        raise node.place.error(f"expected a number from 0, found {show(node.plain())}")
    return float(node.value)


def items(node: Node) -> Sequence[Node]:
    """The items of a list."""
    if not isinstance(node.value, list):
        raise node.place.error(f"expected a list, found {show(node.plain())}")
    return node.value


def one_of(node: Node, valid: Collection[str]) -> str:
    """One of some texts."""
    if not isinstance(node.value, str) or node.value not in valid:
        hint = nearest(node.value, valid) if isinstance(node.value, str) else ""
        raise node.place.error(f"expected one of {', '.join(valid)}, found {show(node.plain())}{hint}")
    return node.value


def numbered(node: Node, name: str) -> dict[int, Node]:
    """A table by numbers from 1, ascending. name: of what the numbers count, e.g. `streams`."""
    table = {}
    for key, value in node.mapping().items():
        if not key.isdecimal() or int(key) < 1:
            raise node.keys[key].error(f"expected a number of {name} as key, found {show(key)}")
        table[int(key)] = value
    return dict(sorted(table.items()))
