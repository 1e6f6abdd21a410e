"""Measure a device: rounds over steps of small models and over streams of memory, in random order, to a device profile.

A round runs each step twice, at two places of its order: under the profiler, for the times of its ops, and with nothing
beside it, for its own time. So whatever drifts with time drifts for all shapes alike, and what the profiler adds is not
taken for a part of the step.
"""

# torch leaves parts of itself without types.
# mypy: allow-untyped-calls

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from sim.cost.profile import ELEMENTWISE, DeviceProfile, Provenance, Samples, fit, write_profile, write_samples
from sim.cost.profile.quality import noise, spread, warnings
from sim.measure.partial import Partial
from sim.measure.place import Place
from sim.measure.plan import Plan
from sim.measure.real import Decoding, RealModel
from sim.measure.step import CudaGraph, MeasuredStep, measure, samples
from sim.measure.streams import Streams, most_ops

Say = Callable[[str], None]


def calibrate(plan: Plan, place: Place, dtype: str, out: Path, say: Say, *, graphs: bool = False) -> DeviceProfile:
    """Measure, and write the profile to `out` and its samples beside it. An interrupted run goes on where it stopped.

    graphs: whether steps run as CUDA graphs.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    partial = Partial(out, identity(plan, place, dtype, graphs=graphs))
    if partial.done() < plan.rounds:
        _measure(plan, place, dtype, partial, say, graphs)
    found = partial.samples()
    kept = out.with_suffix(".parquet")
    seen = found.take(~np.isin(found.model.astype(str), [config.name for config in plan.unseen]))
    profile = profile_of(seen, provenance(seen, plan, place, dtype, load, kept.name, graphs=graphs), place)
    write_samples(found, kept)
    write_profile(profile, out)
    partial.remove()
    return profile


def _measure(plan: Plan, place: Place, dtype: str, partial: Partial, say: Say, graphs: bool) -> None:
    streams, steps = Streams(place, dtype), Steps(plan, place, dtype, say, graphs=graphs)
    began, first = time.monotonic(), partial.done()
    for number in range(first, plan.rounds):
        spent = time.monotonic() - began
        if number >= plan.least and spent * (number - first + 1) > plan.seconds * max(1, number - first):
            say(f"{number} rounds in {spent:.0f} s: as many as the time allows")
            return
        parts = [steps.round(number), streams.round(number, seconds=plan.stream, seed=plan.seed)]
        partial.add(number, Samples.concatenate(parts))
        say(f"round {number + 1} of at most {plan.rounds}, {time.monotonic() - began:.0f} s")


class Steps:
    """The steps of a plan, ready to be run: models with their weights, caches filled, everything called once."""

    def __init__(self, plan: Plan, place: Place, dtype: str, say: Say, *, graphs: bool = False) -> None:
        self.plan, self.points = plan, plan.points()
        self.runs: list[Decoding | CudaGraph] = []
        pool = torch.cuda.graph_pool_handle() if graphs else None
        configs = (*plan.models, *plan.unseen)
        for number, config in enumerate(configs):
            say(f"model {number + 1} of {len(configs)}: {config.name}")
            model = RealModel(config, place, dtype=dtype)
            for point in self.points:
                if point.model == number:
                    decoding = model.at(point.batch, point.context, slots=1)
                    self.runs.append(CudaGraph(decoding, pool) if graphs else decoding)
                    self.runs[-1].wall()

    def round(self, number: int) -> Samples:
        """Every step once timed op by op, and once as a whole."""
        visits = [(i, whole) for i in range(len(self.points)) for whole in (False, True)]
        random.Random(f"{self.plan.seed} {number}").shuffle(visits)
        walls: dict[int, int] = {}
        timed: dict[int, MeasuredStep] = {}
        for i, whole in visits:
            if whole:
                walls[i] = self.runs[i].wall()
            else:
                timed[i] = measure(self.runs[i])
        found = [replace(timed[i], plain=walls[i]) for i in range(len(self.points))]
        return samples(found, [number] * len(found))


def profile_of(found: Samples, source: Provenance, place: Place) -> DeviceProfile:
    """The profile of a device by what was measured of it."""
    return fit(
        Samples.concatenate([found, alike(found)]),
        source,
        title=place.name,
        engines=most_ops(place),
        capacity=memory(place),
        forms=("sum", "later", "cached") if place.device == "cuda" else None,  # blocks of a GPU go through k step by step
    )


def alike(found: Samples) -> Samples:
    """All element-wise ops once more as one class of kernels, for kinds that the calibration did not have."""
    alone = (found.streams == 1) & (found.elements > 0) & (found.flops == 0) & (found.heads == 0)
    result = found.take(alone)
    result.columns["kind"] = np.full(len(result), ELEMENTWISE, object)
    result.columns["step"] = np.full(len(result), -1)  # a step must not count them twice
    return result


def provenance(
    found: Samples, plan: Plan, place: Place, dtype: str, load: float, kept: str, *, graphs: bool = False
) -> Provenance:  # fmt: skip
    """Source of the samples."""
    floor = noise(found)
    return Provenance(
        device=place.name,
        source=f"sim profile --{plan.name}",
        date=datetime.now(UTC).date().isoformat(),
        driver=place.driver,
        libraries={name: version(name) for name in ("torch", "transformers")},
        settings={
            **_ran(place, graphs), "dtype": dtype, "models": ", ".join(config.name for config in plan.models),
            "python": platform.python_version(), "instructions": _instructions(place),
        },
        rounds=int(found.round.max()) + 1,
        spread=spread(found),
        noise=floor.median if floor is not None else None,
        warnings=tuple(warnings(found, load)),
        samples=kept,
    )  # fmt: skip


def identity(plan: Plan, place: Place, dtype: str, *, graphs: bool = False) -> dict[str, str]:
    """Facts that must be the same in all rounds of a profile."""
    return {
        "plan": f"{plan.name}: batches {_list(plan.batches)}, contexts {_list(plan.contexts)}, seed {plan.seed}",
        "models": ", ".join(f"{config.name} {config.digest[:12]}" for config in (*plan.models, *plan.unseen)),
        "device": f"{place.device}: {place.name}", **_ran(place, graphs), "dtype": dtype,
        "torch": version("torch"), "transformers": version("transformers"),
    }  # fmt: skip


def _ran(place: Place, graphs: bool) -> dict[str, str]:
    """Settings of a run that change how long its steps take."""
    return {"steps": "CUDA graphs" if graphs else "eager"} if place.device == "cuda" else {"threads": str(place.threads)}


def _list(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _instructions(place: Place) -> str:
    """Target of the kernels: the processor's vector instructions, or the compute capability."""
    if place.device == "cuda":
        return ".".join(map(str, torch.cuda.get_device_capability()))
    return str(torch.backends.cpu.get_cpu_capability())


def memory(place: Place) -> int | None:
    """Bytes of memory of the device, None if it does not say."""
    if place.device == "cuda":
        total: int = torch.cuda.get_device_properties(0).total_memory
        return total
    if place.device == "cpu" and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
