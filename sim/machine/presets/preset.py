"""A preset, and how its file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from sim.base.documents import Node, read
from sim.base.quantities import BANDWIDTH, FLOP_RATE, SIZE, QuantityError, show
from sim.base.values import parsed

KEYS = (
    "title", "sources", "engines", "peak", "vector", "bandwidth", "achievable", "port_bandwidth", "capacity", "on_chip",
)  # fmt: skip
FIGURE_KEYS = ("value", "source", "derived", "unsure")

#: Largest number of engines that a scenario may have.
MOST_ENGINES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure: an integer of base units (or shares by concurrency), its text as written, its source, and notes."""

    value: Any
    text: str
    source: str
    derived: str = ""
    unsure: str = ""

    def __str__(self) -> str:
        notes = [word for word in ("derived", "unsure") if getattr(self, word)]
        return f"{self.text} ({', '.join(notes)})" if notes else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A device, in figures of the whole of it: FLOP/s, elements/s, bytes/s and bytes."""

    name: str
    title: str
    engines: Figure
    peak: Mapping[str, Figure]
    vector: Figure
    bandwidth: Figure | None
    unpublished: str = ""
    achievable: Figure | None = None
    port_bandwidth: Figure | None = None
    capacity: Figure | None = None
    on_chip: Mapping[str, Figure] = field(default_factory=dict)

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """All figures with their keys, such as `peak.bfloat16`."""
        for key in ("engines", "peak", "vector", "bandwidth", "achievable", "port_bandwidth", "capacity", "on_chip"):
            found = getattr(self, key)
            if isinstance(found, Mapping):
                yield from ((f"{key}.{name}", figure) for name, figure in found.items())
            elif found is not None:
                yield key, found

    def hardware(self, *, achievable: bool = False) -> dict[str, Any]:
        """The `hardware` section of a scenario that it stands for, as plain data.

        An engine has its share of the device, rounded down to whole FLOP/s: all of them together never beat the device.
        achievable: with the measured share of the bandwidth as `memory.efficiency`, if there is one.
        """
        count = self.engines.value
        rates = {dtype: FLOP_RATE.format(figure.value // count) for dtype, figure in self.peak.items()}
        memory: dict[str, Any] = {}
        for key, figure, dimension in (
            ("bandwidth", self.bandwidth, BANDWIDTH),
            ("port_bandwidth", self.port_bandwidth, BANDWIDTH),
            ("capacity", self.capacity, SIZE),
        ):
            if figure is not None:
                memory[key] = dimension.format(figure.value)
        if achievable and self.achievable is not None:
            memory["efficiency"] = {str(n): float(share) for n, share in self.achievable.value.items()}
        return {
            "engines": {
                "count": count,
                "flops": rates.get("any", rates),
                "vector_flops": FLOP_RATE.format(self.vector.value // count),
            },
            "memory": memory,
        }


def read_preset(path: str | Path, name: str) -> Preset:
    """Read the file of a preset. Raises InputError, with file, line and column, for whatever is wrong with it."""
    reader = _Reader(read(path).root)
    root = reader.root.mapping(KEYS)
    bandwidth = root.get("bandwidth")
    unpublished = bandwidth.mapping().get("unpublished") if bandwidth is not None else None
    return Preset(
        name=name,
        title=reader.root.needed("title").text(),
        engines=reader.figure(reader.root.needed("engines"), _count),
        peak=reader.table(reader.root.needed("peak"), FLOP_RATE.parse),
        vector=reader.figure(reader.root.needed("vector"), FLOP_RATE.parse),
        bandwidth=reader.figure(reader.root.needed("bandwidth"), BANDWIDTH.parse) if unpublished is None else None,
        unpublished=unpublished.text() if unpublished is not None else "",
        achievable=reader.figure(root["achievable"], _shares) if "achievable" in root else None,
        port_bandwidth=reader.figure(root["port_bandwidth"], BANDWIDTH.parse) if "port_bandwidth" in root else None,
        capacity=reader.figure(root["capacity"], SIZE.parse) if "capacity" in root else None,
        on_chip=reader.table(root["on_chip"], SIZE.parse) if "on_chip" in root else {},
    )


class _Reader:
    """Reads figures; their sources are spelled out from the table in the file."""

    def __init__(self, root: Node) -> None:
        self.root = root
        sources = root.mapping().get("sources")
        self.sources = {key: node.text() for key, node in sources.mapping().items()} if sources is not None else {}

    def table(self, node: Node, parse: Callable[[object], Any]) -> dict[str, Figure]:
        return {name: self.figure(each, parse) for name, each in node.mapping().items()}

    def figure(self, node: Node, parse: Callable[[object], Any]) -> Figure:
        parts = node.mapping(FIGURE_KEYS)
        value, source = self.needed_in(node, parts, "value"), self.needed_in(node, parts, "source")
        name = source.text()
        if name not in self.sources:
            raise source.place.error(f"source: expected one of {', '.join(self.sources)}, found {show(name)}")
        plain = value.plain()
        notes = {key: parts[key].text() for key in ("derived", "unsure") if key in parts}
        text = "/".join(str(share) for share in plain.values()) if isinstance(plain, Mapping) else str(plain)
        return Figure(value=parsed(value, parse, "value"), text=text, source=self.sources[name], **notes)

    @staticmethod
    def needed_in(node: Node, parts: Mapping[str, Node], key: str) -> Node:
        if key not in parts:
            raise node.place.error(f"the key {key!r} is missing: a figure has a value and a source")
        return parts[key]


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_ENGINES:
        raise QuantityError(f"expected a whole number from 1 to {MOST_ENGINES}, found {show(value)}")
    return value


def _shares(value: object) -> dict[int, Fraction]:
    """One share for any number of readers, or shares by number: `0.68`, `{"1": 0.54, "2": 0.78}`."""
    table = value if isinstance(value, Mapping) else {"1": value}
    shares = {}
    for key, share in table.items():
        if not str(key).isdecimal() or int(key) < 1:
            raise QuantityError(f"expected a number of readers as key, found {show(key)}")
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share <= 1:
            raise QuantityError(f"expected a share above 0 to 1, found {show(share)}")
        shares[int(key)] = Fraction(str(share))
    if not shares:
        raise QuantityError("expected at least one share")
    return shares
