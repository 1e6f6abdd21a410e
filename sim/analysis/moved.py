"""Bytes moved, by kind of task, from what the ops of each step move: no rows of tasks are looked at."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from models.graph import IntArray, Members, OpGraph, StepLanes
from sim.base.memo import Memo
from sim.log.tables import EventLog
from sim.mapping.steps import BatchGraph
from sim.mapping.tasks import CLASS_BIT, CLASS_QUANTITY, HOST_BIT, LINK_BIT, TIER_SHIFT, WRITE_BITS, TaskGraph

_LANES = 512  # steps at once, so that sums of powers stay far from int64


class Moved(NamedTuple):
    """Bytes read from the memory, written to it, sent to other devices, and moved to or from each tier, of which `host` is the
    first.
    """

    read: int
    written: int
    sent: int
    host: int = 0
    tier_1: int = 0
    tier_2: int = 0
    tier_3: int = 0

    @property
    def tiers(self) -> tuple[int, ...]:
        """Bytes of each tier."""
        return self[TIERS:]


#: Ways of bytes by name; from `TIERS` on those of tiers.
Way = Literal["read", "written", "sent", "host", "tier_1", "tier_2", "tier_3"]
WAYS: tuple[Way, ...] = get_args(Way)
TIERS = WAYS.index("host")


class _Source(NamedTuple):
    """The tasks of a graph that move bytes of one class over one path and are of one kind.

    ops: those whose shares are all among the tasks, so that together they move what the ops move; None if some are not.
    """

    quantity: int
    way: Way
    kind: str
    tasks: npt.NDArray[np.intp]
    ops: npt.NDArray[np.integer] | None


#: Sources of graphs, kept for later logs of the same graphs.
SOURCES: Memo[list[_Source]] = Memo(2**19, lambda sources: sum(len(source.tasks) for source in sources))


def moved_by_kind(log: EventLog) -> dict[str, Moved]:
    """Bytes that all tasks of a kind moved, by kind."""
    sums: dict[str, Moved] = {}
    for number, graph in enumerate(log.graphs):
        steps = np.flatnonzero(log.steps.graph == number)
        for first in range(0, len(steps), _LANES):
            add_moved(graph, log.lanes(steps[first : first + _LANES]), sums)
    return sums


def add_moved(graph: TaskGraph, lanes: StepLanes, sums: dict[str, Moved]) -> None:
    """Add the bytes that the tasks of some steps of a graph move, at most `_LANES`, to sums by kind."""
    totals = _op_totals(graph.ops, lanes)
    for source in SOURCES.of(graph, None, partial(_sources, graph)):
        if source.ops is None:
            amount = int(graph.share(graph.ops.costs_of(lanes)[source.quantity], source.tasks).sum())
        else:
            amount = int(totals[source.quantity, source.ops].sum())
        before = sums.get(source.kind, Moved(0, 0, 0))
        sums[source.kind] = before._replace(**{source.way: getattr(before, source.way) + amount})


def _sources(graph: TaskGraph) -> list[_Source]:
    found = []
    for name, bit in CLASS_BIT.items():
        tasks = np.flatnonzero(graph.moves & bit)
        for kind in np.unique(graph.kind[tasks]).tolist():
            mine = tasks[graph.kind[tasks] == kind]
            tier = np.where(graph.moves[mine] & HOST_BIT, (graph.moves[mine] >> TIER_SHIFT).astype(np.int64), -1)
            way: Way = "sent" if bit == LINK_BIT else "written" if bit & WRITE_BITS else "read"
            for number, each in enumerate((way, *WAYS[TIERS:]), -1):
                chosen = mine[tier == number]
                if len(chosen):
                    ops = _whole_ops(graph, chosen)
                    found.append(
                        _Source(quantity=CLASS_QUANTITY[name], way=each, kind=graph.kinds[kind], tasks=chosen, ops=ops)
                    )
    return found


def _whole_ops(graph: TaskGraph, tasks: npt.NDArray[np.intp]) -> npt.NDArray[np.integer] | None:
    """The ops of some tasks, if each share of them is there once."""
    ops, which, count = np.unique(graph.op[tasks], return_inverse=True, return_counts=True)
    shares = np.unique(which * (int(graph.parts.max(initial=0)) + 1) + graph.part[tasks])
    complete = (count[which] == graph.parts[tasks]).all() and len(shares) == len(tasks)
    return ops if complete else None


def _op_totals(ops: OpGraph, lanes: StepLanes) -> IntArray:
    """All costs, summed over some steps [quantity, op]: the sum of `costs_of` over its lanes.

    A polynomial of a sum of powers is evaluated once, where one of each power would be for each step and member.
    """
    if not isinstance(ops, BatchGraph):
        one = np.ones_like(lanes.context)
        return np.asarray(_sums(ops, one * ops.batch, one, lanes.context)[ops.cost_index])
    return ops.by_chunk(lanes, partial(_step_totals, ops))


def _step_totals(ops: BatchGraph, lanes: StepLanes) -> IntArray:
    """`_op_totals` of steps with members."""
    sizes = ops.parameters(lanes)  # [column, lane] each
    members = lanes.members
    assert members is not None
    if ops.template.together:
        costs = _of_all_members(ops, sizes, members)
    else:
        costs = np.asarray(_sums(ops, *sizes, ops.present(members))[ops.cost_index, ops.places])
    for each, counts in ops.counts(members):
        costs[each.quantity, each.ops] = counts.sum(axis=1)[each.layer] * each.size
    return costs


def _sums(
    ops: OpGraph, batch: IntArray, query: IntArray, context: IntArray, chosen: npt.NDArray[np.bool_] | bool = True
) -> IntArray:
    """Every polynomial summed over the last axis of (B, Q, N), where chosen: [polynomial, ..]."""
    piece = np.searchsorted(np.asarray(ops.breaks, dtype=np.int64), context, side="right")
    total = np.zeros((len(ops.polynomials), *context.shape[:-1]), dtype=np.int64)
    for p in range(len(ops.breaks) + 1):
        counted = (piece == p) & chosen
        if counted.any():
            powers = (ops.terms_at(batch, query, context) * counted).sum(axis=-1)
            total += (ops.table[:, p, :] @ powers.reshape(len(powers), -1)).reshape(total.shape)
    return total


def _of_all_members(ops: BatchGraph, sizes: tuple[IntArray, IntArray, IntArray], members: Members) -> IntArray:
    """`_op_totals` where kernels serve all members: sums over members as in `BatchGraph.costs_of`, and over steps."""
    count = len(members.query)
    batch, query, context = sizes
    values = [_sums(ops, batch[:2], query[:2], context[:2])]
    for chosen in ops.summed_members(members):
        for part in (slice(2, 2 + count), slice(2 + count, 2 + 2 * count)):  # at members' contexts, and at what they load
            at, query_at, context_at = (column[part].reshape(1, -1) for column in sizes)
            values.append(_sums(ops, at, query_at, context_at, chosen.ravel()))
    of_devices = slice(2 + 2 * count, None)
    values.append(_sums(ops, batch[of_devices], query[of_devices], context[of_devices]))
    each = _sums(ops, *sizes, ops.present(members)) if (ops.member >= 0).any() else values[0]
    return ops.costs_from_sums(np.concatenate(values, axis=1), each)
