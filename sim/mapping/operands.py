"""Operands of tasks that take SRAM: weights, and the KV cache and states that a step loads.

An operand comes with the task that loads it: a transfer, or a computing task that loads its own. It is in use from there to the
end of the last task that reads it, on one device. The SRAM of a device is given to the operands of a step there in the order in
which tasks need them first: the KV cache of a layer comes after the projections before its attention, though its load could
begin with the step.

An operand that is in SRAM must never wait for one that is not, or runs could come to a halt. So where a task that frees an
operand needs later ones of the device first, all of these are *admitted together*. For a weight this is the weight alone. What
it needs on another device comes *before* it, if the two devices wait for each other, as those that add up partial sums do. A
stage of a pipeline waits for the one before, and never the other way round: it loads ahead as far as it has space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import ge
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.graph import IntArray
from sim.base.errors import ConfigError
from sim.base.kernel import kernel, launch, loaded
from sim.base.memo import Memo
from sim.mapping.tasks import CACHED_BITS, CLASS_BIT, HOST_BIT, TaskGraph

#: Bytes of these classes take SRAM while they are in use.
OPERAND_BITS = CLASS_BIT["weight"] | CACHED_BITS

NONE, UNKNOWN = -1, -2


class Operands(NamedTuple):
    """Operands of a task graph, device after device, those of each in the order in which tasks need them.

    task: int64 [operand], the task that loads it. users: int64 [operand], how many tasks use it. first: int64 [group], the
    first operand of each group that is admitted together. used, used_start: CSR of the operands (as numbers of their loading
    tasks) that each task uses. start: int64 [device + 1], the first operand of each device of the replica. before: int64
    [group, device], the operand up to which all of a device have to be admitted before a group of another one, if the two wait
    for each other; -1 if not. Where known tokens follow one another, all operands of the token before come first there, too.
    """

    task: IntArray
    users: IntArray
    first: IntArray
    used: IntArray
    used_start: IntArray
    start: IntArray
    before: IntArray

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
    """The operands of a task graph. Raises ConfigError if those of several devices would have to be admitted together."""
    return KNOWN.of(graph, None, lambda: _operands_of(graph))


def _operands_of(graph: TaskGraph) -> Operands:
    is_load = np.isin(graph.ops.kind, ("kv_load", "state_load"))[graph.op]
    is_load |= (graph.moves & HOST_BIT != 0) & (graph.moves & CLASS_BIT["weight"] != 0)
    loads = np.flatnonzero((graph.moves & OPERAND_BITS != 0) & (graph.computes | graph.prefetch | is_load))
    load, user = _uses(graph, loads)
    needed = np.full(len(graph), len(graph))  # [task]: the first task that uses its operand
    np.minimum.at(needed, load, user)
    device = graph.device - graph.first_device
    task = loads[np.lexsort((loads, needed[loads], device[loads]))]
    start = np.searchsorted(device[task], np.arange(int(device.max(initial=0)) + 2))
    each = [_needed_on(graph, task, range(begin, end), load, user) for begin, end in pairwise(start)]
    until = np.stack(each, axis=1)  # [operand, device]: the last operand there that is needed before it is free
    own = until[np.arange(len(task)), device[task]]
    ends = np.flatnonzero(np.maximum.accumulate(own) == np.arange(len(task)))
    first = np.concatenate([[0], ends + 1])[:-1]
    by_user = np.lexsort((load, user))
    used_start = np.zeros(len(graph) + 1, dtype=np.int64)
    np.cumsum(np.bincount(user, minlength=len(graph)), out=used_start[1:])
    before = _before(until, first, start, _in_turns(graph, device))
    users = np.bincount(load, minlength=len(graph))[task]
    return Operands(task, users, first, load[by_user], used_start, start, before)


def _needed_on(graph: TaskGraph, task: IntArray, mine: range, load: IntArray, user: IntArray) -> IntArray:
    """[operand]: the last one of a device that is needed before it is free, -1 if none is.

    task: [operand], the task that loads it. mine: the operands of the device. load, user: [use].
    """
    number = np.full(len(graph), -1)  # [task]: of the operand of the device that it loads
    number[task[mine.start : mine.stop]] = mine
    last = np.full(len(graph) + graph.links.joins, -1)  # [node]: the last operand that must be there before it can end
    last[len(graph) :] = UNKNOWN
    np.maximum.at(last, user, number[load])
    last[: len(graph)] = np.maximum(last[: len(graph)], number)
    launch(reach, compiled=loaded())(graph.links.inputs, graph.links.input_start, last, np.array([len(graph)]))
    until = np.full(len(task), -1, dtype=np.int64)
    np.maximum.at(until, numbered(task, len(graph))[load], last[user])
    return until


def _in_turns(graph: TaskGraph, device: IntArray) -> npt.NDArray[np.bool_]:
    """[device, device]: whether each of two has a task that waits for one of the other, by way of others or not.

    A load of the KV cache waits for the stores of earlier tokens.
    """
    count, links = int(device.max(initial=0)) + 1, graph.links
    waits = np.eye(count, dtype=np.bool_)
    if count == 1:
        return waits
    node = np.repeat(np.arange(len(graph) + links.joins), np.diff(links.input_start))
    direct = (node < len(graph)) & (links.inputs < len(graph))
    waits[device[node[direct]], device[links.inputs[direct]]] = True
    for layer, loads in graph.kv_loads.items():
        waits[np.ix_(np.unique(device[list(loads)]), np.unique(device[list(graph.kv_stores.get(layer, ()))]))] = True
    for join in range(len(graph), len(graph) + links.joins):
        needs = links.inputs[links.input_start[join] : links.input_start[join + 1]]
        needed_by = links.outputs[links.output_start[join] : links.output_start[join + 1]]
        waits[np.ix_(np.unique(device[needed_by]), np.unique(device[needs]))] = True
    for by_way_of in range(count):
        waits |= waits[:, by_way_of, None] & waits[by_way_of]
    return waits & waits.T


def _before(until: IntArray, first: IntArray, start: IntArray, in_turns: npt.NDArray[np.bool_]) -> IntArray:
    """`Operands.before`. until: [operand, device]. in_turns: [device, device]. Raises ConfigError if there is no order."""
    before = np.full((len(first), len(start) - 1), NONE, dtype=np.int64)
    if len(start) == 2 or not len(first):
        return before
    of_group = np.searchsorted(start, first, side="right") - 1  # [group]: its device
    others = in_turns[of_group] & (np.diff(start) > 0)
    others[np.arange(len(first)), of_group] = False
    before[:] = np.where(others, np.maximum.reduceat(until, first, axis=0) + 1, NONE)
    _refuse_circles(before, np.append(first, len(until)), of_group, start)
    return before


def _refuse_circles(before: IntArray, first: IntArray, device: IntArray, start: IntArray) -> None:
    """Raise ConfigError if groups of several devices have to come before one another. first: [group + 1]."""
    admitted, groups = start[:-1].tolist(), np.searchsorted(device, np.arange(len(start))).tolist()
    following, last, left = groups[:-1], groups[1:], len(before)
    wanted: Sequence[list[int]] = before.tolist()
    while left:
        left_then = left
        for number in range(len(following)):
            while following[number] < last[number] and all(map(ge, admitted, wanted[following[number]])):
                following[number] += 1
                admitted[number] = int(first[following[number]])
                left -= 1
        if left == left_then:
            raise ConfigError("hardware.sram", "expected null: devices need operands of each other's at once to free their own")


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
