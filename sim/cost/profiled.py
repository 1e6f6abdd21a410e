"""Costs by a device profile: how long ops were measured to take on a real device.

An op alone takes T = scale * (time by its timing) + per_op, as it did on the device. Of T, the time A that its weights and its
part of the KV cache need on a free channel is spent there, where others contend for it; the engine computes for the rest,
T - A. (An engine that computes while it loads its own operands, under `stream`, does so for all of T: the task takes the later
of the two.) So a device that runs one op at a time, undisturbed, takes the sum of what was measured.

What was measured faster than its bytes can come from memory was read from caches: A stays below T, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.cost.kernels import ONLY_MOVES, Kernel, fused_attention, kernels
from sim.cost.model import Doubt, Machine, StepLanes, time_at_rate
from sim.cost.roofline import Roofline
from sim.errors import InputError, nearest
from sim.graph import QUANTITIES, IntArray, Op, OpGraph
from sim.profile import ATTENTION, DeviceProfile, Timing, outside, read_profile, time
from sim.tasks import CLASS_BIT, TaskGraph

#: What an op reads from memory, or appends to it; activations may stay on chip.
MEMORY = CLASS_BIT["weight"] | CLASS_BIT["kv_read"] | CLASS_BIT["kv_write"]
ACTIVATIONS = ("act_read", "act_write")


@dataclass(frozen=True, slots=True)
class OpTimes:
    """Picoseconds of each op [op, lane]: `whole`, of which `loading` passes while its bytes of `MEMORY` move on a free channel.

    work: how long those would take at the full speed of the channel. measured: by op, False of those that the profile lacks.
    """

    whole: IntArray
    loading: IntArray
    work: IntArray
    measured: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TimedKernel:
    """What is timed as a whole: its ops and their kernels, and its timing, None if the profile has none."""

    ops: tuple[int, ...]
    members: tuple[Kernel, ...]
    whole: Kernel
    timing: Timing | None

    @property
    def only_moves(self) -> bool:
        return self.whole.kinds[0] in ONLY_MOVES


class Profiled:
    """`profile`: the path of a device profile. `otherwise`: `roofline` for ops that it lacks; without it they are errors."""

    def __init__(self, *, machine: Machine, seed: int, profile: str | DeviceProfile, otherwise: str | None = None) -> None:
        if otherwise not in (None, "roofline"):
            raise ValueError(f"otherwise: expected roofline, found {otherwise!r}")
        if not isinstance(profile, (str, DeviceProfile)):
            raise ValueError(f"profile: expected the path of a device profile, found {profile!r}")
        self.machine = machine
        self.seed = seed
        self.profile = profile if isinstance(profile, DeviceProfile) else read_profile(profile)
        self.otherwise = Roofline(machine=machine, seed=seed) if otherwise else None

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work, index = self.distinct(graph, steps)
        return compute[index], work[index]

    def distinct(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """Durations of tasks that stand for all [row, lane], and the row of each task."""
        costs = graph.ops.costs(steps.context)
        tasks, index = graph.alike(costs)
        times = self.op_times(graph.ops, steps.context)
        computes, from_memory = graph.computes[tasks], (graph.moves[tasks] & MEMORY) != 0
        whole, loading = graph.share(times.whole, tasks), graph.share(times.loading, tasks)
        overlaps = computes & from_memory & self.machine.overlap
        compute = np.where(overlaps[:, None], whole, whole - loading)
        if self.otherwise is not None:
            bound, _, rows = self.otherwise.distinct(graph, steps)
            compute = np.where(times.measured[graph.op[tasks]][:, None], compute, bound[rows[tasks]])
        compute = np.where(computes[:, None], np.maximum(compute, 1), 0)
        work = np.where(from_memory[:, None], graph.share(times.work, tasks), 0)
        work += time_at_rate(graph.bytes_moved(_only(costs, ACTIVATIONS), tasks), self.machine.bandwidth)
        work = np.where((graph.moves[tasks] != 0)[:, None], np.maximum(work, 1), 0)
        return compute, work, index

    def op_times(self, ops: OpGraph, context: IntArray) -> OpTimes:
        """How long each op of a step takes alone. Raises InputError that names an op kind which the profile lacks."""
        whole, loading, work = np.zeros((3, len(ops.ops), len(context)), dtype=np.int64)
        measured = np.ones(len(ops.ops), dtype=np.bool_)
        made: dict[tuple[int, ...], tuple[IntArray, IntArray, IntArray]] = {}
        for kernel in self.timed(ops, context):
            key = tuple(id(member) for member in kernel.members)
            if key not in made:
                made[key] = self._times(kernel)
            rows = list(kernel.ops)
            whole[rows], loading[rows], work[rows] = made[key]
            measured[rows] = kernel.timing is not None
        computing = [i for i, op in enumerate(ops.ops) if op.kind not in ONLY_MOVES]
        whole[computing[:1]] += self.profile.step.per_step
        return OpTimes(whole, loading, work, measured)

    def timed(self, ops: OpGraph, context: IntArray) -> Iterator[TimedKernel]:
        """The kernels of a step, each with its ops: one op, or all of a layer's attention if it is measured as one kernel."""
        each = kernels(ops, context)
        fused: dict[int, list[int]] = {}
        for i, (op, kernel) in enumerate(zip(ops.ops, each, strict=True)):
            timing = self.profile.timing(kernel.kinds, kernel.dtype)
            if timing is None and op.heads and self._fuses(ops, op.layer):
                fused.setdefault(op.layer, []).append(i)
                continue
            if timing is None and op.kind not in ONLY_MOVES and self.otherwise is None:
                raise self._unknown(op)
            yield TimedKernel((i,), (kernel,), kernel, timing)
        whole: dict[tuple[int, ...], Kernel] = {}
        for layer, rows in fused.items():
            members = tuple(each[i] for i in rows)
            key = tuple(map(id, members))
            if key not in whole:
                whole[key] = fused_attention(ops, context, layer)
            yield TimedKernel(tuple(rows), members, whole[key], self.profile.timing(whole[key].kinds, whole[key].dtype))

    def _fuses(self, ops: OpGraph, layer: int) -> bool:
        """Whether the attention of a layer is measured as one kernel."""
        first = next(op for op in ops.ops if op.heads and op.layer == layer)
        return self.profile.timing((ATTENTION,), first.dtype) is not None

    def _unknown(self, op: Op) -> InputError:
        known = sorted({timing.kind for timing in self.profile.timings})
        return InputError(
            f"cost.profile: no timing for op kind {op.kind!r} in {op.dtype}{nearest(op.kind, known)}; measured: "
            f"{', '.join(self.profile.kinds())}; `otherwise: roofline` would take its lower bound"
        )

    def _times(self, kernel: TimedKernel) -> tuple[IntArray, IntArray, IntArray]:
        """Of the ops of a kernel [op, lane]: whole, loading and work, as in `OpTimes`."""
        num, den = self.machine.alone
        moved = np.stack([member.memory for member in kernel.members])
        work = time_at_rate(moved, self.machine.bandwidth)
        if kernel.timing is None:
            loading = _ceil_scaled(work, den, num)
            return loading, loading, work
        step = self.profile.step
        alone = np.rint(step.scale * time(kernel.timing, kernel.whole.shapes) + step.per_op * len(kernel.ops))
        whole = np.maximum(alone.astype(np.int64), len(kernel.ops))  # each of them at least 1 ps
        if kernel.only_moves:
            work = np.maximum(work, whole * num // den)
            return whole[None], whole[None], work
        most = (whole - len(kernel.ops)) * num // den  # what was faster than memory came from caches
        total = work.sum(axis=0)
        if (total > most).any():
            work = np.where(total > most, work * (most / np.maximum(total, 1)), work).astype(np.int64)
        loading = _ceil_scaled(work, den, num)
        weights = np.stack([member.shapes.flops + member.shapes.elements for member in kernel.members])
        engine = _parts(whole - loading.sum(axis=0), weights)
        return engine + loading, loading, work

    def doubts(self, graph: TaskGraph, steps: StepLanes) -> list[Doubt]:
        """What of these steps is no interpolation between measurements."""
        found: dict[tuple[str, str], list[int]] = {}
        for kernel in self.timed(graph.ops, steps.context):
            kinds = dict.fromkeys(graph.ops.ops[i].kind for i in kernel.ops)
            if kernel.timing is None:
                why = "not measured: roofline, a lower bound" if not ONLY_MOVES.issuperset(kinds) else ""
            else:
                why = "; ".join(map(str, outside(kernel.timing, kernel.whole.shapes)))
            if why:
                found.setdefault((", ".join(kinds), why), []).extend(kernel.ops)
        compute, _ = self.durations(graph, steps)
        by_op = np.zeros(len(graph.ops.ops))
        np.add.at(by_op, graph.op, compute.sum(axis=1))
        return [
            Doubt(kind=kind, ops=len(ops), share=round(float(by_op[ops].sum() / max(1, by_op.sum())), 6), why=why)
            for (kind, why), ops in found.items()
        ]


def _only(costs: IntArray, names: Collection[str]) -> IntArray:
    """Costs with all quantities 0 but these."""
    kept = np.zeros_like(costs)
    for name in names:
        kept[QUANTITIES.index(name)] = costs[QUANTITIES.index(name)]
    return kept


def _ceil_scaled(amount: IntArray, num: int, den: int) -> IntArray:
    """ceil(amount * num / den), without the product that could overflow."""
    return np.asarray(amount // den * num - (-(amount % den) * num // den))


def _parts(total: IntArray, weights: IntArray) -> IntArray:
    """Split totals [lane] by weights [op, lane] into integers that sum to them, each at least 1."""
    spare = total - len(weights)
    upto = np.cumsum(weights, axis=0) / np.maximum(weights.sum(axis=0), 1)
    upto[-1] = 1.0
    ends: IntArray = np.rint(upto * spare).astype(np.int64)
    return np.asarray(np.diff(ends, axis=0, prepend=0) + 1)
