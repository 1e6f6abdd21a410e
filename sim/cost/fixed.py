"""Fixed costs: a table of durations by op kind, with optional seeded jitter.

The time of an op is shared by its tasks (heads, tiles) so that they sum to it exactly. The time of a transfer is what it
takes on a free channel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.graph import QUANTITIES, IntArray, StepLanes
from sim.base.errors import ConfigError, nearest
from sim.cost.model import Caching, Rates
from sim.cost.tables import TABLES, Table
from sim.mapping.tasks import TaskGraph

FLOPS, VECTOR_OPS = QUANTITIES.index("flops"), QUANTITIES.index("vector_ops")


class Fixed(Caching):
    """A table of durations by kind of op, alike on all machines.

    table: the name of a shipped one, or durations by kind.
    jitter: the largest share by which a task varies, up or down, uniformly.
    """

    CACHES = ("_made",)

    def __init__(
        self, *, machine: Rates, seed: int, table: str | Mapping[str, int] = "block_estimates", jitter: float = 0.0
    ) -> None:
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter: expected 0 up to below 1, found {jitter}")
        self.machine = machine
        self.table = TABLES.get(table) if isinstance(table, str) else Table(kinds=table, groups={})
        self.seed = seed
        self.jitter = jitter
        self._clear()

    def _clear(self) -> None:
        self._made: dict[int, tuple[TaskGraph, IntArray]] = {}  # by id of the graph, which each keeps alive

    def constant(self, graph: TaskGraph) -> tuple[IntArray, IntArray] | None:
        """Times on an engine and on the channel [task] if they are the same in every step."""
        return None if self.jitter else _on_both(graph, np.maximum(self._per_task(graph), 1))

    def durations(self, graph: TaskGraph, steps: StepLanes) -> tuple[IntArray, IntArray]:
        per_task, lanes = self._per_task(graph), len(steps.context)
        times = np.repeat(per_task[:, None], lanes, axis=1)
        if self.jitter:
            times = np.stack([self._vary(per_task, steps, i) for i in range(lanes)], axis=1)
        return _on_both(graph, np.maximum(times, 1))

    def _per_task(self, graph: TaskGraph) -> IntArray:
        """Picoseconds of each task by the table, made once."""
        if id(graph) not in self._made:
            self._made[id(graph)] = (graph, self._shares(graph))
        return self._made[id(graph)][1]

    def _shares(self, graph: TaskGraph) -> IntArray:
        per_task = graph.share(self._per_op(graph))
        for number, kind in enumerate(graph.plain_kinds):
            if kind in ("weight_load", "act_load", "act_store"):
                per_task[graph.kind == number] = self.table.kinds.get(kind) or self._unknown(kind)
        if ((graph.moves != 0) & graph.computes).any():
            self._unknown("weight_load")  # a table has no bytes: operands that an engine loads need explicit transfers
        return per_task

    def _per_op(self, graph: TaskGraph) -> IntArray:
        costs = graph.ops.costs(0)
        amount = costs[FLOPS] + costs[VECTOR_OPS]
        group_of = {kind: (name, time) for name, (kinds, time) in self.table.groups.items() for kind in kinds}
        members: dict[tuple[str, int], list[int]] = {}
        times = np.zeros(len(graph.ops.ops), dtype=np.int64)
        for i, op in enumerate(graph.ops.ops):
            if op.kind in self.table.kinds:
                times[i] = self.table.kinds[op.kind]
            elif op.kind in group_of:
                members.setdefault((group_of[op.kind][0], op.layer), []).append(i)
            else:
                self._unknown(op.kind)
        for (name, _), ops in members.items():
            shares = largest_remainder([int(amount[i]) for i in ops], self.table.groups[name][1])
            times[ops] = shares
        return times

    def _unknown(self, kind: str) -> int:
        known = [*self.table.kinds, *(k for kinds, _ in self.table.groups.values() for k in kinds)]
        raise ConfigError("cost.table", f"no time for op kind {kind!r}{nearest(kind, known)}; known: {', '.join(known)}")

    def _vary(self, times: IntArray, steps: StepLanes, lane: int) -> IntArray:
        # Counter-based and keyed by what the step is, so a time does not depend on what else was simulated. The raw
        # stream is used because NumPy promises to keep it the same across versions; its distributions it does not.
        key = [self.seed, (int(steps.sequence[lane]) << 32) | int(steps.token[lane])]
        raw = np.random.Philox(key=key).random_raw(len(times))
        uniform = (raw >> np.uint64(11)).astype(np.float64) / 2.0**53
        return np.rint(times * (1.0 + self.jitter * (2.0 * uniform - 1.0))).astype(np.int64)


def _on_both(graph: TaskGraph, times: IntArray) -> tuple[IntArray, IntArray]:
    """Times [task, ...] on an engine of what computes, and on the channel of what moves bytes."""
    computes, moves = graph.computes, graph.moves != 0
    if times.ndim > 1:
        computes, moves = computes[:, None], moves[:, None]
    return np.where(computes, times, 0), np.where(moves, times, 0)


def largest_remainder(weights: list[int], total: int) -> list[int]:
    """Split `total` in proportion to `weights` into integers that sum to it; what is over goes to the largest fractions."""
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    by_fraction = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_fraction[: total - sum(shares)]:
        shares[i] += 1
    return shares
