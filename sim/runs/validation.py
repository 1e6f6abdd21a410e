"""Comparison of a real run with its simulation: the same steps, by kind of op.

The step of a model at one point is simulated as the device runs it: one op after the other, each for the time in the
profile, under `blocking` execution. Without a profile only the roofline, a lower bound, is available.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.graph import IntArray, OpGraph, StepLanes
from sim.base.errors import InputError
from sim.cost import CostModel, Extrapolation, Rates
from sim.cost.kernels import ONLY_MOVES, kernels
from sim.cost.profile import ATTENTION, DeviceProfile, time
from sim.cost.profiled import Profiled
from sim.cost.roofline import Roofline
from sim.executors import simulate
from sim.executors.setup import Setup
from sim.machine.arbiters import ARBITERS
from sim.machine.machine import one_device
from sim.machine.schedulers import SCHEDULERS
from sim.mapping.lowering import lower
from sim.mapping.settings import Execution, ModelMapping
from sim.measure.measured import MeasuredStep
from sim.workload.requests import Request

Floats = npt.NDArray[np.float64]

#: Smallest share of a step for which the error of an op counts by itself.
LARGE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A simulated step, in picoseconds.

    ops: [op], duration of each op alone. step: duration of the step, its overhead included. pieces: columns op, start and
    duration of its parts.
    """

    ops: IntArray
    step: int
    pieces: IntArray
    extrapolations: tuple[Extrapolation, ...] = ()


def predict(ops: OpGraph, context: int, profile: DeviceProfile) -> Prediction:
    """Predict a step by a device profile. Raises InputError if the profile lacks a kind of op."""
    each = kernels(ops, np.array([context]))
    timings = [profile.timing(kernel.kinds, kernel.dtype) for kernel in each]
    for op, timing in zip(ops.ops, timings, strict=True):
        if timing is None and op.kind not in ONLY_MOVES:
            other = "three_pass" if op.kind == ATTENTION else "sdpa" if op.heads else ""
            advice = f"; --attention {other} has other ops" if other else ""
            known = ", ".join(profile.kinds())
            raise InputError(f"{profile.title}: no timing of {op.kind!r} in {op.dtype}; it has {known}{advice}")
    alone = [0 if t is None else round(float(time(t, k.shapes)[0])) for t, k in zip(timings, each, strict=True)]
    machine = Rates(flops=1, vector_flops=1, overhead=0, bandwidth=profile.bandwidth)
    costs = Profiled(machine=machine, seed=0, profile=profile)
    setup = _setup(ops, context, costs, profile.bandwidth, "blocking")
    extrapolations = tuple(costs.extrapolations(setup.graph, _lane(context)))
    return _simulated(ops, np.array(alone, dtype=np.int64), setup, extrapolations)


def lower_bound(ops: OpGraph, context: int, bandwidth: int, flops: int, vector_flops: int) -> Prediction:
    """Predict a step by the roofline: each op takes the longer of its transfer and its arithmetic, at rates no op exceeds."""
    machine = Rates(flops=flops, vector_flops=vector_flops, overhead=0, bandwidth=bandwidth, overlap=True)
    setup = _setup(ops, context, Roofline(machine=machine, seed=0), bandwidth, "stream")
    compute, work = setup.costs.durations(setup.graph, _lane(context))
    alone = np.zeros(len(ops.ops), dtype=np.int64)
    np.add.at(alone, _ops_of_tasks(ops, setup), np.maximum(compute, work)[:, 0])
    return _simulated(ops, alone, setup)


def _setup(ops: OpGraph, context: int, costs: CostModel, bandwidth: int, execution: Execution) -> Setup:
    mapping = ModelMapping(heads="fused", weights="streamed", kv="operands", execution=execution)
    return Setup(
        graph=lower(ops, mapping), sequences=[Request(context=context, tokens=1, arrival=0)], dependency="sampled", costs=costs,
        machine=one_device(engines=1), scheduler=SCHEDULERS.make("earliest", {}), overlap=execution == "stream",
        arbiter=ARBITERS.make("processor_sharing", {}), bandwidth=bandwidth,
    )  # fmt: skip


