"""The time of an op by a profile, and the part of it that is an extrapolation."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sim.cost.profile.device import DeviceProfile, Timing
from sim.cost.profile.forms import FORMS, Floats, Shapes
from sim.cost.profile.samples import Samples, shapes_of


class Outside(NamedTuple):
    """A column of shapes that left the range it was measured in."""

    column: str
    found: tuple[int, int]
    measured: tuple[int, int]

    def __str__(self) -> str:
        (low, high), (least, most) = self.found, self.measured
        found = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        return f"{self.column} {found}, measured {f'{least:,}' if least == most else f'{least:,} to {most:,}'}"


def time(timing: Timing, shapes: Shapes) -> Floats:
    """Picoseconds of each op.

    Between two numbers of rows that were measured the time is linear in rows, beyond them the nearest fit is used as it is.
    """
    result = np.zeros(np.shape(shapes.rows))
    for rows in np.unique(shapes.rows).tolist():
        chosen = shapes.rows == rows
        result[chosen] = _at(timing, shapes.take(chosen), rows)
    return result


def _at(timing: Timing, shapes: Shapes, rows: int) -> Floats:
    form, known = FORMS.get(timing.form), list(timing.rows)
    i = bisect_left(known, rows)
    if i == len(known) or i == 0 or known[i] == rows:
        nearest = known[min(i, len(known) - 1)]
        return form.time(timing.rows[nearest].coefficients, shapes, timing.unit) * _factor(timing, shapes, nearest)
    low, high = known[i - 1], known[i]
    a, b = (
        form.time(timing.rows[r].coefficients, shapes.at_rows(r), timing.unit) * _factor(timing, shapes, r) for r in (low, high)
    )
    return np.asarray(a + (b - a) * ((rows - low) / (high - low)))


def _factor(timing: Timing, shapes: Shapes, rows: int) -> Floats:
    """Factor of measured over fitted time near shapes that were measured, linear between contexts; 1 for other heads."""
    result = np.ones(np.shape(shapes.context))
    if not timing.near:
        return result
    heads = np.stack([shapes.heads, shapes.kv_heads, shapes.head_dim], axis=-1)
    for key in {tuple(each) for each in heads.reshape(-1, 3).tolist()}:
        found = timing.near.get((key[0], key[1], key[2]), {}).get(rows)
        if found is not None:
            of_key = (heads == key).all(axis=-1)
            result[of_key] = np.interp(shapes.context[of_key], found.context, found.factor)
    return result


def predict(profile: DeviceProfile, samples: Samples) -> Floats:
    """Picoseconds of samples by a profile, `nan` for what it has no timing of."""
    predicted = np.full(len(samples), np.nan)
    for timing in profile.timings:
        of_kind = (samples.kind == timing.kind) & (samples.dtype == timing.dtype)
        predicted[of_kind] = time(timing, shapes_of(samples.take(of_kind)))
    return predicted


def outside(timing: Timing, shapes: Shapes) -> Iterator[Outside]:
    """The part of these shapes that is beyond the measurements, by columns that the form depends on."""
    checked = {name: getattr(shapes, name) for name in FORMS.get(timing.form).depends(timing.unit) if name in timing.ranges}
    for name, column in {"rows": shapes.rows, **checked}.items():
        low, high = (min(timing.rows), max(timing.rows)) if name == "rows" else timing.ranges[name]
        if column.min() < low or column.max() > high:
            yield Outside(name, (int(column.min()), int(column.max())), (low, high))
