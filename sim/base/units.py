"""Units inside the program: integers, picoseconds, bytes.

Time is an `int` of picoseconds, energy of femtojoules, data of bytes, rates an `int` per second. Only readers (scenario files)
and writers (traces, reports) convert.
"""

from __future__ import annotations

PS_PER_NS = 1_000
PS_PER_US = 1_000_000
PS_PER_MS = 1_000_000_000
PS_PER_S = 1_000_000_000_000
FJ_PER_J = 1_000_000_000_000_000


def ceil_div(a: int, b: int) -> int:
    """Divide and round up: a / b, for integers, b > 0."""
    return -(-a // b)


def format_time(ps: int) -> str:
    """A time to read: `12.200 ms`, `41.5 us`, `3 ps`."""
    for unit, size in (("s", PS_PER_S), ("ms", PS_PER_MS), ("us", PS_PER_US), ("ns", PS_PER_NS)):
        if abs(ps) >= size:
            return f"{ps / size:.3f} {unit}"
    return f"{ps} ps"


def format_energy(fj: int) -> str:
    """An energy to read, from femtojoules: `1.873 J`, `41.8 mJ`, `3 fJ`."""
    for unit, size in (
        ("MJ", 10**21),
        ("kJ", 10**18),
        ("J", 10**15),
        ("mJ", 10**12),
        ("uJ", 10**9),
        ("nJ", 10**6),
        ("pJ", 10**3),
    ):
        if abs(fj) >= size:
            return f"{fj / size:.4g} {unit}"
    return f"{fj} fJ"


def format_bytes(count: float) -> str:
    """Bytes to read, in SI units: `2.480 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3f} {unit}"
    return f"{count:.0f} B"


def format_number(value: float) -> str:
    """A number to read, with four significant digits or all before the decimal point: `0.5384`, `785.2`, `14,041`."""
    return f"{value:,.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"


def format_rate(per_second: float, what: str) -> str:
    """A rate to read: `format_rate(1e11, "B/s")` gives `100 GB/s`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(per_second) >= size:
            return f"{per_second / size:.4g} {prefix}{what}"
    return f"{per_second:.4g} {what}"
