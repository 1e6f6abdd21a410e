"""Costs by a device profile: durations of ops as measured on a real device.

An op that runs alone takes T = scale * (time by its timing) + per_op, as it did on the device. The time A that its weights and
its part of the KV cache need on a free channel is spent there, where others contend for it; the engine computes for the rest,
T - A. (An engine that computes while it loads its own operands, under `stream`, does so for all of T: the task takes the later
of the two.) So a device that runs one op at a time, undisturbed, takes the sum of the measured times.

An op that was measured to be faster than its bytes can come from memory read them from caches: A stays below T.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from models.graph import QUANTITIES, IntArray, Op, OpGraph, StepLanes
from sim.base.errors import ConfigError, nearest
from sim.base.quantities import MAXIMUM
from sim.cost.calls import Call, Sizes, calls_of
from sim.cost.kernel_costs import KernelCosts
from sim.cost.kernels import ONLY_MOVES, Kernel, joined, kernels_of
from sim.cost.model import Caching, Extrapolation, Rates, ceil_scaled, time_at_rate
from sim.cost.pricing import Pricing
from sim.cost.profile import ATTENTION, DeviceProfile, read_profile
from sim.cost.roofline import Roofline
from sim.mapping.steps import BatchGraph, Template
from sim.mapping.tasks import ALL_BYTES, CLASS_BIT, TaskGraph

#: Bytes that an op reads from memory, or appends to it; activations may stay on chip.
MEMORY = ALL_BYTES & ~(CLASS_BIT["act_read"] | CLASS_BIT["act_write"])
ACTIVATIONS = ("act_read", "act_write")


@dataclass(frozen=True, slots=True)
class OpTimes:
    """Picoseconds of each op [op, lane]: `whole`; `loading` is the part in which its bytes of `MEMORY` move on a free channel.

    work: time of these bytes at the full speed of the channel. measured: [op], False if the profile lacks it.
    """

    whole: IntArray
    loading: IntArray
    work: IntArray
    measured: npt.NDArray[np.bool_]


#: Whole, loading and work [op, lane], and whether it was measured.
Times = tuple[IntArray, IntArray, IntArray, bool]


class Calls(NamedTuple):
    """The calls of a template. known: times of calls that depend on new tokens and logits alone, by number and these."""

    calls: list[Call]
    known: dict[tuple[int, ...], Times]


#: Calls whose times are kept, of one template.
MOST_KNOWN = 2**16


class Profiled(Caching):
    """Durations of each kind of op as measured on a real device.

    profile: the path of a device profile.
    otherwise: costs of ops that it lacks, `roofline` or `kernel`; null: they are errors. By `kernel` also products of more
    rows than it has, and prompts, are at the share of the peak that kernels reach.
    t0: with `otherwise: kernel`, as for `kernel`.
    peak_share: likewise.
    unpack: likewise.
    """

    CACHES = ("_calls", "_made", "_first")

    def __init__(
        self, *, machine: Rates, seed: int, profile: str | DeviceProfile, otherwise: str | None = None,
        t0: int | Mapping[str, int] | None = None, peak_share: float | Mapping[str, float] | None = None,
        unpack: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        if otherwise not in (None, "roofline", "kernel"):
            raise ValueError(f"otherwise: expected roofline or kernel, found {otherwise!r}")
        constants: dict[str, Any] = {"t0": t0, "peak_share": peak_share, "unpack": unpack}
        written = [name for name, value in constants.items() if value is not None]
        if written and otherwise != "kernel":
            raise ValueError(f"{written[0]}: expected only with otherwise: kernel")
        if not isinstance(profile, (str, DeviceProfile)):
            raise ValueError(f"profile: expected the path of a device profile, found {profile!r}")
        self.machine = machine
        self.seed = seed
        self.profile = profile if isinstance(profile, DeviceProfile) else read_profile(profile)
        self.kernel = KernelCosts(machine=machine, seed=seed, **constants) if otherwise == "kernel" else None
        self.otherwise = self.kernel or (Roofline(machine=machine, seed=seed) if otherwise else None)
        reached = self.kernel and self.kernel.machine
        self.pricing = Pricing(self.profile, reached or (machine if otherwise else None), reached=reached is not None)
        self._clear()

    def _clear(self) -> None:
        self._calls: WeakKeyDictionary[Template, Calls] = WeakKeyDictionary()
        self._made: dict[int, tuple[BatchGraph, list[npt.NDArray[np.intp]]]] = {}  # by id of the graph, which each keeps alive
        self._first: dict[int, tuple[OpGraph, IntArray]] = {}

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work, index = self.distinct(graph, steps)
        return compute[index], work[index]

    def distinct(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """Durations of tasks that stand for all [row, lane], and the row of each task."""
        costs = graph.ops.costs_of(steps)
        times = self.op_times(graph.ops, steps)
        # Where bytes and FLOPs divide evenly, times may not.
        tasks, index = graph.alike(np.concatenate([costs, [times.whole, times.loading, times.work]]))
        computes, from_memory = graph.computes[tasks], (graph.moves[tasks] & MEMORY) != 0
        whole, loading = graph.share(times.whole, tasks), graph.share(times.loading, tasks)
        work = np.where(from_memory[:, None], graph.share(times.work, tasks), 0)
        work += time_at_rate(graph.bytes_moved(_only(costs, ACTIVATIONS), tasks), self.machine.bandwidth)
        work = np.where((graph.moves[tasks] != 0)[:, None], np.maximum(work, 1), 0)
        overlaps = computes & from_memory & self.machine.overlap
        compute = np.where(overlaps[:, None], whole, whole - loading)
        if self.otherwise is not None:
            bound, _, rows = self.otherwise.distinct(graph, steps)
            launch = bound[rows[tasks]]
            if self.kernel is not None:  # its operands are loaded after its launch
                t0 = self.kernel.launches(graph)[tasks][:, None]
                launch = np.where(overlaps[:, None], np.maximum(launch, t0 + loading), launch)
            compute = np.maximum(compute, np.where(times.measured[graph.op[tasks]][:, None], 0, launch))
        compute = np.where(overlaps[:, None], compute - ceil_scaled(work, *reversed(self.machine.alone)), compute)
        return np.where(computes[:, None], np.maximum(compute, 1), 0), work, index

    def launches(self, graph: TaskGraph) -> IntArray:
        """Picoseconds of each task on its engine before it loads operands [task].

        Under `stream` all of its time but that of its bytes: whatever moves them faster then shortens a kernel by as much.
        """
        return np.full(len(graph), MAXIMUM if self.machine.overlap else 0, dtype=np.int64)

    def op_times(self, ops: OpGraph, steps: StepLanes) -> OpTimes:
        """Time of each op of a step that runs alone. Raises ConfigError that names an op kind which the profile lacks."""
        whole, loading, work = np.zeros((3, len(ops), len(steps.context)), dtype=np.int64)
        measured = np.ones(len(ops), dtype=np.bool_)
        times = self._by_call(ops, steps) if isinstance(ops, BatchGraph) and not ops.shape.leaders else self._by_op(ops, steps)
        for rows, (a, b, c, known) in times:
            whole[rows], loading[rows], work[rows], measured[rows] = a, b, c, known
        if id(ops) not in self._first:
            self._first[id(ops)] = (ops, np.flatnonzero(~np.isin(ops.kind, list(ONLY_MOVES)))[:1])
        whole[self._first[id(ops)][1]] += self.profile.step.per_step
        return OpTimes(whole, loading, work, measured)

    def _by_op(self, ops: OpGraph, steps: StepLanes) -> Iterator[tuple[npt.NDArray[np.intp], Times]]:
        """Ops [op] of each call, and their times."""
        made: dict[tuple[int, ...], Times] = {}
        for rows, each in calls(ops, steps):
            parts = [part for kernels in each for part in kernels]
            key = tuple(map(id, parts))
            if key not in made:
                memory = np.stack([np.sum([part.memory for part in kernels], axis=0) for kernels in each])
                size = np.stack([np.sum([part.shapes.bytes for part in kernels], axis=0) for kernels in each])
                made[key] = self._times(ops.ops[rows[0]], joined(parts), memory, size)
            yield np.array(rows), made[key]

    def _by_call(self, ops: BatchGraph, steps: StepLanes) -> Iterator[tuple[npt.NDArray[np.intp], Times]]:
        """The same for steps that repeat a template: ops [op like another, op]."""
        if ops.template not in self._calls:
            self._calls[ops.template] = Calls(calls_of(ops.template), {})
        calls, known = self._calls[ops.template]
        sizes = Sizes(ops, steps)
        if len(known) > MOST_KNOWN:
            known.clear()
        of_all, rows = sizes.of_all(), self._rows(ops, calls)
        for number, call in enumerate(calls):
            op, key = ops.template.ops.ops[call.first], (number, *of_all)
            if not sizes.depends_on_all_alone(call):
                yield rows[number], self._times(op, *sizes.launches(call))
                continue
            if key not in known:
                known[key] = self._times(op, *sizes.launches(call))
            yield rows[number], known[key]

    def _rows(self, ops: BatchGraph, calls: Sequence[Call]) -> list[npt.NDArray[np.intp]]:
        """The ops of each call, made once."""
        if id(ops) not in self._made:
            self._made[id(ops)] = (ops, [call.rows(ops) for call in calls])
        return self._made[id(ops)][1]

    def _times(self, op: Op, launches: Sequence[Kernel], memory: IntArray, size: IntArray) -> Times:
        """Whole, loading and work [op, lane] of the ops of one call, as in `OpTimes`, and whether it was measured.

        launches: kernels of the call, prompts apart from decodes. memory, size: bytes [op, lane] that each moves from memory,
        and in all.
        """
        num, den = self.machine.alone
        work = time_at_rate(memory, self.machine.bandwidth)
        parts, launches = len(memory), self.pricing.measured(launches)
        timings = [self.pricing.timing(kernel) for kernel in launches]
        if None in timings:
            if op.kind not in ONLY_MOVES and self.otherwise is None:
                raise self._unknown(op)
            loading = ceil_scaled(work, den, num)
            least = 0 if op.kind in ONLY_MOVES or self.kernel is not None else self.pricing.shortest
            whole = np.maximum(loading, _parts(np.full(work.shape[1:], least), np.ones_like(work), least=0))
            return whole, loading, work, False
        alone = sum(self.pricing.time(kernel, timing) for kernel, timing in zip(launches, timings, strict=True) if timing)
        total = np.maximum(np.rint(alone).astype(np.int64), 3 * parts)  # each of them at least 1 ps, roundings included
        if op.kind in ONLY_MOVES:  # all of its time is on the channel
            whole = _parts(total, work)
            return whole, whole, np.maximum(work, whole * num // den), True
        most = (total - 2 * parts) * num // den  # what was faster than memory came from caches
        work = np.where(work.sum(axis=0) > most, _parts(most, work, least=0), work)
        loading = ceil_scaled(work, den, num)
        return loading + _parts(total - loading.sum(axis=0), size), loading, work, True

    def _unknown(self, op: Op) -> ConfigError:
        known = sorted({timing.kind for timing in self.profile.timings})
        fused = "; it has attention as one kernel: mapping.softmax: online" if op.heads and ATTENTION in known else ""
        return ConfigError(
            "cost.profile",
            f"no timing for op kind {op.kind!r} in {op.dtype}{nearest(op.kind, known)}; measured: "
            f"{', '.join(self.profile.kinds())}{fused}; otherwise: roofline would take its lower bound",
        )

    def extrapolations(self, graph: TaskGraph, steps: StepLanes) -> list[Extrapolation]:
        """Ops of these steps whose costs are no interpolation between measurements."""
        found: dict[tuple[str, str], list[int]] = {}
        for rows, each in calls(graph.ops, steps):
            kind = graph.ops.ops[rows[0]].kind
            parts = [part for kernels in each for part in kernels]
            if kind in ONLY_MOVES and self.pricing.timing(parts[0]) is None:
                continue
            launches = self.pricing.measured(joined(parts))
            if why := "; ".join(reason for kernel in launches for reason in self.pricing.reasons(kernel)):
                found.setdefault((kind, why), []).extend(rows)
        whole = np.zeros(len(graph.ops.ops))
        compute, _ = self.durations(graph, steps)
        np.add.at(whole, graph.op, compute.sum(axis=1))
        return [
            Extrapolation(kind=kind, ops=len(ops), share=round(float(whole[ops].sum() / max(1.0, whole.sum())), 6), why=why)
            for (kind, why), ops in found.items()
        ]


def calls(ops: OpGraph, steps: StepLanes) -> Iterator[tuple[list[int], list[tuple[Kernel, ...]]]]:
    """Ops of each call, and the kernels of each op: in a batch, ops of sequences that differ in nothing else are one call."""
    groups: dict[object, list[int]] = {}
    seen: Counter[object] = Counter()
    for i, (op, member) in enumerate(zip(ops.ops, ops.member.tolist(), strict=True)):
        role = (op.kind, op.part, op.path)
        groups.setdefault(i if member < 0 else (role, seen[role, member]), []).append(i)
        seen[role, member] += 1
    each = kernels_of(ops, steps)
    for rows in groups.values():
        yield rows, [each[i] for i in rows]


def _parts(total: IntArray, weights: IntArray, least: int = 1) -> IntArray:
    """Split totals [lane] by weights [part, lane] into integers that sum to them, each at least `least`."""
    if len(weights) == 1:
        return total[None]
    upto = np.cumsum(weights, axis=0) / np.maximum(weights.sum(axis=0), 1)
    upto[-1] = 1.0
    ends: IntArray = np.rint(upto * (total - least * len(weights))).astype(np.int64)
    return np.asarray(np.diff(ends, axis=0, prepend=0) + least)


def _only(costs: IntArray, names: Collection[str]) -> IntArray:
    """Costs with all quantities 0 but these."""
    kept = np.zeros_like(costs)
    for name in names:
        kept[QUANTITIES.index(name)] = costs[QUANTITIES.index(name)]
    return kept
