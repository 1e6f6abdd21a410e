"""Axes: the values that the keys of a scenario take in a study.

An axis is a list of values, or a range: `{from: 50 GB/s, to: 400 GB/s, count: 8, scale: log}`, or as text `1..16`,
`50..400 GB/s x8 log`, `50,100,200 GB/s` (the last unit is that of numbers without one). A range of whole numbers without a
`count` has all of them. Values between the ends are rounded: whole numbers to whole ones, others to four significant digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from sim.base.documents import Assignment, Node, Place, scalar
from sim.base.errors import InputError
from sim.base.quantities import (
    BANDWIDTH,
    DURATION,
    ENERGY_PER_BYTE,
    ENERGY_PER_FLOP,
    FLOP_RATE,
    FREQUENCY,
    POWER,
    REQUEST_RATE,
    SIZE,
    Dimension,
    QuantityError,
    show,
)  # fmt: skip

DIMENSIONS = (DURATION, SIZE, BANDWIDTH, FLOP_RATE, REQUEST_RATE, FREQUENCY, ENERGY_PER_FLOP, ENERGY_PER_BYTE, POWER)

MOST = 100_000  # values of an axis
DIGITS = 4  # significant, of values between the ends of a range

LARGEST_NUMBER = 1e300  # of the ends of a range: products with them are finite

_RANGE = re.compile(r"\s*(?P<low>.+?)\s*\.\.\s*(?P<high>.+?)(?:\s+x(?P<count>\d{1,6}))?(?:\s+(?P<scale>log|linear))?\s*")
_NUMBER_UNIT = re.compile(r"\s*([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*(\D.*)?")


@dataclass(frozen=True, slots=True)
class Value:
    """A value of an axis: as it is written, and as a column of rows has it (a quantity in base units)."""

    text: str
    column: str | int | float | bool | None
    node: Node


@dataclass(frozen=True, slots=True)
class Axis:
    """A key and its values. dimension: the kind of quantity that all of them are; None for others. types: of its values."""

    key: str
    values: tuple[Value, ...]
    dimension: Dimension | None = None
    types: frozenset[type] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        types = frozenset(type(value.column) for value in self.values if value.column is not None)
        object.__setattr__(self, "types", types)

    def assignment(self, value: Value) -> Assignment:
        """The assignment of one of its values, which errors name as `--set` does."""
        place = Place(f"--set {self.key}={value.text}")
        return Assignment(tuple(_names(self.key)), value.node, place)


@dataclass(frozen=True, slots=True)
class Span:
    """A range from which values are taken: integers of base units, whole numbers, or floats."""

    low: Fraction
    high: Fraction
    whole: bool
    dimension: Dimension | None
    log: bool

    def at(self, share: float) -> Node:
        """The value at a share of the range, 0 to 1, on its scale, as it would be written."""
        if share in (0, 1):
            return self._written(self.low if share == 0 else self.high)
        return self.near(self.inside(share))

    def inside(self, share: float) -> Fraction:
        """The number at a share of the range, 0 to 1, on its scale."""
        if self.log:
            return Fraction(math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low))))
        return self.low + Fraction(share) * (self.high - self.low)

    def near(self, number: Fraction) -> Node:
        """The value nearest to a number, as it would be written."""
        return self._written(min(max(rounded(number, whole=self.whole), self.low), self.high))

    def _written(self, value: Fraction) -> Node:
        place = Place("a range")
        if self.dimension is not None:
            return Node(self.dimension.format(round(value)), place)
        return Node(int(value) if self.whole else float(value), place)


def rounded(value: Fraction, *, whole: bool) -> Fraction:
    """A value rounded to a whole number, or to four significant digits."""
    if whole:
        return Fraction(round(value))
    digits = DIGITS - 1 - math.floor(math.log10(abs(value))) if value else 0
    scale = Fraction(10) ** digits
    return round(value * scale) / scale


def axis(key: str, nodes: Iterable[Node]) -> Axis:
    """An axis of written values, each once. Raises InputError if there are too many."""
    return placed(key, nodes)[0]


def placed(key: str, nodes: Iterable[Node]) -> tuple[Axis, list[Value]]:
    """An axis of written values, each once, and the value of each node. A quantity has one text, however it is written."""
    nodes = list(nodes)
    dimension = _dimension(nodes)
    unique: dict[str, Value] = {}
    found: list[Value] = []
    for node in nodes:
        quantity = None if dimension is None else dimension.parse(node.value)
        text = _flow(node) if dimension is None or quantity is None else dimension.format(quantity)
        column = _column(node) if quantity is None else quantity
        found.append(unique.setdefault(text, Value(text, column, node)))
    if len(unique) > MOST:
        raise InputError(f"{key}: expected at most {MOST:,} values")
    return Axis(key, tuple(unique.values()), dimension), found


def read_axis(key: str, node: Node) -> Axis | Span:
    """The axis that is written at a node; a `Span` for a range without a count that is to be sampled.

    Raises InputError at the node for what is no axis.
    """
    if isinstance(node.value, list):
        if not node.value:
            raise node.place.error(f"{key}: expected at least one value")
        return axis(key, node.value)
    if isinstance(node.value, Mapping):
        return _range(key, node)
    if isinstance(node.value, str):
        return parse_axis(key, node.value, node.place)
    raise node.place.error(f"{key}: expected a list of values or a range, found {show(node.value)}")


def parse_axis(key: str, text: str, place: Place) -> Axis | Span:
    """The axis that a text such as `1..16` or `50,100,200 GB/s` describes."""
    if match := _RANGE.fullmatch(text):
        low, high = _with_unit([match["low"], match["high"]])
        count = None if match["count"] is None else int(match["count"])
        if count is not None and not 1 <= count <= MOST:
            raise place.error(f"{key}: expected a count from 1 to {MOST:,}, found {count}")
        return _spread(key, place, low, high, count, log=match["scale"] == "log")
    values = _with_unit(text.split(","))
    if any(not value.strip() for value in values):
        raise place.error(f"{key}: expected values such as 1,2,4 or a range such as 1..16, found {show(text)}")
    return axis(key, [Node(scalar(value.strip()), place) for value in values])


def _with_unit(texts: Sequence[str]) -> list[str]:
    """Give numbers without a unit the unit of the last one."""
    last = _NUMBER_UNIT.fullmatch(texts[-1])
    unit = last[2] if last else None
    if not unit:
        return list(texts)
    bare = [_NUMBER_UNIT.fullmatch(text) for text in texts]
    return [f"{match[1]} {unit}" if match and not match[2] else text for text, match in zip(texts, bare, strict=True)]


def _range(key: str, node: Node) -> Axis | Span:
    keys: Mapping[str, Node] = node.value  # type: ignore[assignment]
    for name in keys:
        if name not in ("from", "to", "count", "scale"):
            raise node.keys[name].error(f"{key}: unknown key {name!r}; valid: from, to, count, scale")
    for name in ("from", "to"):
        if name not in keys:
            raise node.place.error(f"{key}: the key {name!r} is missing")
    count = keys["count"].value if "count" in keys else None
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST):
        raise keys["count"].place.error(f"{key}: expected a count from 1 to {MOST:,}, found {show(count)}")
    scale = keys["scale"].value if "scale" in keys else "linear"
    if scale not in ("linear", "log"):
        raise keys["scale"].place.error(f"{key}: expected one of linear, log, found {show(scale)}")
    low, high = (_text(keys[name]) for name in ("from", "to"))
    return _spread(key, node.place, low, high, count, log=scale == "log")


def _text(node: Node) -> str:
    return node.value if isinstance(node.value, str) else plain(node.value)


def _spread(key: str, place: Place, low: str, high: str, count: int | None, *, log: bool) -> Axis | Span:
    span = _span(key, place, low, high, log=log)
    if count is None and span.whole and span.dimension is None and not log:
        if span.high - span.low >= MOST:
            raise place.error(f"{key}: expected a range of at most {MOST:,} values")
        return axis(key, [Node(number, place) for number in range(int(span.low), int(span.high) + 1)])
    if count is None:
        return span
    steps = [i / (count - 1) if count > 1 else 0.0 for i in range(count)]
    return axis(key, [span.at(share) for share in steps])


def between(key: str, place: Place, low: str, high: str) -> Span:
    """The range between two texts. Raises InputError at the place if they are no numbers or quantities of one kind."""
    return _span(key, place, low, high, log=False)


def _span(key: str, place: Place, low: str, high: str, *, log: bool) -> Span:
    dimension = _dimension([Node(low, place), Node(high, place)])
    if dimension is not None:
        ends, whole = [Fraction(dimension.parse(low)), Fraction(dimension.parse(high))], False
    else:
        numbers = [_number(text) for text in (low, high)]
        if None in numbers:
            raise place.error(f"{key}: expected numbers, or quantities of one kind, found {show(low)} and {show(high)}")
        ends = [Fraction(str(number)) for number in numbers]
        whole = all(isinstance(number, int) for number in numbers)
    if ends[0] > ends[1] or (log and ends[0] <= 0):
        wanted = (
            "a range from above 0 on a log scale" if log and ends[0] <= 0 else "a range from the smaller value to the larger"
        )
        raise place.error(f"{key}: expected {wanted}, found {low} to {high}")
    return Span(ends[0], ends[1], whole, dimension, log)


def _number(text: str) -> int | float | None:
    try:
        value = scalar(text)
    except ValueError:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER
    return value if is_number else None  # type: ignore[return-value]


def _dimension(nodes: Sequence[Node]) -> Dimension | None:
    """The kind of quantity that all values are."""
    if not any(isinstance(node.value, str) for node in nodes):
        return None
    for dimension in DIMENSIONS:
        try:
            for node in nodes:
                dimension.parse(node.value)
        except QuantityError:
            continue
        return dimension
    return None


def _column(node: Node) -> str | int | float | bool | None:
    return node.value if isinstance(node.value, (str, int, float, bool)) or node.value is None else _flow(node)


def _flow(node: Node) -> str:
    """A node as YAML in one line, which `--set` reads back."""
    if isinstance(node.value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(child)}" for key, child in node.value.items()) + "}"
    if isinstance(node.value, list):
        return "[" + ", ".join(map(_flow, node.value)) + "]"
    return plain(node.value)


def plain(value: Any) -> str:
    """A scalar as YAML reads it back: a text in quotes where it would be taken for something else."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    text = str(value)
    simple = re.fullmatch(r"[\w./%µμ][\w./%+ µμ-]*", text) and not text.endswith(" ")
    return text if not isinstance(value, str) or (simple and _same(text)) else "'" + text.replace("'", "''") + "'"


def _same(text: str) -> bool:
    try:
        return scalar(text) == text
    except ValueError:
        return False


def _names(key: str) -> list[str]:
    return re.sub(r"\[(\d+)\]", r".\1", key).split(".")
