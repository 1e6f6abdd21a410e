"""Quantities with units, as people write them (`100 GB/s`, `8 MiB`, `300 us`), read into exact integers of base units.

Prefixes are SI (`GB` = 10^9) or binary (`GiB` = 2^30). Numbers go through `Decimal`, because a float is not exact: `0.1 us` is
100,000 ps, neither one more nor one less. Sizes and bandwidths are rounded to the nearest byte, because engines log them with
few digits: `3.81 GiB` is 4,090,956,349 B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from sim.base.errors import InputError, nearest
from sim.base.units import PS_PER_S

#: Largest value of any quantity in base units: it leaves space for a few sums in an int64, and is beyond any machine
#: (10^6 seconds in picoseconds, an exabyte, an exabyte per second).
MAXIMUM = 10**18

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_PLAIN = re.compile(rf"[+-]?{_NUMBER}", re.ASCII)
_QUANTITY = re.compile(rf"\s*(?P<sign>[+-]?)(?P<number>(?>{_NUMBER}|(?:nan|inf)\b))\s*(?P<unit>\D?.*?)\s*", re.ASCII)
_LONGEST = 64  # characters: no real input is longer, and it bounds the work on hostile input


class QuantityError(InputError, ValueError):
    """A quantity that cannot be read. A `ValueError` too, so that pydantic collects it with other errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One kind of quantity.

    article, base: how errors name it (`a bandwidth`) and the base unit that values count (`B/s`).
    units: what each unit that may be written is worth in base units.
    ladder: the units that `format` chooses from, ascending; powers of ten.
    zero: whether 0 makes sense. rounded: a multiple of a larger unit is rounded to a whole number of base units.
    """

    article: str
    base: str
    units: Mapping[str, int]
    ladder: tuple[str, ...]
    example: str
    zero: bool = False
    rounded: bool = False

    def parse(self, value: object) -> int:
        """Read a quantity into a whole number of base units.

        Raises QuantityError for anything but a text of number and unit: no unit, an unknown unit (the nearest is
        offered), a negative value, zero where it makes no sense, NaN, infinity, a fraction of a base unit that is not
        `rounded`, or more than `MAXIMUM`. A bare `0` passes where zero makes sense.
        """
        if self.zero and value in (0, "0") and not isinstance(value, bool):
            return 0
        wanted = f"expected {self.article} with its unit, such as '{self.example}'"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            raise QuantityError(f"{wanted}, found the bare number {show(value)}")
        if not isinstance(value, str):
            raise QuantityError(f"{wanted}, found {show(value)}")
        match = _QUANTITY.fullmatch(value) if len(value) <= _LONGEST else None
        if match is None:
            raise QuantityError(f"{wanted}, found {show(value)}")
        sign, number, unit = match.group("sign", "number", "unit")
        if number in ("nan", "inf"):
            raise QuantityError(f"expected {self.article} that is finite, found {show(value)}")
        if not unit:
            raise QuantityError(f"{wanted}, found the bare number {show(value)}")
        if unit not in self.units:
            raise QuantityError(f"unknown unit {unit!r}{nearest(unit, self.units)}; {wanted}")
        if sign == "-":
            raise QuantityError(f"expected {self.article} that is not negative, found {show(value)}")
        try:
            return self._exact(Decimal(number), self.units[unit], value)
        except InvalidOperation:  # an exponent of absurd length
            raise QuantityError(f"{wanted}, found {show(value)}") from None

    def _exact(self, number: Decimal, scale: int, text: str) -> int:
        if not number:
            if self.zero:
                return 0
            raise QuantityError(f"expected {self.article} above zero, found {show(text)}")
        # Look at the magnitude first: 1e999999999 would take for ever as a fraction.
        if number.adjusted() > 30:
            raise QuantityError(f"expected {self.article} of at most {self.format(MAXIMUM)}, found {show(text)}")
        if number.adjusted() < -30:
            raise QuantityError(f"expected a whole number of {self.base}, found {show(text)}")
        exact = Fraction(number) * scale
        if exact > MAXIMUM:
            raise QuantityError(f"expected {self.article} of at most {self.format(MAXIMUM)}, found {show(text)}")
        if self.rounded and scale > 1 and exact >= 1:
            return round(exact)
        if exact.denominator != 1:
            raise QuantityError(f"expected a whole number of {self.base}, found {show(text)}")
        return exact.numerator

    def format(self, value: int) -> str:
        """The text of `value` base units that `parse` reads back as the same integer: `12.2 ms`."""
        unit = max((u for u in self.ladder if self.units[u] <= value), key=self.units.__getitem__, default=self.ladder[0])
        whole, rest = divmod(value, self.units[unit])
        digits = len(str(self.units[unit])) - 1  # a power of ten, so the decimal is finite
        fraction = f"{rest:0{digits}d}".rstrip("0") if rest else ""
        return f"{whole}.{fraction} {unit}" if fraction else f"{whole} {unit}"

    def pattern(self) -> str:
        """A regular expression for editors. It is wider than `parse` only in range and in fractions of a base unit."""
        units = "|".join(re.escape(u) for u in self.units)
        number = _NUMBER.replace(r"\d", "[0-9]")
        return rf"^\s*\+?{number}\s*(?:{units})\s*$" + (r"|^0$" if self.zero else "")

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the text."""
        text = {"type": "string", "pattern": self.pattern(), "examples": [self.example]}
        return {"anyOf": [text, {"const": 0}]} if self.zero else text


