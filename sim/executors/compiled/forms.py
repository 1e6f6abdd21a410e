"""The pool of task graphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.base.memo import Memo
from sim.executors.compiled.rules import Disciplines
from sim.executors.compiled.state import (
    CHAIN, COST_ROW, DEVICE, FORM, HELD, INPUTS, LAUNCH, LEVEL, MEMBER, MOVES, NONE, OUT, OUT_END, PATH, PREFETCH, STORES,
    USED, USED_END, USERS,
)  # fmt: skip
from sim.executors.setup import Setup
from sim.machine.machine import PATHS
from sim.mapping.operands import Operands, operands_of
from sim.mapping.tasks import TaskGraph, path_of


@dataclass(slots=True)
class Form:
    """A task graph in the pool. at: the address of its first node. size: its tasks. nodes: tasks and joins.

    first, first_end: where the numbers of the tasks that wait for nothing stand. operands, operands_end: where those stand that
    load operands into SRAM.
    """

    graph: TaskGraph
    at: int
    size: int
    nodes: int
    first: int
    first_end: int
    operands: int
    operands_end: int


@dataclass(slots=True)
class Forms:
    """All task graphs of a run. pool: int64, the tasks of each graph, then their outputs; it grows."""

    setup: Setup
    disciplines: Disciplines
    pool: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    used: int = 0
    _known: dict[int, Form] = field(default_factory=dict)

    def known(self, graph: TaskGraph) -> Form | None:
        """The form of a graph, if it is there."""
        return self._known.get(id(graph))

    def add(self, graph: TaskGraph, cost_row: npt.NDArray[Any]) -> Form:
        """Put a graph into the pool. cost_row [task]: the row of its durations."""
        size, at, links = len(graph), self.used, graph.links
        nodes = size + links.joins
        first_output = at + nodes * FORM
        starts = STARTS.of(graph, None, lambda: np.flatnonzero(np.diff(links.input_start)[:size] == 0))
        first_end = first_output + len(links.outputs)
        operands = None if self.setup.sram is None else operands_of(graph)
        loads = first_end + len(starts)  # address
        self.used = loads if operands is None else loads + self._words(operands)
        if self.used > len(self.pool):
            grown = np.zeros(max(self.used, 2 * len(self.pool)), dtype=np.int64)
            grown[:at] = self.pool[:at]
            self.pool = grown
        self.pool[first_output:first_end], self.pool[first_end:loads] = links.outputs, starts
        every = self.pool[at:first_output].reshape(nodes, FORM)
        every[:] = NODES.of(graph, None, partial(_nodes, graph))
        every[:, OUT : OUT_END + 1] += first_output
        tasks = every.T[:, :size]
        tasks[COST_ROW] = cost_row
        tasks[LAUNCH] = self.setup.launches(graph)
        tasks[LEVEL] = self._levels(graph)
        network = self.setup.machine.network
        tasks[PATH] = NONE if network is None else np.where(graph.to < 0, NONE, graph.device * network.count + graph.to)
        chains = self.setup.scheduler.chains(graph)
        tasks[CHAIN] = 0 if chains is None else chains
        loads_end = loads if operands is None else self._add_operands(operands, tasks, loads)
        form = self._known[id(graph)] = Form(graph, at, size, nodes, first_end, loads, loads, loads_end)
        return form

    def _levels(self, graph: TaskGraph) -> npt.NDArray[np.int64]:
        """[task]: the urgency or class of its transfer, at a channel of the memory or at its link."""
        channels = self.setup.machine.channels
        kinds = {channels[unit.channels.start].kind: i for i, unit in enumerate(self.setup.units)}
        found = np.zeros(len(graph), dtype=np.int64)
        path = path_of(graph.moves)
        for kind, number in kinds.items():
            discipline = self.disciplines[number]
            levels = np.array([discipline.level(each) for each in graph.plain_kinds], dtype=np.int64)[graph.kind]
            found = np.where(path == PATHS.index(kind), levels, found)
        return found

    @property
    def _devices(self) -> int:
        """Devices of a replica."""
        return self.setup.devices // self.setup.machine.replicas

    def _words(self, operands: Operands) -> int:
        """Words that the operands of a graph take."""
        of_devices = self._devices + 1 + (len(operands.task) * self._devices if self._devices > 1 else 0)
        return 2 * len(operands.task) + of_devices + len(operands.used)

    def _add_operands(self, operands: Operands, tasks: npt.NDArray[np.int64], at: int) -> int:
        """Put the operands of a graph into the pool; returns the address after the list of their tasks, which is `at`."""
        count, devices = len(operands.task), self._devices
        after = np.append(operands.first, count)[1:]  # [group]: the operand after it
        size = np.diff([*operands.first, count])  # [group]
        start = np.full(devices + 1, count)  # a graph may end before the last device
        start[: len(operands.start)] = operands.start[: devices + 1]
        lists = [operands.task, np.repeat(after, size), start]
        if devices > 1:
            before = np.full((len(size), devices), NONE, dtype=np.int64)
            before[:, : operands.before.shape[1]] = operands.before[:, :devices]
            lists.append(np.repeat(before, size, axis=0).ravel())
        whole = np.concatenate([*lists, operands.used])
        self.pool[at : at + len(whole)] = whole
        used = at + len(whole) - len(operands.used)
        tasks[USERS] = 0
        tasks[USERS, operands.task] = operands.users
        tasks[USED], tasks[USED_END] = operands.used_start[:-1] + used, operands.used_start[1:] + used
        return at + count


#: Nodes of graphs as far as they follow from a graph alone, and its tasks that wait for nothing: runs of a study share graphs.
NODES: Memo[npt.NDArray[np.int64]] = Memo(2**16)
STARTS: Memo[npt.NDArray[np.intp]] = Memo(2**16)


def _nodes(graph: TaskGraph) -> npt.NDArray[np.int64]:
    """[node, word], with outputs counted from 0, and 0 for what depends on the run."""
    size, links = len(graph), graph.links
    made = np.zeros((size + links.joins, FORM), dtype=np.int64)
    every, tasks = made.T, made.T[:, :size]
    every[INPUTS] = np.diff(links.input_start)
    every[OUT], every[OUT_END] = links.output_start[:-1], links.output_start[1:]
    tasks[HELD], tasks[PREFETCH], tasks[MOVES] = graph.engine, graph.prefetch, graph.moves
    tasks[DEVICE] = graph.device
    tasks[MEMBER] = NONE if graph.ops.members is None else graph.ops.member[graph.op]
    tasks[STORES] = NONE
    for number, layer in enumerate(sorted(graph.kv_stores)):
        tasks[STORES, list(graph.kv_stores[layer])] = number
    return made


def kv_lists(graph: TaskGraph, at: int) -> npt.NDArray[np.int64]:
    """For the layers whose cache is stored, in order: where its list begins and ends, then the tasks of each. at: address."""
    layers = sorted(graph.kv_stores)
    loads = [list(graph.kv_loads.get(layer, ())) for layer in layers]
    offsets = at + np.cumsum([len(layers) + 1, *map(len, loads)])
    return np.array([*offsets, *(task for each in loads for task in each)], dtype=np.int64)
