"""Write the fidelity page: steps of models that were not in a calibration, predicted by it and measured.

    python -m benchmarks.fidelity DEVICE.yaml... [--write FILE.md]

Each profile is one that `benchmarks.fidelity.measure` wrote, with its samples beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.fidelity.contention import section
from benchmarks.fidelity.judge import Judged, Steps, judge
from benchmarks.pages import put

#: Target median and 90th percentile of the error of steps, by number format.
AIMS = {"bfloat16": (0.05, 0.10), "float32": (0.10, 0.20)}


def page(profiles: list[Path]) -> Iterator[str]:
    """The lines of the Markdown page."""
    judged = [judge(path) for path in profiles]
    devices = ", ".join(dict.fromkeys(each.profile.provenance.device for each in judged))
    yield f"""# Fidelity: predicted against measured, {devices}

Made by `python -m benchmarks.fidelity` on {time.strftime("%Y-%m-%d")}. The real models, transformers' code with random weights,
ran decode steps on the device; the same steps were predicted by a profile from *other* models, small ones with shapes of their
own, through the simulation. [Measured durations](../guides/measured_durations.md) explains how such a profile is made.

*Measured* is the median over rounds of a step that runs without a profiler, *error* is predicted / measured - 1, in percent.
*Noise* is the difference between the medians of even and odd rounds: an error below it is not significant. *Roofline* is
the bytes of weights and KV cache at the best bandwidth measured on the device: a lower bound, not a prediction.
"""
    yield from summary(judged)
    for each in judged:
        yield from device(each)


def summary(judged: list[Judged]) -> Iterator[str]:
    yield "| device | steps run | format | steps | median | p90 | bias | noise median | noise p90 | aim | roofline median |"
    yield "| --- " * 3 + "|" + " ---: |" * 8
    for each in judged:
        steps, source = each.steps, each.profile.provenance
        aim = AIMS.get(source.settings["dtype"], (0.0, 0.0))
        numbers = [
            *quantiles(steps.error), f"{100 * np.median(steps.error):+.1f}", *quantiles(steps.noise),
            f"{100 * aim[0]:.0f} / {100 * aim[1]:.0f}", f"{100 * np.median(steps.bound / steps.measured - 1):+.0f}",
        ]  # fmt: skip
        cells = [source.device, ran(source.settings), source.settings["dtype"], str(len(steps.error)), *numbers]
        yield f"| {' | '.join(cells)} |"
    yield ""


def device(judged: Judged) -> Iterator[str]:
    source, steps = judged.profile.provenance, judged.steps
    libraries = ", ".join(f"{name} {number}" for name, number in source.libraries.items())
    yield f"## {source.device}, {ran(source.settings)}, {source.settings['dtype']}\n"
    yield f"{source.date}, {source.driver}, {libraries}; {source.rounds} rounds."
    yield f"Repetitions of an op spread over {source.spread:.0%} of their median."
    yield "".join(f" Warning: {text}." for text in source.warnings)
    yield "\n| model | batch | context | measured ms | predicted ms | error | noise | roofline ms |"
    yield "| --- |" + " ---: |" * 7
    for i, (model, batch, context) in enumerate(steps.points):
        yield (
            f"| {model} | {batch} | {context:,} | {ms(steps.measured[i])} | {ms(steps.predicted[i])} | "
            f"{100 * steps.error[i]:+.1f} | {100 * steps.noise[i]:.1f} | {ms(steps.bound[i])} |"
        )
    yield "\nOps that take more than 0.5 % of their step:\n"
    yield "| kind | shapes | share of steps | median | p90 | bias | noise median | noise p90 |\n| --- |" + " ---: |" * 7
    for kind, ops in judged.ops.items():
        bias = f"{100 * np.median(ops.error):+.1f}"
        cells = [kind, str(len(ops.error)), f"{100 * ops.share:.1f}", *quantiles(ops.error), bias, *quantiles(ops.noise)]
        yield f"| {' | '.join(cells)} |"
    yield f"\n{100 * judged.rest:.1f} % of the steps is in smaller ops.\n"
    yield from section(judged.profile, judged.samples)


def ran(settings: Mapping[str, str]) -> str:
    """How the steps of a profile ran: with so many threads, or as what a GPU was given."""
    threads = settings.get("threads")
    return settings["steps"] if threads is None else f"{threads} thread{'s' * (threads != '1')}"


def ms(picoseconds: float) -> str:
    """Milliseconds, with more digits if there are few."""
    return f"{picoseconds / 1e9:.{1 if picoseconds > 30e9 else 3}f}"


def quantiles(errors: Steps | npt.NDArray[np.float64]) -> list[str]:
    """Median and 90th percentile of sizes, in per cent."""
    return [f"{100 * float(np.quantile(np.abs(errors), q)):.1f}" for q in (0.5, 0.9)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("profiles", type=Path, nargs="+", metavar="DEVICE.yaml")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write the page there")
    options = parser.parse_args()
    put("\n".join(page(options.profiles)), options.write)


if __name__ == "__main__":
    main()
