"""The columns that the timeline of a page is drawn from.

One row per task, in order of start; every time is an offset from the one before it, so that all are small and none negative:

    ready --wait-- start --queued-- served --moving-- moved --rest-- end

A task that moves nothing has served = moved = start. `rates` are the intervals in which a channel was serving.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.log import derived
from sim.log.tables import EventLog
from sim.render.page.columns import Ints
from sim.runs.result import Result

LIMIT = 400_000  # tasks; beyond that a page is slow to open, and a trace is the better tool

Times = npt.NDArray[np.int64]


def timeline(result: Result, limit: int = LIMIT) -> tuple[dict[str, Any], dict[str, Ints]]:
    """Facts about the run, and the columns of the first `limit` tasks to start."""
    log, tasks = result.log, result.log.tasks
    order = np.argsort(tasks.start, kind="stable")
    shown = order[:limit]
    horizon = log.makespan if len(order) <= limit else int(tasks.start[order[limit]])
    moves, served, moved, channel = derived.service(log)
    if result.plan.rules.stripes > 1:  # each transfer is on all of them
        channel = np.zeros_like(channel)
    lane = np.zeros(len(tasks), dtype=np.int64)
    lane[shown] = _lanes(channel[shown], served[shown], moved[shown], moves[shown])
    on_path = np.zeros(len(tasks), dtype=np.int8)
    on_path[result.critical_path.rows] = 1
    names: dict[str, int] = {}
    templates = [[names.setdefault(graph.name(task), len(names)) for task in range(len(graph))] for graph in log.graphs]
    start = tasks.start[shown]
    columns: dict[str, Ints] = {
        "step": tasks.step[shown],
        "task": tasks.task[shown],
        "engine": tasks.engine[shown].astype(np.int64) + 1,
        "lane": np.where(moves, lane + 1, 0)[shown],
        "channel": channel[shown],
        "critical": on_path[shown],
        "start": np.diff(start, prepend=0),
        "wait": start - tasks.ready[shown],
        "queued": (served - tasks.start)[shown],
        "moving": (moved - served)[shown],
        "rest": (tasks.end - moved)[shown],
        "work": tasks.work[shown],
        "compute": tasks.compute[shown],
        "bytes": log.bytes_moved()[shown],
        **_rates(log),
    }
    facts = {
        "words": list(log.owner_words),
        "tasks": len(tasks),
        "shown": len(shown),
        "horizon_ps": horizon,
        "engines": log.engines,
        "channels": log.channels,
        "interleaved": result.plan.rules.stripes > 1,
        "execution": result.plan.rules.execution,
        "bandwidth": log.bandwidth,
        "launch_ps": log.launch,
        "from_table": result.scenario.cost.model == "fixed",
        "names": list(names),
        "graphs": [
            {
                "name": template,
                "kind": [graph.kinds[kind] for kind in graph.kind.tolist()],
                "layer": graph.layer.tolist(),
            }
            for graph, template in zip(log.graphs, templates, strict=True)
        ],
        "steps": {
            "graph": log.steps.graph.tolist(),
            "context": log.steps.context.tolist(),
            "prefill": derived.prefills(log).astype(int).tolist(),
        },
    }
    return facts, columns


def _lanes(group: Ints, start: Times, end: Times, chosen: npt.NDArray[np.bool_]) -> Times:
    """For each chosen interval the first lane of its group that is free."""
    lane = np.zeros(len(start), dtype=np.int64)
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(start[rows], kind="stable")]
    lanes: dict[int, tuple[list[tuple[int, int]], list[int]]] = {}
    columns = (rows.tolist(), group[rows].tolist(), start[rows].tolist(), end[rows].tolist())
    for row, which, begin, until in zip(*columns, strict=True):
        busy, free = lanes.setdefault(which, ([], []))
        while busy and busy[0][0] <= begin:
            heappush(free, heappop(busy)[1])
        mine = heappop(free) if free else len(busy)
        heappush(busy, (until, mine))
        lane[row] = mine
    return lane


def _rates(log: EventLog) -> dict[str, Ints]:
    """The intervals in which channels served somebody: idle time before each, its length, and the work delivered in it."""
    services = log.services
    order = np.lexsort((services.end, services.start, services.channel))
    channel, start, end, work = services.channel[order], services.start[order], services.end[order], services.work[order]
    first = np.flatnonzero(
        np.append(True, (channel[1:] != channel[:-1]) | (start[1:] != start[:-1]) | (end[1:] != end[:-1]))[: len(order)]
    )
    channel, start, end = channel[first], start[first], end[first]
    work = np.add.reduceat(work, first) if len(first) else work
    before = np.where(np.append(True, channel[1:] != channel[:-1])[: len(first)], 0, np.append(0, end[:-1])[: len(first)])
    return {"rate_channel": channel, "rate_idle": start - before, "rate_span": end - start, "rate_work": work}
