"""Device profiles as YAML files: quantities with units, one line per fit, so that a person can read and check them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, create_model

from sim.base.documents import Document, read
from sim.base.files import is_input, kind_of, whole_file
from sim.base.problems import OneOf, validated
from sim.base.quantities import BANDWIDTH, DURATION, FLOP_RATE, SIZE, Bandwidth, Duration, FlopRate, Size
from sim.base.section import CountKey, Section, Text
from sim.cost.profile.device import DeviceProfile, Factors, Positive, Provenance, Real, Residual, RowFit, Step, Timing
from sim.cost.profile.forms import DIMENSIONS, FORMS, UNITS

T = TypeVar("T")


class _Step(Section):
    """Overheads of a step, as `Step` has them."""

    scale: Real = 1.0
    per_op: Duration = 0
    per_step: Duration = 0
    residual: Residual | None = None


def _range(value: object) -> tuple[int, int]:
    match value:
        case [int(low), int(high)] if 0 <= low <= high and not isinstance(low, bool) and not isinstance(high, bool):
            return low, high
    raise ValueError("expected [smallest, largest], two whole numbers")


def _factors(value: object) -> Factors:
    """Contexts and factors from a text such as `2: 0.98, 4: 1.013`."""
    pairs = [each.split(":") for each in value.split(",")] if isinstance(value, str) else []
    try:
        found = Factors(context=tuple(int(c) for c, _ in pairs), factor=tuple(float(f) for _, f in pairs))
    except ValueError:
        pairs = []
    if not pairs or any(a >= b for a, b in pairwise(found.context)) or not all(0 < f < 10**6 for f in found.factor):
        raise ValueError("expected ascending contexts with factors, such as '2: 0.98, 4: 1.013'")
    return found


class _Timing(Section):
    """A timing whose form says what its rows may hold: `_timing_of` checks those."""

    form: Annotated[str, OneOf(FORMS.names())]
    unit: Annotated[str, OneOf(UNITS)] = UNITS[0]
    ranges: dict[str, Any]
    rows: Annotated[dict[CountKey, Any], Field(min_length=1)]
    near: dict[
        Annotated[str, Field(pattern=r"^\d+/\d+/\d+$")], dict[CountKey, Annotated[Factors, BeforeValidator(_factors)]]
    ] = Field(default_factory=dict)


class _Profile(Section):
    title: Text
    provenance: Provenance
    engines: Positive = 1
    bandwidth: Bandwidth
    read: dict[CountKey, Bandwidth] = Field(default_factory=dict)
    write: dict[CountKey, Bandwidth] = Field(default_factory=dict)
    flops: dict[str, FlopRate] = Field(default_factory=dict)
    capacity: Size | None = None
    step: _Step = Field(default={}, validate_default=True)
    ops: dict[str, dict[str, _Timing]]


@cache
def _timing_of(form: str) -> type[_Timing]:
    """The model of timings of a form, with its coefficients."""
    coefficients: dict[str, Any] = {
        name: (Annotated[int, BeforeValidator(dimension.parse)] | None, None)
        for name, dimension in FORMS.get(form).coefficients.items()
    }
    fit = create_model("Fit", __base__=Section, **coefficients, residual=(Residual, ...))
    bounds: dict[str, Any] = dict.fromkeys(
        (*DIMENSIONS, *UNITS), (Annotated[tuple[int, int], BeforeValidator(_range)] | None, None)
    )
    ranges = create_model("Ranges", __base__=Section, **bounds)
    return create_model("Timing", __base__=_Timing, ranges=(ranges, ...), rows=(dict[CountKey, fit], ...))  # type: ignore[valid-type]


def read_profile(path: str | os.PathLike[str]) -> DeviceProfile:
    """Read a profile. Raises InputError, with file, line and column, for whatever is wrong with it."""
    path = Path(path)
    is_input(path)
    return _read(path, 0 if kind_of(path) is None else path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, _stamp: int) -> DeviceProfile:
    document = read(path)
    found = validated(document, _Profile)
    tables = {"read": by_number(found.read), "write": by_number(found.write)}
    parts = {**dict(found), **tables, "step": Step(**dict(found.step)), "timings": tuple(_timings(found, document))}
    return DeviceProfile(**{name: value for name, value in parts.items() if name != "ops"})


def _timings(found: _Profile, document: Document) -> Iterator[Timing]:
    for kind, by_dtype in found.ops.items():
        for dtype, each in by_dtype.items():
            timing: Any = validated(document, _timing_of(each.form), ("ops", kind, dtype))
            rows = {}
            for number, fit in by_number(timing.rows).items():
                values = {name: value for name, value in fit if value is not None}
                rows[number] = RowFit(residual=values.pop("residual"), coefficients=values)
            ranges = {name: bounds for name, bounds in timing.ranges if bounds is not None}
            near = {_heads(key): by_number(factors) for key, factors in timing.near.items()}
            yield Timing(kind=kind, dtype=dtype, form=timing.form, unit=timing.unit, ranges=ranges, rows=rows, near=near)


def _heads(key: str) -> tuple[int, int, int]:
    heads, kv_heads, size = map(int, key.split("/"))
    return heads, kv_heads, size


def by_number(table: Mapping[str, T]) -> dict[int, T]:
    """A table whose keys are numbers, ascending."""
    return dict(sorted(((int(number), value) for number, value in table.items()), key=itemgetter(0)))


# Writing --------------------------------------------------------------------------------------------------------------------


def write_profile(profile: DeviceProfile, path: str | os.PathLike[str]) -> None:
    """Write a profile, whole or not at all; `read_profile` gives an equal one. Raises OSError."""
    with whole_file(path) as file:
        file.write(("\n".join(_lines(profile)) + "\n").encode())


def _lines(profile: DeviceProfile) -> Iterator[str]:
    """Texts are written as JSON, which is YAML."""
    p, step = profile.provenance, profile.step
    yield f"title: {json.dumps(profile.title, ensure_ascii=False)}"
    yield "provenance:"
    for key, value in p:
        if value not in ("", {}, (), None):
            yield f"  {key}: {json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False)}"
    yield f"engines: {profile.engines}"
    yield f"bandwidth: {BANDWIDTH.format(profile.bandwidth)}"
    for key, table in (("read", profile.read), ("write", profile.write)):
        if table:
            rates = (f'"{n}": {BANDWIDTH.format(rate)}' for n, rate in table.items())
            yield f"{key}: {{{', '.join(rates)}}}"
    if profile.flops:
        yield f"flops: {{{', '.join(f'{dtype}: {FLOP_RATE.format(rate)}' for dtype, rate in profile.flops.items())}}}"
    if profile.capacity is not None:
        yield f"capacity: {SIZE.format(profile.capacity)}"
    overheads = f"per_op: {DURATION.format(step.per_op)}, per_step: {DURATION.format(step.per_step)}"
    tail = f", residual: {_flow(step.residual)}" if step.residual else ""
    yield f"step: {{scale: {step.scale!r}, {overheads}{tail}}}"
    yield "ops:"
    kind = None
    for timing in profile.timings:
        if timing.kind != kind:
            kind = timing.kind
            yield f"  {json.dumps(kind)}:"
        yield f"    {timing.dtype}:"
        yield f"      form: {timing.form}"
        yield f"      unit: {timing.unit}"
        ranges = (f"{name}: [{low}, {high}]" for name, (low, high) in timing.ranges.items())
        yield f"      ranges: {{{', '.join(ranges)}}}"
        yield "      rows:"
        dimensions = FORMS.get(timing.form).coefficients
        for number, fit in timing.rows.items():
            values = [f"{name}: {dimensions[name].format(value)}" for name, value in fit.coefficients.items()]
            values.append(f"residual: {_flow(fit.residual)}")
            yield f'        "{number}": {{{", ".join(values)}}}'
        if timing.near:
            yield "      near:"
        for heads, by_rows in timing.near.items():
            yield f'        "{"/".join(map(str, heads))}":'
            for number, found in by_rows.items():
                pairs = (f"{context}: {factor!r}" for context, factor in zip(found.context, found.factor, strict=True))
                yield f'          "{number}": "{", ".join(pairs)}"'


def _flow(residual: Residual) -> str:
    return f"{{samples: {residual.samples}, median: {residual.median!r}, p90: {residual.p90!r}}}"
