"""Forms of a kernel's time: physical formulas whose coefficients a fit finds.

A form is a pure function of coefficients and shapes. It uses only operations that IEEE 754 defines to the last bit (no exp,
log or matrix product), so that predictions are the same on every machine.

| form    | time                                                  | of what                                              |
| ------- | ----------------------------------------------------- | ---------------------------------------------------- |
| `sum`   | overhead + bytes / bandwidth + amount / rate          | kernels that load, then compute: thin CPU kernels    |
| `later` | overhead + max(bytes / bandwidth, amount / rate)      | kernels that overlap the two                         |
| `cached` | see `Cached`                                         | GPU kernels, whose operands may fit the last cache   |

A coefficient that is absent costs nothing. `amount` is that of the kernel's `unit`: its flops, its elements, or outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sim.base.quantities import BANDWIDTH, COUNT, DURATION, FLOP_RATE, FREQUENCY, SIZE, Dimension
from sim.base.registry import Registry
from sim.base.units import PS_PER_S

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Units that a rate can count.
UNITS = ("flops", "elements", "outputs")

#: Columns of shapes beside the amounts, whose measured range a profile keeps.
DIMENSIONS = ("n", "k", "heads", "kv_heads", "head_dim", "context", "bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Shapes of ops, in columns of one length (or one number for all): see `sim.cost.profile.samples` for what they are."""

    rows: Ints
    n: Ints
    k: Ints
    heads: Ints
    kv_heads: Ints
    head_dim: Ints
    context: Ints
    flops: Ints
    elements: Ints
    bytes: Ints  # read and written
    shared: Ints  # of these, what all rows share: weights

    def amount(self, unit: str) -> Ints:
        """Amount of a unit in each op. `outputs` are the numbers of the result."""
        if unit == "outputs":
            return self.rows * self.n
        amount: Ints = getattr(self, unit)
        return amount

    def take(self, chosen: npt.NDArray[np.bool_]) -> Shapes:
        """Some of the ops."""
        return Shapes(**{column.name: getattr(self, column.name)[chosen] for column in fields(self)})

    def at_rows(self, rows: int) -> Shapes:
        """The same ops with another number of rows."""
        flops, elements, own = (x // self.rows * rows for x in (self.flops, self.elements, self.bytes - self.shared))
        moved = self.shared + own
        return replace(self, rows=np.full_like(self.rows, rows), flops=flops, elements=elements, bytes=moved)


class Form(Protocol):
    """coefficients: their names, and how each is written."""

    coefficients: Mapping[str, Dimension]

    def time(self, values: Mapping[str, int], shapes: Shapes, unit: str) -> Floats:
        """Picoseconds, for coefficients in base units."""
        ...

    def depends(self, unit: str) -> tuple[str, ...]:
        """The columns of shapes beside rows that must have been measured: beyond them a time is an extrapolation."""
        ...


class Sum:
    """overhead + bytes / bandwidth + amount / rate."""

    coefficients: Mapping[str, Dimension] = {"overhead": DURATION, "bandwidth": BANDWIDTH, "rate": FLOP_RATE}

    def time(self, values: Mapping[str, int], shapes: Shapes, unit: str) -> Floats:
        loading = at_rate(shapes.bytes, values.get("bandwidth"))
        return values.get("overhead", 0) + loading + at_rate(shapes.amount(unit), values.get("rate"))

    def depends(self, unit: str) -> tuple[str, ...]:
        return ("n", "k", "context", "bytes", unit)


class Later:
    """overhead + the later of bytes / bandwidth and amount / rate."""

    coefficients = Sum.coefficients

    def time(self, values: Mapping[str, int], shapes: Shapes, unit: str) -> Floats:
        loading = at_rate(shapes.bytes, values.get("bandwidth"))
        return values.get("overhead", 0) + np.maximum(loading, at_rate(shapes.amount(unit), values.get("rate")))

    def depends(self, unit: str) -> tuple[str, ...]:
        return ("n", "k", "context", "bytes", unit)


class Cached:
    """A GPU kernel, as a sum of what each of these adds.

    overhead: launch and tail. bytes / bandwidth: as if they were all in the last cache. bytes / beyond: on top, if an op has
    more bytes than the cache: a cache that is read in a circle keeps nothing once the circle does not fit. min(depth, split) /
    chain: the loop along k (or the context) of one block of threads, step by step; a deeper one is split over blocks. depth /
    serial: the part that no split shortens. width / tiles: blocks side by side, one for so many columns n (or a KV head).
    heads / queries, head_dim / lanes: work of attention by query heads and by head size.
    """

    coefficients: Mapping[str, Dimension] = {
        "overhead": DURATION, "bandwidth": BANDWIDTH, "beyond": BANDWIDTH, "cache": SIZE, "chain": FREQUENCY, "split": COUNT,
        "serial": FREQUENCY, "tiles": FREQUENCY, "queries": FREQUENCY, "lanes": FREQUENCY,
    }  # fmt: skip

    def parts(self, values: Mapping[str, int], shapes: Shapes) -> dict[str, Ints]:
        """The amount that each rate divides, by its name."""
        depth = np.maximum(shapes.k, shapes.context)
        cache, split = values.get("cache"), values.get("split")
        return {
            "bandwidth": shapes.bytes,
            "beyond": shapes.bytes * (shapes.bytes > cache) if cache is not None else np.zeros_like(shapes.bytes),
            "chain": np.minimum(depth, split) if split is not None else depth,
            "serial": depth,
            "tiles": np.maximum(shapes.n, shapes.kv_heads),
            "queries": shapes.heads,
            "lanes": shapes.head_dim,
        }

    def time(self, values: Mapping[str, int], shapes: Shapes, unit: str) -> Floats:
        total = np.full(np.shape(shapes.bytes), float(values.get("overhead", 0)))
        for name, amount in self.parts(values, shapes).items():
            total = total + at_rate(amount, values.get(name))
        return total

    def depends(self, unit: str) -> tuple[str, ...]:
        return DIMENSIONS


def at_rate(amount: Ints, per_second: int | None) -> Floats:
    """Picoseconds that an amount takes at a rate; nothing without one."""
    if per_second is None:
        return np.zeros(np.shape(amount))
    return np.asarray(amount, dtype=np.float64) / per_second * PS_PER_S


FORMS: Registry[Form] = Registry("profile form", {"sum": Sum(), "later": Later(), "cached": Cached()})
