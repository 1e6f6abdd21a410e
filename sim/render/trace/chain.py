"""The chain of tasks that decided when a step ended: what to show of a token on a single line.

Walk back from the task of the step that ended last to the input of it that ended last, and so on: each link begins
when the one before ended, unless it waited for something outside its step (a KV cache that another token had to store).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.log.tables import EventLog
from sim.mapping.tasks import TaskGraph

Rows = npt.NDArray[np.int64]

_LANES = 64  # steps at a time: a matrix [steps, edges] of a large graph then stays within the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """Links of the chains of some steps, in order of step and time.

    step: row of the step table. row: of the task table. begin: the end of the link before it, or the release of the step.
    cause: row of the task of another token that it waited for in [begin, ready), or -1.
    """

    step: Rows
    row: Rows
    begin: Rows
    cause: Rows


def last_input(graph: TaskGraph, ends: Rows) -> npt.NDArray[np.int64]:
    """For each task the input that ended last (the first in program order among equals), -1 if it has none.

    ends: [steps, tasks], when each task ended. Returns [steps, tasks].
    """
    has = np.flatnonzero(np.diff(graph.input_start))
    result = np.full(ends.shape, -1, dtype=np.int64)
    if not len(has):
        return result
    starts = graph.input_start[has]
    at = ends[:, graph.inputs]  # [steps, edges]
    latest = np.maximum.reduceat(at, starts, axis=1)
    counts = np.diff(graph.input_start)[has]
    index = np.where(at == np.repeat(latest, counts, axis=1), graph.inputs, len(graph))
    result[:, has] = np.minimum.reduceat(index, starts, axis=1)
    return result


def chains(log: EventLog, steps: Rows) -> Chains:
    """Walk back through the steps given (rows of the step table, ascending)."""
    found_steps: list[Rows] = []
    found_rows: list[Rows] = []
    for number, graph in enumerate(log.graphs):
        of_graph = steps[log.steps.graph[steps] == number]
        if not len(graph):
            continue
        for offset in range(0, len(of_graph), _LANES):
            block = of_graph[offset : offset + _LANES]
            first = log.steps.first[block]
            ends = log.tasks.end[first[:, None] + np.arange(len(graph))]
            before = last_input(graph, ends)
            lane, task = np.arange(len(block)), ends.argmax(axis=1)
            while len(lane):
                found_steps.append(block[lane])
                found_rows.append(first[lane] + task)
                task = before[lane, task]
                lane, task = lane[task >= 0], task[task >= 0]
    if not found_rows:
        nothing = np.zeros(0, dtype=np.int64)
        return Chains(step=nothing, row=nothing, begin=nothing, cause=nothing)
    step, row = np.concatenate(found_steps), np.concatenate(found_rows)
    order = np.argsort(row, kind="stable")  # a link comes after its inputs in program order, so rows ascend along a chain
    step, row = step[order], row[order]
    begin = np.empty_like(row)
    begin[1:] = log.tasks.end[row[:-1]]
    fresh = np.append(True, step[1:] != step[:-1])
    begin[fresh] = np.minimum(log.steps.released[step[fresh]], log.tasks.ready[row[fresh]])
    return Chains(step=step, row=row, begin=begin, cause=_outside(log, step, row, begin))


def _outside(log: EventLog, step: Rows, row: Rows, begin: Rows) -> Rows:
    """Who kept each link waiting before it was ready: the last store of its layer's KV cache by the token before it."""
    cause = np.full(len(row), -1, dtype=np.int64)
    for i in np.flatnonzero(log.tasks.ready[row] > begin):
        mine, before = int(step[i]), int(step[i]) - 1
        graph = log.graphs[log.steps.graph[mine]]
        layer = int(graph.layer[log.tasks.task[row[i]]])
        if before < 0 or log.steps.sequence[before] != log.steps.sequence[mine]:
            continue
        stores = log.graphs[log.steps.graph[before]].kv_stores.get(layer, ())
        if stores:
            rows = log.steps.first[before] + np.array(stores, dtype=np.int64)
            cause[i] = rows[np.argmax(log.tasks.end[rows])]
    return cause
