"""Operands of tasks that take SRAM: weights, and the KV cache and states that a step loads.

An operand comes with the task that loads it: a transfer, or a computing task that loads its own. It is in use from there to the
end of the last task that reads it. SRAM is given to the operands of a step in the order in which tasks need them first: the
KV cache of a layer comes after the projections before its attention, though its load could begin with the step.

An operand that is in SRAM must never wait for one that is not, or runs could come to a halt. So where a task that frees an
operand needs later ones first, all of these are *admitted together*. For a weight this is the weight alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.graph import IntArray
from sim.base.kernel import kernel, launch, loaded
from sim.base.memo import Memo
from sim.mapping.tasks import CACHED_BITS, CLASS_BIT, HOST_BIT, TaskGraph

#: Bytes of these classes take SRAM while they are in use.
OPERAND_BITS = CLASS_BIT["weight"] | CACHED_BITS

UNKNOWN = -2


class Operands(NamedTuple):
    """Operands of a task graph, in the order in which tasks need them.

    task: int64 [operand], the task that loads it. users: int64 [operand], how many tasks use it. first: int64 [group], the
    first operand of each group that is admitted together. used, used_start: CSR of the operands (as numbers of their loading
    tasks) that each task uses.
    """

    task: IntArray
    users: IntArray
    first: IntArray
    used: IntArray
    used_start: IntArray

    def groups(self) -> list[list[int]]:
        """The loading tasks of each group."""
        return [group.tolist() for group in np.split(self.task, self.first[1:])] if len(self.task) else []

    def number(self, tasks: int) -> IntArray:
        """[task]: the number of the operand that it loads, 0 where it loads none."""
        return numbered(self.task, tasks)

    def in_groups(self, size: IntArray) -> IntArray:
        """Sums [group(, lane)] of sizes [operand(, lane)]."""
        return np.add.reduceat(size, self.first, axis=0) if len(self.task) else size


#: The operands of graphs of runs before; of as many tasks as there are graphs kept.
KNOWN: Memo[Operands] = Memo(2**19, lambda operands: len(operands.used_start))


def operands_of(graph: TaskGraph) -> Operands:
    """The operands of a task graph."""
    return KNOWN.of(graph, None, lambda: _operands_of(graph))


def _operands_of(graph: TaskGraph) -> Operands:
    is_load = np.isin(graph.ops.kind, ("kv_load", "state_load"))[graph.op]
    is_load |= (graph.moves & HOST_BIT != 0) & (graph.moves & CLASS_BIT["weight"] != 0)
    loads = np.flatnonzero((graph.moves & OPERAND_BITS != 0) & (graph.computes | graph.prefetch | is_load))
    load, user = _uses(graph, loads)
    needed = np.full(len(graph), len(graph))  # [task]: the first task that uses its operand
    np.minimum.at(needed, load, user)
    task = loads[np.lexsort((loads, needed[loads]))]
    number = numbered(task, len(graph))
    last = np.full(len(graph) + graph.links.joins, -1)  # [node]: the last operand that must be there before it can end
    last[len(graph) :] = UNKNOWN
    np.maximum.at(last, user, number[load])
    last[task] = np.maximum(last[task], number[task])
    launch(reach, compiled=loaded())(graph.links.inputs, graph.links.input_start, last, np.array([len(graph)]))
    until = np.zeros(len(task), dtype=np.int64)  # [operand]: the last one that is needed before it is free
    np.maximum.at(until, number[load], last[user])
    ends = np.flatnonzero(np.maximum.accumulate(until) == np.arange(len(task)))
    by_user = np.lexsort((load, user))
    start = np.zeros(len(graph) + 1, dtype=np.int64)
    np.cumsum(np.bincount(user, minlength=len(graph)), out=start[1:])
    users = np.bincount(load, minlength=len(graph))[task]
    return Operands(task, users, np.concatenate([[0], ends + 1])[:-1], load[by_user], start)


def numbered(loads: IntArray, tasks: int) -> IntArray:
    """[task]: its place among `loads`, 0 where it is not one of them."""
    number = np.zeros(tasks, dtype=np.int64)
    number[loads] = np.arange(len(loads))
    return number


def operand_bytes(graph: TaskGraph, operands: Operands, costs: IntArray) -> IntArray:
    """Bytes of SRAM [operand(, lane)] that each takes, at least 1. costs: those of ops, [quantity, op(, lane)]."""
    return np.maximum(1, graph.bytes_moved(costs, operands.task, OPERAND_BITS))


def _uses(graph: TaskGraph, loads: npt.NDArray[np.intp]) -> tuple[IntArray, IntArray]:
    """Pairs of an operand (its loading task) and a task that uses it: those that need a transfer, or the task itself."""
    links, tasks = graph.links, len(graph)
    load, user = [], []
    for task in loads.tolist():
        found = [] if graph.computes[task] else links.outputs[links.output_start[task] : links.output_start[task + 1]].tolist()
        consumers = {node for node in found if node < tasks}
        for join in (node for node in found if node >= tasks):
            consumers.update(links.outputs[links.output_start[join] : links.output_start[join + 1]].tolist())
        user += sorted(consumers) or [task]
        load += [task] * max(1, len(consumers))
    return np.array(load, dtype=np.int64), np.array(user, dtype=np.int64)


@kernel
def reach(inputs: Any, start: Any, last: Any, tasks: Any) -> None:
    """Raise `last` [node] of each task to the largest among all that it needs. tasks: [1], their number; then come joins."""
    for task in range(tasks[0]):
        for i in range(start[task], start[task + 1]):
            node = inputs[i]
            if node >= tasks[0] and last[node] == UNKNOWN:  # a join, whose inputs are tasks before this one
                last[node] = -1
                for j in range(start[node], start[node + 1]):
                    last[node] = max(last[node], last[inputs[j]])
            last[task] = max(last[task], last[node])