def number(text: str) -> Decimal | None:
    """The number that a text is, exactly; None of what is none, such as `1_000`, which Python itself would take."""
    try:
        return Decimal(text) if _PLAIN.fullmatch(text) else None
    except InvalidOperation:  # an exponent beyond all bounds
        return None


def show(value: object) -> str:
    """A value as YAML would have it, short enough for one line: `'fifo'`, `null`, `a list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}".replace("nan", ".nan").replace("inf", ".inf")
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


_SI = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"K": 10**3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}  # K: a common slip for k
_FJ = {"fJ": 1, "pJ": 10**3, "nJ": 10**6}
_PS = {"": PS_PER_S, "p": 1, "n": 10**3, "u": 10**6, "m": 10**9, "µ": 10**6, "μ": 10**6}  # the micro sign and the Greek letter


def _units(base: str, prefixes: Mapping[str, int]) -> dict[str, int]:
    """The worth of the prefixed units of `base`."""
    return {f"{prefix}{base}": worth for prefix, worth in prefixes.items()}


DURATION = Dimension(
    article="a duration",
    base="ps",
    units=_units("s", _PS),
    ladder=("ps", "ns", "us", "ms", "s"),
    example="300 us",
    zero=True,
)
SIZE = Dimension(
    article="a size",
    base="B",
    units=_units("B", _SI | _BINARY),
    ladder=("B", "kB", "MB", "GB", "TB", "PB"),
    example="8 MiB",
    rounded=True,
)
BANDWIDTH = Dimension(
    article="a bandwidth",
    base="B/s",
    units=_units("B/s", _SI | _BINARY),
    ladder=("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"),
    example="100 GB/s",
    rounded=True,
)
REQUEST_RATE = Dimension(
    article="a rate",
    base="requests per 10^6 s",
    units={"/s": 10**6, "/ms": 10**9, "/us": 10**12},
    ladder=("/s",),
    example="2/s",
)
FLOP_RATE = Dimension(
    article="a compute rate",
    base="FLOP/s",
    units={**_units("FLOP/s", _SI), **_units("OP/s", _SI)},  # OP/s: what data sheets say of integer types
    ladder=("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"),
    example="2 TFLOP/s",
)

FREQUENCY = Dimension(
    article="a rate", base="Hz", units=_units("Hz", _SI), ladder=("Hz", "kHz", "MHz", "GHz", "THz", "PHz"), example="20 MHz"
)  # fmt: skip
ENERGY_PER_FLOP = Dimension(
    article="an energy",
    base="fJ/FLOP",
    units={f"{unit}/{of}": worth for of in ("FLOP", "OP") for unit, worth in _FJ.items()},
    ladder=("fJ/FLOP", "pJ/FLOP", "nJ/FLOP"),
    example="0.76 pJ/FLOP",
    zero=True,
)
ENERGY_PER_BYTE = Dimension(
    article="an energy",
    base="fJ/B",
    units={f"{unit}/{of}": worth * count for of, count in (("B", 1), ("bit", 8)) for unit, worth in _FJ.items()},
    ladder=("fJ/B", "pJ/B", "nJ/B"),
    example="48 pJ/B",
    zero=True,
)
POWER = Dimension(
    article="a power",
    base="mW",
    units={"mW": 1, "W": 10**3, "kW": 10**6},
    ladder=("mW", "W", "kW"),
    example="100 W",
    zero=True,
)  # a milliwatt is a femtojoule a picosecond
COUNT = Dimension(article="a count", base="steps", units={"steps": 1}, ladder=("steps",), example="4096 steps")


def _annotation(dimension: Dimension) -> tuple[Any, ...]:
    return (
        BeforeValidator(dimension.parse),
        PlainSerializer(dimension.format, return_type=str, when_used="json"),
        WithJsonSchema(dimension.schema()),
    )


Duration = Annotated[int, *_annotation(DURATION)]
Size = Annotated[int, *_annotation(SIZE)]
Bandwidth = Annotated[int, *_annotation(BANDWIDTH)]
FlopRate = Annotated[int, *_annotation(FLOP_RATE)]
RequestRate = Annotated[int, *_annotation(REQUEST_RATE)]
EnergyPerFlop = Annotated[int, *_annotation(ENERGY_PER_FLOP)]
EnergyPerByte = Annotated[int, *_annotation(ENERGY_PER_BYTE)]
Power = Annotated[int, *_annotation(POWER)]
