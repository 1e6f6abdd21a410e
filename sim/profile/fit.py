"""From samples to a device profile: non-negative least squares on relative errors, per kind, number format and rows.

Relative, because an op of 3 us matters as much to its kind as one of 300: each equation is divided by its duration, so that
the residual is predicted / measured - 1. Non-negative, because nothing takes less than no time: what would come out
negative is left out of the form. Repetitions of one shape count as one sample, their median.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.errors import InputError
from sim.profile.device import DeviceProfile, Provenance, Residual, RowFit, Step, Timing
from sim.profile.forms import DIMENSIONS, FORMS, UNITS, Floats, Shapes
from sim.profile.nnls import nnls
from sim.profile.samples import Samples
from sim.quantities import MAXIMUM
from sim.units import PS_PER_S

#: Kinds of samples that are no ops.
STEP, READ, WRITE = "step", "read", "write"

#: Median errors that differ by less say nothing about which form is right.
TIE = 0.002

_SHAPE = ("rows", "n", "k", "heads", "kv_heads", "head_dim", "context", "flops", "elements")
_IDENTITY = ("kind", "dtype", "model", *_SHAPE, "bytes_read", "bytes_written")


def fit(
    samples: Samples, provenance: Provenance, *, title: str = "", engines: int = 1, bandwidth: int | None = None,
    capacity: int | None = None, forms: Sequence[str] = ("sum", "later"),
) -> DeviceProfile:  # fmt: skip
    """Make a profile.

    bandwidth: bytes/s of the memory; by default the best that streams reached. forms: of these each kind takes the one with the
    smallest median error. Raises InputError if nothing can be fitted.
    """
    alone = (samples.streams == 1) & (samples.beside == "")
    ops = ~np.isin(samples.kind.astype(str), (STEP, READ, WRITE))
    shapes = medians(samples.take(alone & ops))
    timings = []
    for kind, dtype in sorted({(k, d) for k, d in zip(shapes.kind, shapes.dtype, strict=True)}):
        timings.append(_timing(shapes.take((shapes.kind == kind) & (shapes.dtype == dtype)), kind, dtype, forms))
    if not timings:
        raise InputError("expected samples of ops that ran alone, found none")
    read, write = (_streams(samples, kind) for kind in (READ, WRITE))
    best = max([*read.values(), *write.values()], default=None)
    if bandwidth is None and best is None:
        raise InputError("expected the bandwidth of the memory, for there are no samples of streams")
    return DeviceProfile(
        title=title or provenance.device,
        provenance=provenance,
        engines=engines,
        bandwidth=max(bandwidth or 0, best or 0),
        read=read,
        write=write,
        capacity=capacity,
        step=_step(samples.take(alone)),
        timings=tuple(timings),
    )


def medians(samples: Samples) -> Samples:
    """One row per distinct op and shape: the median of its repetitions."""
    index = group(samples, _IDENTITY)
    first = np.unique(index, return_index=True)[1]
    result = samples.take(first)
    order = np.lexsort((samples.duration, index))
    counts = np.bincount(index)
    start = np.concatenate(([0], np.cumsum(counts)[:-1]))
    low, high = order[start + (counts - 1) // 2], order[start + counts // 2]
    result.columns["duration"] = (samples.duration[low] + samples.duration[high]) // 2
    return result


def group(samples: Samples, names: Sequence[str]) -> npt.NDArray[np.intp]:
    """A number for each row, equal for rows that are equal in these columns."""
    index = np.zeros(len(samples), dtype=np.intp)
    for name in names:
        column = samples.columns[name]
        values, inverse = np.unique(column.astype(str) if column.dtype == object else column, return_inverse=True)
        index = np.unique(index * len(values) + inverse, return_inverse=True)[1]
    return index


def shapes_of(samples: Samples) -> Shapes:
    """The shapes of samples, as forms take them."""
    given = {name: samples.columns[name] for name in _SHAPE}
    return Shapes(**given, bytes=samples.bytes_read + samples.bytes_written, shared=samples.bytes_shared)


def residual(predicted: Floats, measured: npt.NDArray[np.int64]) -> Residual:
    """Median and 90th percentile of |predicted / measured - 1|."""
    errors = np.abs(predicted / measured - 1.0)
    return Residual(
        samples=len(errors), median=round(float(np.median(errors)), 4), p90=round(float(np.quantile(errors, 0.9)), 4)
    )


# Ops ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Candidate:
    form: str
    unit: str
    rows: dict[int, RowFit]
    error: float


def _timing(samples: Samples, kind: str, dtype: str, forms: Sequence[str]) -> Timing:
    """The best of the forms, with the best unit, for one kind in one format."""
    shapes = shapes_of(samples)
    units = [unit for unit in UNITS if np.unique(shapes.amount(unit)).size > 1] or [UNITS[0]]
    candidates = [_candidate(samples, form, unit) for form in forms for unit in units]
    least = min(candidate.error for candidate in candidates)
    best = next(candidate for candidate in candidates if candidate.error <= least + TIE)  # the first of equals
    ranges = {name: getattr(shapes, name) for name in (*DIMENSIONS, *UNITS[:2])}
    return Timing(
        kind=kind, dtype=dtype, form=best.form, unit=best.unit, rows=best.rows,
        ranges={name: (int(column.min()), int(column.max())) for name, column in ranges.items() if column.max()},
    )  # fmt: skip


def _candidate(samples: Samples, form: str, unit: str) -> _Candidate:
    rows, errors = {}, []
    for number in np.unique(samples.rows).tolist():
        chosen = samples.take(samples.rows == number)
        shapes = shapes_of(chosen)
        coefficients = FITS[form](shapes, chosen.duration, unit)
        predicted = FORMS.get(form).time(coefficients, shapes, unit)
        rows[number] = RowFit(coefficients=coefficients, residual=residual(predicted, chosen.duration))
        errors.append(np.abs(predicted / chosen.duration - 1.0))
    return _Candidate(form, unit, rows, float(np.median(np.concatenate(errors))))


def fit_sum(shapes: Shapes, durations: npt.NDArray[np.int64], unit: str) -> dict[str, int]:
    """Coefficients of overhead + bytes / bandwidth + amount / rate."""
    columns = np.stack([np.ones(len(durations)), shapes.bytes, shapes.amount(unit)], axis=1).astype(np.float64)
    return _coefficients(nnls(columns / durations[:, None], np.ones(len(durations))))


def fit_later(shapes: Shapes, durations: npt.NDArray[np.int64], unit: str) -> dict[str, int]:
    """Coefficients of overhead + max(bytes / bandwidth, amount / rate).

    Each sample belongs to one of the two; which one follows from the coefficients, which follow from the samples: repeated
    until nothing changes (k-plane clustering, Bradley and Mangasarian, 2000), from several beginnings.
    """
    amounts = [shapes.bytes.astype(np.float64), shapes.amount(unit).astype(np.float64)]
    best: tuple[float, Floats] | None = None
    ratio = amounts[1] / np.maximum(amounts[0], 1)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        later = ratio > np.quantile(ratio, share)  # limited by its arithmetic
        x = np.zeros(3)
        for _ in range(30):
            parts = np.where(later, 0, amounts[0]), np.where(later, amounts[1], 0)
            columns = np.stack([np.ones(len(durations)), *parts], axis=1)
            x = nnls(columns / durations[:, None], np.ones(len(durations)))
            now = x[2] * amounts[1] > x[1] * amounts[0]
            if (now == later).all():
                break
            later = now
        predicted = x[0] + np.maximum(x[1] * amounts[0], x[2] * amounts[1])
        error = float(((predicted / durations - 1.0) ** 2).sum())
        if best is None or error < best[0]:
            best = error, x
    assert best is not None
    return _coefficients(best[1])


FITS = {"sum": fit_sum, "later": fit_later}


def _coefficients(x: Floats) -> dict[str, int]:
    """ps, ps per byte and ps per unit as an overhead and rates in base units; what costs nothing is left out."""
    values = {"overhead": round(float(x[0]))}
    for name, slope in (("bandwidth", float(x[1])), ("rate", float(x[2]))):
        if slope > 0 and (rate := PS_PER_S / slope) < MAXIMUM:
            values[name] = max(1, round(rate))
    return values


# Steps and streams ----------------------------------------------------------------------------------------------------------


def _step(samples: Samples) -> Step:
    """Steps as scale * (sum of their ops) + per_op * (number of ops) + per_step, from those measured with their ops."""
    whole = (samples.kind == STEP) & (samples.step >= 0)
    if not whole.any():
        return Step()
    inside = (samples.kind != STEP) & (samples.step >= 0)
    total = np.bincount(samples.step[inside], weights=samples.duration[inside], minlength=int(samples.step.max()) + 1)
    steps = samples.take(whole)
    sums, durations = total[steps.step], steps.duration
    columns = np.stack([sums, steps.ops.astype(np.float64), np.ones(len(sums))], axis=1)
    x = nnls(columns / durations[:, None], np.ones(len(sums)))
    step = Step(scale=round(float(x[0]), 6), per_op=round(float(x[1])), per_step=round(float(x[2])))
    predicted = step.scale * sums + step.per_op * steps.ops + step.per_step
    return Step(scale=step.scale, per_op=step.per_op, per_step=step.per_step, residual=residual(predicted, durations))


def _streams(samples: Samples, kind: str) -> dict[int, int]:
    """Bytes/s of all streams together, by their number: the median over rounds."""
    return dict(_rates(samples.take((samples.kind == kind) & (samples.beside == ""))))


def _rates(samples: Samples) -> Iterator[tuple[int, int]]:
    moved = (samples.bytes_read + samples.bytes_written).astype(np.float64)
    for number in np.unique(samples.streams).tolist():
        chosen = samples.streams == number
        yield number, max(1, round(float(np.median(moved[chosen] / samples.duration[chosen])) * PS_PER_S * number))