def _simulated(ops: OpGraph, alone: IntArray, setup: Setup, extrapolations: tuple[Extrapolation, ...] = ()) -> Prediction:
    log, _ = simulate(setup)
    start, duration = log.tasks.start, log.tasks.end - log.tasks.start
    pieces = np.stack([_ops_of_tasks(ops, setup)[log.tasks.task], start, duration])
    return Prediction(ops=alone, step=log.makespan, pieces=pieces, extrapolations=extrapolations)


def _ops_of_tasks(ops: OpGraph, setup: Setup) -> IntArray:
    """The op of each task; kernels read the cache themselves, so that no task loads it."""
    read_by_others = np.array([op.kind == "kv_load" for op in ops.ops])
    return np.asarray(np.flatnonzero(~read_by_others)[setup.graph.op], dtype=np.int64)


def _lane(context: int) -> StepLanes:
    zero = np.zeros(1, dtype=np.int64)
    return StepLanes(sequence=zero, token=zero, context=np.array([context], dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the comparison.

    measured: median over rounds, ps. spread: (p90 - p10) / median over rounds. noise: difference between the medians of the
    earlier and the later half of the rounds; smaller errors are not significant.
    """

    name: str
    ops: int
    measured: int
    predicted: int
    spread: float
    noise: float

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted / self.measured - 1 if self.measured else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The rounds of one point against their prediction."""

    steps: tuple[MeasuredStep, ...]
    prediction: Prediction

    @property
    def batch(self) -> int:
        return self.steps[0].point[0]

    @property
    def context(self) -> int:
        return self.steps[0].point[2]

    @property
    def ops(self) -> OpGraph:
        return self.steps[0].ops

    @property
    def durations(self) -> IntArray:
        """Durations of each op in each round, ps [round, op]."""
        return np.stack([step.duration for step in self.steps])

    @property
    def step(self) -> Row:
        """The whole step, run without timing its ops."""
        return _row("step", 1, np.array([step.plain for step in self.steps]), self.prediction.step)

    @property
    def together(self) -> Row:
        """All ops together, without the overhead of the step."""
        ran = int(self.durations.any(axis=0).sum())
        return _row("ops", ran, self.durations.sum(axis=1), int(self.prediction.ops.sum()))

    @property
    def kinds(self) -> list[Row]:
        """A row for each kind of op, the longest first."""
        names = [op.kind for op in self.ops.ops]
        durations, rows = self.durations, []
        for name in dict.fromkeys(names):
            mine = np.array([other == name for other in names])
            if durations[:, mine].any():
                rows.append(_row(name, int(mine.sum()), durations[:, mine].sum(axis=1), int(self.prediction.ops[mine].sum())))
        return sorted(rows, key=lambda row: -row.measured)

    @property
    def typical(self) -> MeasuredStep:
        """The round whose step was the median one."""
        return sorted(self.steps, key=lambda step: step.wall)[(len(self.steps) - 1) // 2]

    def large(self) -> Floats:
        """[op]: errors |predicted / measured - 1| of each op that takes more than `LARGE` of the step."""
        measured = np.median(self.durations, axis=0)
        chosen = measured > LARGE * self.step.measured
        return np.asarray(np.abs(self.prediction.ops[chosen] / measured[chosen] - 1))

    def within(self, band: float) -> bool:
        """Whether the error of the step is within the band, or within the noise if that is larger."""
        return abs(self.step.error) <= max(band, self.step.noise)


def _row(name: str, ops: int, measured: IntArray, predicted: int) -> Row:
    median, low, high = np.median(measured), *np.quantile(measured, (0.1, 0.9))
    half = len(measured) // 2
    earlier, later = (float(np.median(part)) for part in (measured[:half], measured[half:])) if half else (1.0, 1.0)
    return Row(
        name=name, ops=ops, measured=int(median), predicted=predicted, spread=float((high - low) / median),
        noise=abs(earlier / later - 1),
    )  # fmt: skip


def within(comparisons: Sequence[Comparison], band: float) -> bool:
    """Whether all points are within the band."""
    return all(comparison.within(band) for comparison in comparisons)
