"""Steps and ops of unseen models: measured, and predicted by a profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.fidelity.models import ALL
from models.config import ModelConfig
from sim.base.units import PS_PER_S
from sim.cost.profile import DeviceProfile, Samples, predict, read_profile, read_samples
from sim.cost.profile.fit import IDENTITY, STEP, group
from sim.runs.run import run
from sim.scenario import parse

Floats = npt.NDArray[np.float64]

#: Smallest share of its steps, all layers together, for an op to count.
SHARE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Times in ps and relative errors of each point (model, batch, context)."""

    points: list[tuple[str, int, int]]
    measured: Floats
    predicted: Floats
    bound: Floats
    noise: Floats

    @property
    def error(self) -> Floats:
        return np.asarray(self.predicted / self.measured - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    """Relative errors of each shape of a kind; share: fraction of all steps that these ops take."""

    error: Floats
    noise: Floats
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A profile, and how far it is off. rest: share of the steps in ops that are too small to count."""

    profile: DeviceProfile
    samples: Samples
    steps: Steps
    ops: Mapping[str, Ops]
    rest: float


def judge(path: Path) -> Judged:
    """By the samples beside a profile, of models that it was not fitted to."""
    profile = read_profile(path)
    samples = read_samples(path.with_name(profile.provenance.samples))
    unseen = samples.take(np.isin(samples.model.astype(str), [config.name for config in ALL]))
    steps = _steps(path, profile, unseen.take(unseen.kind == STEP))
    ops, rest = _ops(profile, unseen)
    return Judged(profile=profile, samples=samples, steps=steps, ops=ops, rest=rest)


def _steps(path: Path, profile: DeviceProfile, samples: Samples) -> Steps:
    points = sorted({*zip(samples.model, samples.rows.tolist(), samples.context.tolist(), strict=True)}, key=_order)
    measured, noise = [], []
    for model, rows, context in points:
        mine = samples.take((samples.model == model) & (samples.rows == rows) & (samples.context == context))
        measured.append(np.median(mine.duration))
        noise.append(_halves(mine.duration, mine.round))
    with tempfile.TemporaryDirectory() as folder:
        simulated = [simulate(path.resolve(), point, Path(folder)) for point in points]
    predicted, moved = (np.array(column, dtype=np.float64) for column in zip(*simulated, strict=True))
    return Steps(
        points=points, measured=np.array(measured), noise=np.array(noise), predicted=predicted,
        bound=moved / profile.bandwidth * PS_PER_S,
    )  # fmt: skip


def _order(point: tuple[str, int, int]) -> tuple[int, int, int]:
    return [config.name for config in ALL].index(point[0]), point[1], point[2]


def simulate(profile: Path, point: tuple[str, int, int], folder: Path) -> tuple[int, int]:
    """Picoseconds of a step as the simulation has it, and the bytes of weights and KV cache that it moves."""
    model, batch, context = point
    written = folder / f"{model}.json"
    written.write_text(json.dumps(_config(model).data))
    text = f"""
model: {{config: {written}, dtype: {read_profile(profile).provenance.settings["dtype"]}}}
workload:
  sequences: [{{context: {context}, tokens: 1, count: {batch}}}]
  {"batching: {policy: continuous}" if batch > 1 else ""}
hardware: {{from_profile: {profile}, engines: {{count: 1}}}}  # the real step runs one op at a time
mapping: {{softmax: online, heads: fused, kv: operands, execution: blocking}}
cost: {{model: profiled, profile: {profile}}}
"""
    result = run(parse(text, str(folder / "step.yaml")))
    return result.makespan, result.metrics.bytes_read


def _config(name: str) -> ModelConfig:
    return next(config for config in ALL if config.name == name)


def _ops(profile: DeviceProfile, samples: Samples) -> tuple[dict[str, Ops], float]:
    """By kind, each distinct op of a model and what it takes in all layers of the steps that have it."""
    inside = samples.take((samples.kind != STEP) & (samples.step >= 0))
    whole = np.bincount(inside.step, weights=inside.duration)
    large = np.zeros(len(inside), dtype=bool)
    index = group(inside, IDENTITY)
    predicted = predict(profile, inside.take(np.unique(index, return_index=True)[1]))
    errors: dict[str, list[tuple[float, float]]] = {}
    order = np.argsort(index, kind="stable")
    for number, mine in enumerate(np.split(order, np.flatnonzero(np.diff(index[order])) + 1)):
        durations = inside.duration[mine]
        if durations.sum() > SHARE * whole[np.unique(inside.step[mine])].sum():
            large[mine] = True
            error = predicted[number] / np.median(durations) - 1
            errors.setdefault(str(inside.kind[mine[0]]), []).append((error, _halves(durations, inside.round[mine])))
    total = float(inside.duration.sum())
    result = {}
    for kind, pairs in sorted(errors.items(), key=lambda item: -inside.duration[inside.kind == item[0]].sum()):
        share = float(inside.duration[large & (inside.kind == kind)].sum()) / total
        error, noise = np.array(pairs).T
        result[kind] = Ops(error=error, noise=noise, share=share)
    return result, 1 - float(inside.duration[large].sum()) / total


def _halves(durations: npt.NDArray[np.int64], rounds: npt.NDArray[np.int64]) -> float:
    """How far the median of even rounds is from that of odd ones."""
    even, odd = (np.median(durations[rounds % 2 == half]) for half in (0, 1))
    return abs(float(even / odd) - 1)
