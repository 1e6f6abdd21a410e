"""The pool of task graphs, and what is the same in all steps: the machine's rules as integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.executors.compiled.state import (
    CHAIN, COST_ROW, FORM_FIELDS, HELD, INPUTS, LEVEL, MEMBER, MOVES, NONE, OPERAND, OUT, OUT_END, PREFETCH, STORES,
)  # fmt: skip
from sim.executors.setup import Setup
from sim.graph import IntArray
from sim.hardware.arbiters.disciplines import Discipline
from sim.tasks import TaskGraph

Table = npt.NDArray[Any]


@dataclass(slots=True)
class Form:
    """A task graph in the pool: its first task there, and its number of tasks."""

    graph: TaskGraph
    number: int
    first: int
    size: int


@dataclass(slots=True)
class Forms:
    """All task graphs of a run, one after another in arrays that grow. form: int32 [field, task]. outputs: int32, relative."""

    setup: Setup
    discipline: Discipline
    form: Table = field(default_factory=lambda: np.zeros((FORM_FIELDS, 0), dtype=np.int32))
    outputs: Table = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    all: list[Form] = field(default_factory=list)
    tasks: int = 0
    edges: int = 0
    _known: dict[int, Form] = field(default_factory=dict)

    def of(self, graph: TaskGraph, cost_row: IntArray) -> Form:
        """The form of a graph, which is added if it is new. cost_row [task]: the row of its durations."""
        if id(graph) not in self._known:
            self._known[id(graph)] = self._add(graph, cost_row)
        return self._known[id(graph)]

    def known(self, graph: TaskGraph) -> Form | None:
        """The form of a graph, if it is there."""
        return self._known.get(id(graph))

    def _add(self, graph: TaskGraph, cost_row: IntArray) -> Form:
        size, first = len(graph), self.tasks
        self.form = _room(self.form, first + size)
        self.outputs = _room(self.outputs, self.edges + len(graph.outputs))
        self.outputs[self.edges : self.edges + len(graph.outputs)] = graph.outputs
        here = self.form[:, first : first + size]
        here[HELD], here[PREFETCH], here[MOVES] = graph.engine, graph.prefetch, graph.moves
        here[INPUTS] = np.diff(graph.input_start)
        here[OUT], here[OUT_END] = graph.output_start[:-1] + self.edges, graph.output_start[1:] + self.edges
        here[COST_ROW] = cost_row
        here[LEVEL] = np.array([self.discipline.level(kind) for kind in graph.kinds], dtype=np.int32)[graph.kind]
        here[MEMBER] = NONE if graph.ops.members is None else graph.ops.member[graph.op]
        chains = self.setup.scheduler.chains(graph)
        here[CHAIN] = 0 if chains is None else chains
        here[STORES] = NONE
        for number, layer in enumerate(sorted(graph.kv_stores)):
            here[STORES, list(graph.kv_stores[layer])] = number
        here[OPERAND] = NONE
        loads = np.flatnonzero(graph.prefetch)
        here[OPERAND, graph.outputs[graph.output_start[loads]]] = loads
        self.tasks, self.edges = first + size, self.edges + len(graph.outputs)
        form = Form(graph, len(self.all), first, size)
        self.all.append(form)
        return form


def _room(table: Table, wanted: int) -> Table:
    """The table with room for so many entries along its last axis."""
    have = table.shape[-1]
    if wanted <= have:
        return table
    grown = np.zeros((*table.shape[:-1], max(wanted, 2 * have)), dtype=table.dtype)
    grown[..., :have] = table
    return grown


def kv_lists(graph: TaskGraph) -> npt.NDArray[np.int32]:
    """For the layers whose cache is stored, in ascending order: offsets [layer + 1], then the tasks that load each."""
    layers = sorted(graph.kv_stores)
    loads = [list(graph.kv_loads.get(layer, ())) for layer in layers]
    offsets = np.cumsum([len(layers) + 1, *map(len, loads)])
    return np.array([*offsets, *(task for each in loads for task in each)], dtype=np.int32)
