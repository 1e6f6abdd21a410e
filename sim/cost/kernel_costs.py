"""Kernel costs: what one kernel takes that runs alone, with constants that were fitted to a device.

    time of a kernel = t0 + the later of (bytes / what the channel delivers) and (roofline time on an engine at the share of
                       the peak that kernels reach, and for weights in some formats bytes of them / rate of unpacking)

t0 is the time from a launch to the first result, which no size of the kernel shortens. It is per task: an op in several tasks
is several kernels. What a channel delivers to one transfer is its bandwidth, its `efficiency` and its port.

Engines without arithmetic in a format convert weights of it first, on the units that multiply: that takes time by the bytes of
these, on top of the products. Where it is shorter than their way from memory, it is hidden.

A step that decodes one token of each sequence is replayed as a graph (CUDA graphs). One that feeds in more is not, and its
products of few tokens do not fill a device: each kernel takes `prompt` more, if that is known.

Bytes move on the channel, where others contend for it. Under `stream` a kernel asks for them after t0, its launch, and computes
while they come: whatever it waits for is its transfer, and a faster channel helps. Under `blocking` an engine is busy for what
is left of the time above when the operands are there. So alone, each takes exactly that time. Loads ahead (`prefetch`) are
transfers of their own: t0 and arithmetic follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from models.graph import QUANTITIES, IntArray, OpGraph, StepLanes
from models.rewrites import COLLECTIVES, EXCHANGES, P2P
from sim.cost.model import Caching, Rates, ceil_scaled
from sim.cost.rows import COMPUTE, WORK, RateTable
from sim.mapping.steps import BatchGraph
from sim.mapping.tasks import TaskGraph

FLOPS, WEIGHT = QUANTITIES.index("flops"), QUANTITIES.index("weight")

#: Groups of ops that share a t0: products with weights, products per head, and all others.
MATMUL, ATTENTION, OTHER = GROUPS = ("matmul", "attention", "other")

#: Group of ops between devices, which have the t0 of all others unless they have one of their own.
COLLECTIVE = "collective"

#: The key of t0 that is added in steps that are not replayed as a graph.
PROMPT = "prompt"


class KernelCosts(Caching):
    """Launch time, then the later of bytes and FLOPs at the rates that kernels reach; presets of devices bring the constants.

    t0: time of a kernel beside its bytes and FLOPs: one, or by `matmul`, `attention`, `other`, `collective` and kinds of op;
    `prompt` is added to each in steps that feed in several tokens of a sequence.
    peak_share: share of the peak FLOP/s that products reach: one, or by number format and `any`.
    unpack: bytes/s of weights that an engine converts for its arithmetic, by format of weights.
    """

    CACHES = ("_tables",)

    def __init__(
        self, *, machine: Rates, seed: int, t0: int | Mapping[str, int] | None = None,
        peak_share: float | Mapping[str, float] | None = None, unpack: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        if t0 is None or peak_share is None:
            raise ValueError(f"{'t0' if t0 is None else 'peak_share'}: expected a value, which the preset does not have")
        self.t0 = t0 if isinstance(t0, Mapping) else dict.fromkeys(GROUPS, t0)
        if missing := [group for group in GROUPS if group not in self.t0]:
            raise ValueError(f"t0: expected a time for {', '.join(missing)}")
        self.seed = seed
        shares = peak_share if isinstance(peak_share, Mapping) else {"any": peak_share}
        self.machine = replace(machine, flops=_reached(machine.flops, shares), overhead=0, unpack=unpack or {})
        self.overhead = machine.overhead
        self._clear()

    def _clear(self) -> None:
        self._tables: dict[int, KernelRows] = {}  # by id of the graph, which each keeps alive

    def table(self, graph: TaskGraph) -> KernelRows:
        """The rows of a graph, made once."""
        if id(graph) not in self._tables:
            self._tables[id(graph)] = KernelRows(self, graph)
        return self._tables[id(graph)]

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        compute, work, index = self.distinct(graph, steps)
        return compute[index], work[index]

    def distinct(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray, IntArray]:
        """Durations of tasks that stand for all [row, lane], and the row of each task."""
        table = self.table(graph)
        found = table.launched(table.rates.durations(steps))
        return found[:, :, COMPUTE].T, found[:, :, WORK].T, table.of

    def launches(self, graph: TaskGraph) -> IntArray:
        """Picoseconds of each task on its engine before it loads operands [task]."""
        return self.launch_times(graph)[graph.op]

    def launch_times(self, graph: TaskGraph) -> IntArray:
        """Picoseconds of t0 of each op of a graph [op]."""
        ops = graph.ops
        group = groups_of(ops)
        times = np.array([self.t0[name] for name in GROUPS], dtype=np.int64)[group]
        between = np.isin(ops.kind, (*COLLECTIVES, *EXCHANGES, P2P))
        times[between] = self.t0.get(COLLECTIVE, self.t0[OTHER])
        for kind in np.unique(ops.kind).tolist():
            if kind in self.t0:
                times[ops.kind == kind] = self.t0[kind]
        if isinstance(ops, BatchGraph) and any(ops.shape.several):
            known = between & ((COLLECTIVE in self.t0) | np.isin(ops.kind, list(self.t0)))  # as measured, launched by the host
            times[~known] += self.t0.get(PROMPT, 0)
        return np.asarray(times + self.overhead)


class KernelRows:
    """Rows of tasks of a graph that are kernels of equal cost: rows of rates, split by t0.

    rates: FLOPs and bytes at the rates that kernels reach. of [task]: its row. source [row]: the row of `rates`. t0 [row]: ps.
    computes, overlaps [row]: whether it runs on an engine, and loads operands meanwhile.
    """

    def __init__(self, costs: KernelCosts, graph: TaskGraph) -> None:
        self.rates = RateTable(graph, costs.machine)
        self.alone, t0 = costs.machine.alone, costs.launches(graph)
        rows, task, self.of = np.unique(
            np.stack([self.rates.rows.of, np.where(graph.computes, t0, 0)]), axis=1, return_index=True, return_inverse=True
        )
        self.source, self.t0 = rows
        self.computes: npt.NDArray[np.bool_] = graph.computes[task]
        self.loads: npt.NDArray[np.bool_] = graph.moves[task] != 0
        self.overlap = costs.machine.overlap

    def launched(self, found: IntArray) -> IntArray:
        """[lane, row, (compute, work, ...)] of kernels, from those of the rows of rates."""
        out = found[:, self.source]
        busy = out[:, :, COMPUTE]
        if not self.overlap:  # what is left of the arithmetic when the operands are there
            num, den = self.alone
            busy = np.maximum(busy - np.where(self.loads, ceil_scaled(out[:, :, WORK], den, num), 0), 0)
        busy = self.t0 + busy
        out[:, :, COMPUTE] = np.where(self.computes, np.maximum(busy, 1), 0)
        return np.asarray(out)


def groups_of(ops: OpGraph) -> npt.NDArray[np.intp]:
    """The group of each op [op], as an index of `GROUPS`."""
    some = (ops.table != 0).any(axis=(1, 2))
    product, weights = (some[ops.cost_index[name]] | some[ops.several_index[name]] for name in (FLOPS, WEIGHT))
    attention = (ops.heads > 0) & product & ~weights
    return np.where(product & weights, 0, np.where(attention, 1, 2))


def _reached(flops: int | Mapping[str, int], shares: Mapping[str, float]) -> int | dict[str, int]:
    """The FLOP/s that kernels reach; a format whose share is not known has that of `any`, or the least that is known."""
    other = shares.get("any", min(shares.values()))
    if isinstance(flops, int):
        return _share(flops, other)
    return {dtype: _share(rate, shares.get(dtype, other)) for dtype, rate in flops.items()}


def _share(rate: int, share: float) -> int:
    exact = Fraction(str(share))
    return max(1, rate * exact.numerator // exact.denominator)
