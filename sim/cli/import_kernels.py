"""`sim import-kernels`."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from sim.base.files import check_output
from sim.cli.console import output
from sim.cost.profile import cache_advice, fit, predict, read_tables, write_profile, write_samples
from sim.cost.profile.fit import residual
from sim.render.narrow import Fitting


@click.command("import-kernels")
@click.argument("mapping", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--tables", "folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of the tables.  [default: the folder of MAPPING]")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="DEVICE.yaml",
              help="Where to write the device profile.")  # fmt: skip
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Fit to all rows, and interpolate attention near them: a profile to use, with no rows left to check it.",
)
@click.option("--samples", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.parquet",
              help="Also save the rows of the tables as samples; needs pyarrow.")  # fmt: skip
def command(mapping: Path, folder: Path | None, out: Path, everything: bool, samples: Path | None) -> None:
    """Fit a device profile to tables of kernel times (CSV or Parquet). MAPPING is a YAML file that names their columns.

    Fits the rows that the mapping selects for calibration, and prints the errors on those and on all others: of the median row,
    of the 90th percentile, and by time, in which a row counts as much as it takes.
    """
    found = read_tables(mapping, folder)
    for path in (out, samples):
        if path is not None:
            check_output(path)
    calibrate = found.calibrate | everything
    profile = fit(
        found.samples.take(calibrate), found.provenance, title=found.title, bandwidth=found.bandwidth,
        capacity=found.capacity, cache=found.cache, flops=found.flops, near=everything,
    )  # fmt: skip
    predicted = predict(profile, found.samples)
    table = Fitting(drop=("rows",), header_style="bold")
    for name in ("kernels", "form", "", "rows", "median", "p90", "by time"):
        table.add_column(name, justify="left" if name in ("kernels", "form", "") else "right")
    for timing in profile.timings:
        for name, part in (("fitted", calibrate), ("others", ~calibrate)):
            chosen = part & (found.samples.kind == timing.kind) & (found.samples.dtype == timing.dtype) & np.isfinite(predicted)
            if chosen.any():
                measured = found.samples.duration[chosen]
                error = residual(predicted[chosen], measured)
                by_time = np.abs(predicted[chosen] - measured).sum() / measured.sum()
                what = (f"{timing.kind} ({timing.dtype})", timing.form) if name == "fitted" else ("", "")
                errors = f"{error.median:.1%}", f"{error.p90:.1%}", f"{by_time:.1%}"
                table.add_row(*what, name, f"{error.samples:,}", *errors)
    write_profile(profile, out)
    if samples is not None:
        write_samples(found.samples, samples)
    console = output()
    console.print(table)
    if (advice := cache_advice(found)) is not None:
        console.print(f"\n{advice}", style="yellow", highlight=False)
    console.print(f"\n{out}", highlight=False)
