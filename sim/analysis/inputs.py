"""Which input of a task ended last: its last step backwards in time.

Inputs are those of the task graph and, between known tokens, the order that the KV cache imposes: a load of a layer's cache
waits for the stores of that layer by all earlier tokens of its sequence. Among inputs that ended together the first in
program order counts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.analysis.context import Rules
from sim.eventlog import EventLog
from sim.tasks import TaskGraph

Rows = npt.NDArray[np.int64]

NONE = -1


class Inputs:
    """Looks up last inputs in a log; made once per log, since the stores of earlier tokens are accumulated."""

    def __init__(self, log: EventLog, rules: Rules) -> None:
        self._log = log
        # Sampled steps are barriers: whatever a load needs was stored before its step was released.
        self._layers = (
            sorted({layer for graph in log.graphs for layer in graph.kv_loads}) if rules.dependency == "known" else []
        )
        self._layer_of = [self._loads(graph) for graph in log.graphs]
        self._stored_end, self._stored_row = self._stores()
        # A memoryview gives plain integers, which is what makes single look-ups fast.
        self._step, self._task, self._end = (log.tasks.step.data, log.tasks.task.data, log.tasks.end.data)
        self._first, self._graph = log.steps.first.data, log.steps.graph.data
        self._lists = [
            (graph.input_start.tolist(), graph.inputs.tolist(), layer_of.tolist() if self._layers else [])
            for graph, layer_of in zip(log.graphs, self._layer_of, strict=True)
        ]

    def last(self, rows: Rows) -> tuple[Rows, Rows]:
        """For each row of the task table the row of its input that ended last, and when; `NONE` for both if it has none."""
        log = self._log
        step, task = log.tasks.step[rows], log.tasks.task[rows]
        source, ended = np.full(len(rows), NONE, dtype=np.int64), np.full(len(rows), NONE, dtype=np.int64)
        graph_of = log.steps.graph[step]
        for number, graph in enumerate(log.graphs):
            mine = np.flatnonzero(graph_of == number)
            begin = graph.input_start[task[mine]].astype(np.int64)
            count = graph.input_start[task[mine] + 1] - begin
            mine, begin, count = mine[count > 0], begin[count > 0], count[count > 0]
            if len(mine):
                source[mine], ended[mine] = self._latest(graph, log.steps.first[step[mine]], begin, count)
            if self._layers:
                layer = self._layer_of[number][task]
                loads = np.flatnonzero((graph_of == number) & (layer != NONE))
                stored = self._stored_end[step[loads], layer[loads]]
                # A store of an earlier token comes first in program order, so it also wins a tie.
                later = (stored != NONE) & (stored >= ended[loads])
                ended[loads[later]] = stored[later]
                source[loads[later]] = self._stored_row[step[loads], layer[loads]][later]
        return source, ended

    def last_of(self, row: int) -> tuple[int, int]:
        """`last` of a single row, several times faster than a vector of one."""
        step, task = self._step[row], self._task[row]
        number = self._graph[step]
        start, inputs, layer_of = self._lists[number]
        first, end = self._first[step], self._end
        source = ended = NONE
        for i in range(start[task], start[task + 1]):
            candidate = first + inputs[i]
            if end[candidate] > ended:
                source, ended = candidate, end[candidate]
        if layer_of and layer_of[task] != NONE:
            stored = int(self._stored_end[step, layer_of[task]])
            if stored != NONE and stored >= ended:
                source, ended = int(self._stored_row[step, layer_of[task]]), stored
        return source, ended

    def _latest(self, graph: TaskGraph, first: Rows, begin: Rows, count: Rows) -> tuple[Rows, Rows]:
        offset = np.cumsum(count) - count
        edge = np.arange(int(count.sum())) + np.repeat(begin - offset, count)
        source = np.repeat(first, count) + graph.inputs[edge]
        end = self._log.tasks.end[source]
        latest = np.maximum.reduceat(end, offset)
        candidates = np.where(end == np.repeat(latest, count), source, np.iinfo(np.int64).max)
        return np.minimum.reduceat(candidates, offset), latest

    def _loads(self, graph: TaskGraph) -> Rows:
        """For each task the index of the layer whose KV cache it loads, or `NONE`."""
        layer_of = np.full(len(graph), NONE, dtype=np.int64)
        for index, layer in enumerate(self._layers):
            layer_of[list(graph.kv_loads.get(layer, ()))] = index
        return layer_of

    def _stores(self) -> tuple[Rows, Rows]:
        """[step, layer]: when the last store of the layer by an earlier token of the sequence ended, and its row."""
        log = self._log
        end = np.full((len(log.steps), len(self._layers)), NONE, dtype=np.int64)
        row = np.full_like(end, NONE)
        if not self._layers:
            return end, row
        own_end, own_row = end.copy(), row.copy()
        for number, graph in enumerate(log.graphs):
            steps = np.flatnonzero(log.steps.graph == number)
            for index, layer in enumerate(self._layers):
                stores = np.array(graph.kv_stores.get(layer, ()), dtype=np.int64)
                if len(stores):
                    rows = log.steps.first[steps][:, None] + stores
                    last = log.tasks.end[rows].argmax(axis=1)
                    own_row[steps, index] = rows[np.arange(len(steps)), last]
                    own_end[steps, index] = log.tasks.end[own_row[steps, index]]
        order = np.lexsort((log.steps.token, log.steps.sequence))
        bounds = np.flatnonzero(np.diff(log.steps.sequence[order])) + 1
        for steps in np.split(order, bounds):
            highest = np.maximum.accumulate(own_end[steps], axis=0)
            before = np.vstack([np.full((1, len(self._layers)), NONE), highest[:-1]])
            leader = np.maximum.accumulate(np.where(own_end[steps] > before, np.arange(len(steps))[:, None], 0), axis=0)
            end[steps] = before
            row[steps[1:]] = np.take_along_axis(own_row[steps], leader[:-1], axis=0)
        return end, row
