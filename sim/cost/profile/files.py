"""Device profiles as YAML files: quantities with units, one line per fit, so that a person can read and check them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.base.documents import Node, read
from sim.base.files import whole_file
from sim.base.quantities import BANDWIDTH, DURATION, SIZE, Dimension
from sim.base.values import items, numbered, one_of, quantity, real, whole
from sim.cost.profile.device import DeviceProfile, Provenance, Residual, RowFit, Step, Timing
from sim.cost.profile.forms import DIMENSIONS, FORMS, UNITS

KEYS = ("title", "provenance", "engines", "bandwidth", "read", "write", "capacity", "step", "ops")
PROVENANCE = (
    "device", "source", "date", "driver", "libraries", "settings", "rounds", "spread", "noise", "warnings", "samples",
)  # fmt: skip
STEP = ("scale", "per_op", "per_step", "residual")
TIMING = ("form", "unit", "ranges", "rows")
RESIDUAL = ("samples", "median", "p90")
RANGES = (*DIMENSIONS, *UNITS)


def read_profile(path: str | os.PathLike[str]) -> DeviceProfile:
    """Read a profile. Raises InputError, with file, line and column, for whatever is wrong with it."""
    path = Path(path)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        stamp = 0  # reading says what is wrong
    return _read(path, stamp)


@lru_cache(maxsize=16)
def _read(path: Path, _stamp: int) -> DeviceProfile:
    root = read(path).root
    found = root.mapping(KEYS)
    return DeviceProfile(
        title=root.needed("title").text(),
        provenance=_provenance(root.needed("provenance")),
        engines=whole(found["engines"]) if "engines" in found else 1,
        bandwidth=quantity(root.needed("bandwidth"), BANDWIDTH),
        read=_rates(found["read"]) if "read" in found else {},
        write=_rates(found["write"]) if "write" in found else {},
        capacity=quantity(found["capacity"], SIZE) if "capacity" in found else None,
        step=_step(found["step"]) if "step" in found else Step(),
        timings=tuple(_timings(root.needed("ops"))),
    )


def _provenance(node: Node) -> Provenance:
    found = node.mapping(PROVENANCE)
    optional: dict[str, Any] = {key: found[key].text() for key in ("driver", "samples") if key in found}
    for key in ("libraries", "settings"):
        if key in found:
            optional[key] = {name: each.text() for name, each in found[key].mapping().items()}
    for key in ("spread", "noise"):
        if key in found:
            optional[key] = real(found[key])
    if "rounds" in found:
        optional["rounds"] = whole(found["rounds"])
    if "warnings" in found:
        optional["warnings"] = tuple(each.text() for each in items(found["warnings"]))
    return Provenance(
        device=node.needed("device").text(), source=node.needed("source").text(), date=node.needed("date").text(), **optional
    )


def _step(node: Node) -> Step:
    found = node.mapping(STEP)
    return Step(
        scale=real(found["scale"]) if "scale" in found else 1.0,
        per_op=quantity(found["per_op"], DURATION) if "per_op" in found else 0,
        per_step=quantity(found["per_step"], DURATION) if "per_step" in found else 0,
        residual=_residual(found["residual"]) if "residual" in found else None,
    )


def _timings(node: Node) -> Iterator[Timing]:
    for kind, by_dtype in node.mapping().items():
        for dtype, each in by_dtype.mapping().items():
            found = each.mapping(TIMING)
            form = one_of(each.needed("form"), FORMS.names())
            ranges = each.needed("ranges").mapping(RANGES)
            yield Timing(
                kind=kind,
                dtype=dtype,
                form=form,
                unit=one_of(found["unit"], UNITS) if "unit" in found else UNITS[0],
                ranges={name: _range(bounds) for name, bounds in ranges.items()},
                rows=_rows(each.needed("rows"), FORMS.get(form).coefficients),
            )


def _rates(node: Node) -> dict[int, int]:
    """Bandwidths by number of streams."""
    return {number: quantity(each, BANDWIDTH) for number, each in numbered(node, "streams").items()}


def _rows(node: Node, dimensions: Mapping[str, Dimension]) -> dict[int, RowFit]:
    """Fits by number of rows. dimensions: of the coefficients of the form."""
    fits = {}
    for number, fit in numbered(node, "rows").items():
        values = fit.mapping((*dimensions, "residual"))
        coefficients = {name: quantity(each, dimensions[name]) for name, each in values.items() if name != "residual"}
        fits[number] = RowFit(coefficients=coefficients, residual=_residual(fit.needed("residual")))
    if not fits:
        raise node.place.error("expected a fit for at least one number of rows")
    return fits


def _residual(node: Node) -> Residual:
    node.mapping(RESIDUAL)
    return Residual(samples=whole(node.needed("samples")), median=real(node.needed("median")), p90=real(node.needed("p90")))


def _range(node: Node) -> tuple[int, int]:
    bounds = [each.value for each in items(node)]
    numbers = [bound for bound in bounds if isinstance(bound, int) and not isinstance(bound, bool)]
    if len(numbers) == len(bounds) == 2 and 0 <= numbers[0] <= numbers[1]:
        return numbers[0], numbers[1]
    raise node.place.error("expected [smallest, largest], two whole numbers")


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
    for key in PROVENANCE:
        value = getattr(p, key)
        if value not in ("", {}, (), None):
            yield f"  {key}: {json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False)}"
    yield f"engines: {profile.engines}"
    yield f"bandwidth: {BANDWIDTH.format(profile.bandwidth)}"
    for key, table in (("read", profile.read), ("write", profile.write)):
        if table:
            rates = (f'"{n}": {BANDWIDTH.format(rate)}' for n, rate in table.items())
            yield f"{key}: {{{', '.join(rates)}}}"
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


def _flow(residual: Residual) -> str:
    return f"{{samples: {residual.samples}, median: {residual.median!r}, p90: {residual.p90!r}}}"
