"""Traces of a run, to look at: native Perfetto (`write_perfetto`) or Chrome JSON (`write_chrome`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sim.analysis.power import Power
from sim.base.errors import InputError, unknown
from sim.log.tables import EventLog
from sim.render.trace.chrome import write_chrome
from sim.render.trace.layout import EXPANDED
from sim.render.trace.perfetto import DETAILS, FLOWS, write_perfetto

__all__ = ["DETAILS", "EXPANDED", "FLOWS", "FORMATS", "format_of", "write", "write_chrome", "write_perfetto"]

#: Names of the formats, which are also the suffixes of their files.
FORMATS = ("pftrace", "pftrace.gz", "json", "json.gz")


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a file name asks for. Raises InputError if its suffix names none."""
    name = Path(path).name
    for each in sorted(FORMATS, key=len, reverse=True):
        if name.endswith("." + each):
            return each
    raise InputError(f"trace file {name!r}: expected a name that ends in {', '.join('.' + each for each in FORMATS)}")


def write(
    log: EventLog,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str],
    format: str | None = None,  # noqa: A002 -- the word that users know
    detail: str = "full",
    flows: str = "all",
    window: tuple[int, int] | None = None,
    critical: npt.NDArray[np.int64] | None = None,
    power: Power | None = None,
) -> int:
    """Write the trace of a run and return its number of slices.

    Args:
        log: Event log of the run.
        path: File to write; its name gives the format.
        metadata: Facts about the run, shown by the viewer.
        format: One of `FORMATS`, instead of that of the file name; both must agree about compression.
        detail: `full`, `ops` (no arguments, no arrows) or `engines` (no tokens either).
        flows: Arrows for `all` dependencies, along the `critical` path, or `none`.
        window: Picoseconds [from, to); slices that overlap it are written whole.
        critical: Rows of the task table along the critical path, in order, for a track of their own.
        power: Watts over time, for a counter; None if they are not known.

    Raises:
        InputError: An option is unknown, or the file name and the format disagree.
        OSError: The file cannot be written; none is left.
    """
    chosen = format_of(path) if format is None else format
    if chosen not in FORMATS:
        raise unknown("trace format", chosen, FORMATS)
    if chosen.endswith(".gz") != (Path(path).suffix == ".gz"):
        raise InputError(f"trace file {Path(path).name!r}: format {chosen!r} and the suffix disagree about compression")
    writer = write_chrome if chosen.startswith("json") else write_perfetto
    return writer(
        log, path, metadata=metadata, detail=detail, flows=flows, window=window, critical=critical, power=power
    )  # fmt: skip
