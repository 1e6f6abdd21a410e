"""From samples to a device profile: non-negative least squares on relative errors, per kind, number format and rows.

Relative, because an op of 3 us matters as much to its kind as one of 300: each equation is divided by its duration, so that
the residual is predicted / measured - 1 (products are an exception: `SOFTER`). Non-negative, because nothing takes less than no
time: a coefficient that would come out negative is left out of the form. Repetitions of one shape count as one sample, their
median.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sim.base.errors import InputError
from sim.base.quantities import MAXIMUM
from sim.base.units import PS_PER_S
from sim.cost.profile.device import (
    ATTENTION,
    MATMUL,
    MIXED,
    MULTI_HEAD,
    PREFILL,
    DeviceProfile,
    Factors,
    Provenance,
    Residual,
    RowFit,
    Step,
    Timing,
)
from sim.cost.profile.forms import DIMENSIONS, FORMS, UNITS, Cached, Floats, Shapes
from sim.cost.profile.nnls import nnls
from sim.cost.profile.predict import time
from sim.cost.profile.samples import SHAPE, STREAMS, Samples, shapes_of

#: Kinds of samples that are no ops, beside `STREAMS`.
STEP, (READ, WRITE) = "step", STREAMS[:2]

#: Median errors that differ by less say nothing about which form is right.
TIE = 0.002

#: Products are divided by duration ** SOFTER: a step is a few large ones and many small ones, whose kernels differ more than a
#: form with three coefficients can say, and the large ones are most of its time.
SOFTER = 0.75

IDENTITY = ("kind", "dtype", "model", *SHAPE, "bytes_read", "bytes_written")


def fit(
    samples: Samples, provenance: Provenance, *, title: str = "", engines: int = 1, bandwidth: int | None = None,
    capacity: int | None = None, cache: int | None = None, forms: Sequence[str] | None = None,
    flops: Mapping[str, int] | None = None, near: bool = False,
) -> DeviceProfile:  # fmt: skip
    """Fit a profile to samples.

    bandwidth: bytes/s of the memory; by default the best that streams reached. cache: bytes of the last cache, from
    which on kernels have a second rate. forms: of these each kind takes the one with the smallest median error;
    by default `sum` and `later`, with a cache `cached`. flops: peaks by number format. near: keep how far the form of attention
    is off at each shape, so that times near one are interpolated. Raises InputError if nothing can be fitted.
    """
    forms = forms or (("cached",) if cache is not None else tuple(PLAIN))
    alone = (samples.streams == 1) & (samples.beside == "")
    ops = ~np.isin(samples.kind.astype(str), (STEP, *STREAMS))
    shapes = medians(samples.take(alone & ops))
    timings = []
    for kind, dtype in sorted({(k, d) for k, d in zip(shapes.kind, shapes.dtype, strict=True)}):
        mine = shapes.take((shapes.kind == kind) & (shapes.dtype == dtype))
        if kind in POOLED:
            timings.append(_pooled(mine, kind, dtype))
            continue
        timing = _timing(mine, kind, dtype, forms, cache)
        timings.append(replace(timing, near=_near(timing, mine)) if near and kind in (ATTENTION, MULTI_HEAD) else timing)
    if not timings:
        raise InputError("expected samples of ops that ran alone, found none")
    read, write = (_streams(samples, kind) for kind in (READ, WRITE))
    best = max([*read.values(), *write.values()], default=None)
    if bandwidth is None and best is None:
        raise InputError("expected the bandwidth of the memory, because there are no samples of streams")
    return DeviceProfile(
        title=title or provenance.device,
        provenance=provenance,
        engines=engines,
        bandwidth=max(bandwidth or 0, best or 0),
        read=read,
        write=write,
        flops=flops or {},
        capacity=capacity,
        step=_step(samples.take(alone)),
        timings=tuple(timings),
    )


def medians(samples: Samples) -> Samples:
    """One row per distinct op and shape: the median of its repetitions."""
    index = group(samples, IDENTITY)
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


def residual(predicted: Floats, measured: npt.NDArray[np.int64]) -> Residual:
    """Median and 90th percentile of |predicted / measured - 1|."""
    errors = np.abs(predicted / measured - 1.0)
    return Residual(
        samples=len(errors), median=round(float(np.median(errors)), 4), p90=round(float(np.quantile(errors, 0.9)), 4)
    )


# Ops ------------------------------------------------------------------------------------------------------------------------

#: Coefficients of a form, by number of rows.
ByRows = dict[int, dict[str, int]]


def _timing(samples: Samples, kind: str, dtype: str, forms: Sequence[str], cache: int | None) -> Timing:
    """The best of the forms, with the best unit, for one kind in one format."""
    shapes = shapes_of(samples)
    units = [unit for unit in UNITS if np.unique(shapes.amount(unit)).size > 1] or [UNITS[0]]
    tried = []
    for form in forms:
        for unit in units if form in PLAIN else UNITS[:1]:
            rows = fit_plain(samples, form, unit) if form in PLAIN else fit_cached(samples, cache)
            tried.append((form, unit, rows, _error(samples, form, unit, rows)))
    least = min(error for *_, error in tried)
    form, unit, rows, _ = next(found for found in tried if found[-1] <= least + TIE)  # the first of equals
    ranges = {name: getattr(shapes, name) for name in (*DIMENSIONS, *UNITS[:2])}
    fits = {}
    for number, coefficients in rows.items():
        chosen = samples.take(samples.rows == number)
        predicted = FORMS.get(form).time(coefficients, shapes_of(chosen), unit)
        fits[number] = RowFit(coefficients=coefficients, residual=residual(predicted, chosen.duration))
    return Timing(
        kind=kind, dtype=dtype, form=form, unit=unit, rows=fits,
        ranges={name: (int(column.min()), int(column.max())) for name, column in ranges.items() if column.max()},
    )  # fmt: skip


#: Kinds with one fit for all numbers of rows, and the forms of which each has the better.
POOLED = {PREFILL: ("sum",), MIXED: ("sum", "later")}


def _pooled(samples: Samples, kind: str, dtype: str) -> Timing:
    """Attention of prompts: by all of its bytes and FLOPs, whatever the number of rows."""
    shapes = shapes_of(samples)
    ranges = {name: getattr(shapes, name) for name in (*DIMENSIONS, *UNITS[:2])}
    tried = []
    for form in POOLED[kind]:
        coefficients = PLAIN[form](shapes, samples.duration, UNITS[0])
        tried.append((form, coefficients, residual(FORMS.get(form).time(coefficients, shapes, UNITS[0]), samples.duration)))
    form, coefficients, found = min(tried, key=lambda each: each[-1].median)
    numbers = sorted({int(shapes.rows.min()), int(shapes.rows.max())})
    return Timing(
        kind=kind, dtype=dtype, form=form, unit=UNITS[0],
        rows=dict.fromkeys(numbers, RowFit(coefficients=coefficients, residual=found)),
        ranges={name: (int(column.min()), int(column.max())) for name, column in ranges.items() if column.max()},
    )  # fmt: skip


#: Decimals of factors, which are near 1.
DECIMALS = 4


def _near(timing: Timing, samples: Samples) -> dict[tuple[int, int, int], dict[int, Factors]]:
    """Measured time over time by the form at each shape of attention."""
    factors = samples.duration / time(timing, shapes_of(samples))
    columns = (samples.heads, samples.kv_heads, samples.head_dim, samples.rows, samples.context, factors)
    found: dict[tuple[int, int, int], dict[int, dict[int, float]]] = {}
    for heads, kv_heads, size, rows, context, factor in sorted(zip(*(c.tolist() for c in columns), strict=True)):
        by_context = found.setdefault((heads, kv_heads, size), {}).setdefault(rows, {})
        by_context.setdefault(context, max(round(factor, DECIMALS), 10.0**-DECIMALS))
    return {
        key: {rows: Factors(context=tuple(each), factor=tuple(each.values())) for rows, each in by_rows.items()}
        for key, by_rows in found.items()
    }


def _predict(samples: Samples, form: str, unit: str, rows: ByRows) -> Floats:
    predicted = np.zeros(len(samples))
    for number, coefficients in rows.items():
        chosen = samples.rows == number
        predicted[chosen] = FORMS.get(form).time(coefficients, shapes_of(samples.take(chosen)), unit)
    return predicted


def _error(samples: Samples, form: str, unit: str, rows: ByRows) -> float:
    return float(np.median(np.abs(_predict(samples, form, unit, rows) / samples.duration - 1.0)))


def fit_plain(samples: Samples, form: str, unit: str) -> ByRows:
    """Coefficients of `sum` or `later`, at each number of rows by itself."""
    rows = {}
    for number in np.unique(samples.rows).tolist():
        chosen = samples.take(samples.rows == number)
        rows[number] = PLAIN[form](shapes_of(chosen), chosen.duration, unit, _power(chosen))
    return rows


def _power(samples: Samples) -> float:
    return SOFTER if (samples.kind == MATMUL).all() else 1.0


def fit_sum(shapes: Shapes, durations: npt.NDArray[np.int64], unit: str, power: float = 1.0) -> dict[str, int]:
    """Coefficients of overhead + bytes / bandwidth + amount / rate."""
    columns = np.stack([np.ones(len(durations)), shapes.bytes, shapes.amount(unit)], axis=1).astype(np.float64)
    return _coefficients(_relative(columns, durations, power))


def fit_later(shapes: Shapes, durations: npt.NDArray[np.int64], unit: str, power: float = 1.0) -> dict[str, int]:
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
            x = _relative(np.stack([np.ones(len(durations)), *parts], axis=1), durations, power)
            now = x[2] * amounts[1] > x[1] * amounts[0]
            if (now == later).all():
                break
            later = now
        predicted = x[0] + np.maximum(x[1] * amounts[0], x[2] * amounts[1])
        error = float((((predicted - durations) / durations**power) ** 2).sum())
        if best is None or error < best[0]:
            best = error, x
    assert best is not None
    return _coefficients(best[1])


PLAIN = {"sum": fit_sum, "later": fit_later}

#: Depths at which kernels may begin to split their loop, more of them where kernels ran in steps, whose contexts begin with a
#: few tokens; and how much larger than the least error is as good.
SPLITS, EARLY, AS_GOOD = (1024, 2048, 4096), (256, 512), 1.25


def fit_cached(samples: Samples, cache: int | None) -> ByRows:
    """Coefficients of `cached`, for a given size of the last cache in bytes.

    Of the splits that fit about as well the deepest is taken: the part that a shallow one leaves to `serial` grows without end
    beyond the depths that were measured.
    """
    found = [_cached(samples, cache, split) for split in (*(EARLY if cache is None else ()), *SPLITS)]
    errors = [_error(samples, "cached", UNITS[0], rows) for rows in found]
    return next(rows for rows, error in reversed([*zip(found, errors, strict=True)]) if error <= AS_GOOD * min(errors))


def _cached(samples: Samples, cache: int | None, split: int) -> ByRows:
    """The rate of memory beyond the cache is one figure of the device, fitted to all rows at once; the rest is by rows."""
    form, fixed = Cached(), {"split": split, **({"cache": cache} if cache is not None else {})}
    power = _power(samples) if cache is None else 1.0  # tables of kernels are of no steps
    parts = form.parts(fixed, shapes_of(samples))
    rows, durations = samples.rows, samples.duration
    pooled = ("beyond", "bandwidth", "chain", "serial", "lanes", "tiles", "queries")
    columns = [np.ones(len(rows)), *(parts[name] for name in pooled), rows * parts["tiles"], rows * parts["queries"]]
    beyond = float(_relative(np.stack(columns, axis=1).astype(np.float64), durations, power)[1])
    names = [name for name in parts if name != "beyond"]
    result = {}
    for number in np.unique(rows).tolist():
        chosen = rows == number
        columns = [np.ones(int(chosen.sum())), *(parts[name][chosen] for name in names)]
        left = durations[chosen] - beyond * parts["beyond"][chosen]
        weights = durations[chosen].astype(np.float64) ** power
        x = nnls(np.stack(columns, axis=1) / weights[:, None], left / weights)
        rates = {name: _rate(slope) for name, slope in [*zip(names, x[1:].tolist(), strict=True), ("beyond", beyond)]}
        used = {name: rate for name, rate in rates.items() if rate is not None}
        needed = {key: value for key, value in fixed.items() if {"split": "chain", "cache": "beyond"}[key] in used}
        result[number] = {"overhead": round(float(x[0])), **used, **needed}
    return result


def _relative(columns: Floats, durations: npt.NDArray[np.int64], power: float = 1.0) -> Floats:
    """Least squares of (predicted - measured) / measured ** power."""
    weights = durations.astype(np.float64) ** power
    return nnls(columns / weights[:, None], durations / weights)


def _coefficients(x: Floats) -> dict[str, int]:
    """ps, ps per byte and ps per unit as an overhead and rates in base units; what costs nothing is left out."""
    rates = {"bandwidth": _rate(float(x[1])), "rate": _rate(float(x[2]))}
    return {"overhead": round(float(x[0])), **{name: rate for name, rate in rates.items() if rate is not None}}


def _rate(slope: float) -> int | None:
    """Units per second at a time per unit in ps, None for a time of practically nothing."""
    return max(1, round(PS_PER_S / slope)) if slope * MAXIMUM > PS_PER_S else None


# Steps and streams ----------------------------------------------------------------------------------------------------------


def _step(samples: Samples) -> Step:
    """Steps as scale * (sum of their ops) + per_op * (number of ops) + per_step, from those measured with their ops.

    Repetitions count as one, as those of ops do: the median step against the sum over the medians of its ops.
    """
    steps = samples.take((samples.kind == STEP) & (samples.step >= 0))
    if not len(steps):
        return Step()
    alike = group(steps, IDENTITY)
    of_step = np.full(int(steps.step.max()) + 1, -1)
    of_step[steps.step] = alike
    ops = samples.take((samples.kind != STEP) & (samples.step >= 0))
    shape = group(ops, IDENTITY)
    kinds = of_step[ops.step] * (int(shape.max(initial=0)) + 1) + shape
    order = np.argsort(kinds, kind="stable")
    sums = np.zeros(int(alike.max()) + 1)
    for mine in np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1):
        point = of_step[ops.step[mine[0]]]
        sums[point] += np.median(ops.duration[mine]) * len(mine) / int((alike == point).sum())
    middle = medians(steps)  # in the order of `alike`
    columns = np.stack([sums, middle.ops.astype(np.float64), np.ones(len(sums))], axis=1)
    x = _relative(columns, middle.duration)
    step = Step(scale=round(float(x[0]), 6), per_op=round(float(x[1])), per_step=round(float(x[2])))
    predicted = step.scale * sums + step.per_op * middle.ops + step.per_step
    return Step(scale=step.scale, per_op=step.per_op, per_step=step.per_step, residual=residual(predicted, middle.duration))


def _streams(samples: Samples, kind: str) -> dict[int, int]:
    """Bytes/s of all streams together, by their number: the median over rounds."""
    return dict(_rates(samples.take((samples.kind == kind) & (samples.beside == ""))))


def _rates(samples: Samples) -> Iterator[tuple[int, int]]:
    moved = (samples.bytes_read + samples.bytes_written).astype(np.float64)
    for number in np.unique(samples.streams).tolist():
        chosen = samples.streams == number
        yield number, max(1, round(float(np.median(moved[chosen] / samples.duration[chosen])) * PS_PER_S * number))
