"""`sim profile`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from models.config import DTYPES, resolve
from sim.base.errors import InputError
from sim.base.files import check_output, kind_of
from sim.cli.console import output
from sim.cli.options import device_module
from sim.cost.profile import DeviceProfile
from sim.render.narrow import Fitting


@click.command("profile")
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda|mps", help="Device to measure.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads per op.  [default: all processors]")
@click.option("--dtype", type=click.Choice(DTYPES), default=DTYPES[0], show_default=True, help="Number format of the models.")
@click.option("--models", "names", multiple=True, metavar="CONFIG",
              help="Model to calibrate on: a shipped name, a config.json, or a Hugging Face id. Can be repeated.")  # fmt: skip
@click.option("--cuda-graph", is_flag=True, help="Replay the steps as CUDA graphs.")
@click.option("--quick/--full", default=True, show_default=True, help="Take about 2 minutes, or about 12.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="DEVICE.yaml",
              help="File to write the device profile to; the samples are saved next to it, as DEVICE.parquet.")  # fmt: skip
def command(
    device: str, threads: int | None, dtype: str, names: tuple[str, ...], cuda_graph: bool, quick: bool, out: Path
) -> None:  # fmt: skip
    """Measure a device: how long the ops of decode steps take, and the memory bandwidth that several streams get.

    Runs steps of small models with random weights, in rounds. After an interruption, the same command continues from the
    last round. Needs torch, transformers and pyarrow. Nothing else should run on the machine meanwhile.
    """
    if out.suffix not in {".yaml", ".yml"}:
        raise InputError(f"--out: expected a name that ends in .yaml, found {str(out)!r}")
    check_output(out)
    if kind_of(out.absolute().parent) != "folder":
        raise InputError(f"--out: {out.parent}: no such folder")
    if cuda_graph and device != "cuda":
        raise InputError(f"--cuda-graph: expected --device cuda, found {device}")
    models = [resolve(name) for name in names]
    plans = device_module("plan")
    plan = plans.plan_for(device, quick=quick)
    if models:
        plan = replace(plan, models=tuple(models))
    place = device_module("place").place(device, threads)
    calibrate = device_module("calibrate").calibrate
    measured = calibrate(plan, place, dtype, out, lambda text: click.echo(text, err=True), graphs=cuda_graph)
    show(measured)
    click.echo(f"\n{out}\n{out.with_suffix('.parquet')}")


def show(profile: DeviceProfile) -> None:
    """Print the fitted timings with their errors on the samples."""
    table = Fitting(header_style="bold")
    for name in ("ops", "form", "shapes", "median", "p90"):
        table.add_column(name, justify="left" if name in ("ops", "form") else "right")
    for timing in profile.timings:
        fits = [fit.residual for fit in timing.rows.values()]
        count = sum(each.samples for each in fits)
        mean = [sum(getattr(each, name) * each.samples for each in fits) / count for name in ("median", "p90")]
        table.add_row(f"{timing.kind} ({timing.dtype})", timing.form, f"{count:,}", *(f"{value:.1%}" for value in mean))
    if step := profile.step.residual:
        table.add_row("step", "", f"{step.samples:,}", f"{step.median:.1%}", f"{step.p90:.1%}")
    output(120).print(table)
    source = profile.provenance
    click.echo(f"\n{source.rounds} rounds; spread {source.spread or 0:.1%}, noise floor {source.noise or 0:.1%}")
    for warning in source.warnings:
        click.echo(f"warning: {warning}", err=True)
