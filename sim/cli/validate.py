"""`sim validate`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from models.config import DTYPES, resolve
from sim import __version__
from sim.base.errors import InputError
from sim.cli.console import output
from sim.cli.options import device_module
from sim.cost.profile import DeviceProfile, read_profile
from sim.render import validation as report
from sim.render.trace import format_of
from sim.render.trace.double import Pair, Run, write_double
from sim.runs.validation import Comparison, Prediction, lower_bound, predict, within

#: Default of --band, in percent.
BAND = 10.0


@click.command("validate")
@click.argument("config")
@click.option("--device", type=click.Choice(["cpu", "cuda", "mps"]), default="cpu", show_default=True, help="Device to run on.")
@click.option("--profile", "profile_path", type=click.Path(path_type=Path, dir_okay=False), metavar="DEVICE.yaml",
              help="Predict with this device profile; without one there is only a lower bound.")  # fmt: skip
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1,), show_default=True,
              help="Sequences in the step. Can be repeated.")  # fmt: skip
@click.option("--context", "contexts", type=click.IntRange(1), multiple=True, default=(512,), show_default=True,
              help="Tokens in the KV cache of each sequence. Can be repeated.")  # fmt: skip
@click.option("--dtype", type=click.Choice(DTYPES), default=None, help="Number format.  [default: that of the config]")
@click.option("--layers", type=click.IntRange(1), default=None, help="Use only the first N layers.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads.  [default: torch's own]")
@click.option("--attention", type=click.Choice(["sdpa", "three_pass"]), default=None,
              help="Attention kernel.  [default: sdpa, where the model has it]")  # fmt: skip
@click.option("--cuda-graph", is_flag=True, help="Replay the steps as CUDA graphs.")
@click.option("--rounds", type=click.IntRange(2), default=12, show_default=True, help="Repetitions, interleaved.")
@click.option("--band", type=click.FloatRange(0, min_open=True), default=None, metavar="PERCENT",
              help="Largest acceptable error of a step, unless the noise is larger.  [default: 10]")  # fmt: skip
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.pftrace",
              help="Write both runs as one Perfetto trace.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context, config: str, device: str, profile_path: Path | None, batches: Sequence[int], contexts: Sequence[int],
    dtype: str | None, layers: int | None, threads: int | None, attention: str | None, cuda_graph: bool, rounds: int,
    band: float | None, trace: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Run a real model on this device, simulate the same steps, and compare them.

    CONFIG is a shipped name, a config.json, or a Hugging Face id. The model has random weights. Exit status 1 if the
    error of a step is outside the band.
    """
    if trace is not None:
        _writable(trace)
    if cuda_graph and device != "cuda":
        raise InputError(f"--cuda-graph: expected --device cuda, found {device}")
    if band is not None and profile_path is None:
        raise InputError("--band: expected --profile DEVICE.yaml as well: without one there is only a lower bound")
    wanted, profile = resolve(config), None if profile_path is None else read_profile(profile_path)
    with _status_line() as now:
        now("loading torch")
        real, step, place, measuring = map(device_module, ("real", "step", "place", "rounds"))
        on = place.place(device, threads)
        now(f"building {wanted.name} with random weights")
        model = real.RealModel(wanted, on, dtype=dtype, layers=layers, attention=attention)
        points = [model.at(batch, context) for batch in dict.fromkeys(batches) for context in dict.fromkeys(contexts)]
        rates = measuring.roofs(on, model.dtype) if profile is None else None
        predictions = [_predicted(point.ops, point.point[2], profile, rates) for point in points]
        runs = [step.CudaGraph(point) for point in points] if cuda_graph else points
        found = measuring.collect(runs, rounds, lambda number, of: now(_round(number, of)))
    comparisons = [Comparison(steps=tuple(steps), prediction=p) for steps, p in zip(found, predictions, strict=True)]
    threaded = f", {on.threads} threads" if device == "cpu" else ""
    facts = {
        "model": model.name, "device": device, "name": on.name, "driver": on.driver, "dtype": model.dtype, "layers": layers,
        "threads": on.threads if device == "cpu" else None, "attention": model.attention, "cuda_graph": cuda_graph,
    }  # fmt: skip
    title = (f"{model.name} in {model.dtype}, {model.attention} attention", f"{on.name} ({device}{threaded})")
    if trace is not None:
        texts = {key: str(value) for key, value in facts.items() if value is not None}
        texts |= {"profile": profile.title if profile else "none: roofline", "version": __version__}
        write_double(trace, model.name, [_pair(comparison) for comparison in comparisons], metadata=texts)
    named, share = None if profile is None else str(profile_path), (BAND if band is None else band) / 100
    warnings = [] if profile is None else _warnings(profile, on.name, on.threads if device == "cpu" else None, cuda_graph)
    if as_json:
        summary = report.to_json(comparisons, facts=facts, profile=named, warnings=warnings, band=share)
        click.echo(json.dumps({**summary, "trace": None if trace is None else str(trace)}))
    else:
        console = output()
        console.print(report.render(comparisons, title=title, profile=named, warnings=warnings, band=share), highlight=False)
        if trace is not None:
            console.print(
                f"\ntrace  {trace}\n       open it at https://ui.perfetto.dev, or with: sim view {trace}", highlight=False
            )
    if profile is not None and not within(comparisons, share):
        ctx.exit(1)


def _writable(trace: Path) -> None:
    """Raise InputError if the trace cannot be written: before minutes of measuring, not after."""
    if not format_of(trace).startswith("pftrace"):
        raise InputError(f"--trace: expected a name that ends in .pftrace or .pftrace.gz, found {trace.name!r}")
    trace.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(trace.parent, os.W_OK):
        raise InputError(f"--trace: cannot write in {trace.parent}")


@contextmanager
def _status_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a status line on a terminal. No spinner: it would take CPU time from the measurement."""
    terminal = sys.stderr.isatty()

    def show_line(text: str) -> None:
        if terminal:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)

    try:
        yield show_line
    finally:
        show_line("")


def _predicted(ops: Any, context: int, profile: DeviceProfile | None, rates: tuple[int, int, int] | None) -> Prediction:
    if profile is not None:
        return predict(ops, context, profile)
    assert rates is not None
    return lower_bound(ops, context, *rates)


def _warnings(profile: DeviceProfile, name: str, threads: int | None, graphs: bool = False) -> list[str]:
    """Warnings of the profile itself, and differences between its device and settings and this run's."""
    measured, found = profile.provenance, []
    if measured.device != name:
        found.append(f"measured on {measured.device}, but this is {name}")
    if threads is not None and (other := measured.settings.get("threads", str(threads))) != str(threads):
        found.append(f"measured with {other} threads, but this ran with {threads}")
    how = "CUDA graphs" if graphs else "eager"
    if (other := measured.settings.get("steps", how)) != how:
        found.append(f"its steps were {other}, but these were {how}")
    return [*found, *measured.warnings]


def _round(number: int, of: int) -> str:
    return f"measuring: round {number} of {of}" if number else "warming up"


def _pair(comparison: Comparison) -> Pair:
    shown, simulated = comparison.typical, comparison.prediction
    return Pair(
        name=f"step: batch {comparison.batch}, context {comparison.context}", ops=comparison.ops,
        measured=Run(pieces=shown.pieces, length=shown.wall),
        simulated=Run(pieces=simulated.pieces, length=simulated.step),
        times=(np.median(comparison.durations, axis=0).astype(np.int64), simulated.ops),
    )  # fmt: skip
