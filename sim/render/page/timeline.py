"""The columns that the timeline of a page is drawn from.

One row per task, in order of start; every time is an offset from the one before it, so that all are small and none negative:

    ready --wait-- start --queued-- served --moving-- moved --rest-- end

A task that moves nothing has served = moved = start. `rates` are the intervals in which a channel was serving.

A run of more tasks or steps than a page opens quickly shows the first of them one by one, and the time after them in `BINS`
equal parts: what each engine and channel spent most of each part on, and how much of it was busy. Steps that are not shown are
in sums, and in the means of bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.analysis.parts import PARTS
from sim.analysis.sums import exact_sum
from sim.base.units import ceil_div
from sim.log import derived
from sim.log.tables import EventLog
from sim.render.page.columns import Ints
from sim.runs.result import Result

LIMIT = 400_000  # tasks; a page with more of them is slow to open
STEPS = 20_000  # steps that a page has one by one; a million of them would be 700 MB
BARS = 240  # bars of the chart of steps; of more steps they are means of adjacent ones
BINS = 1024  # parts that the time after the first tasks is shown in: about a pixel each
ROWS = 48  # most engines, and most channels, that a page has rows for: `LANES` of `timeline.js`
TONES = 14  # kinds with a color of their own, by the time they took; all others share one: `TONES` of `page.js`

Times = npt.NDArray[np.int64]


def timeline(result: Result, limit: int = LIMIT, most: int = STEPS) -> tuple[dict[str, Any], dict[str, Ints], Times]:
    """Facts about the run, columns of its tasks, and the numbers of the steps that are shown.

    Of more tasks than `limit`, or more steps than `most`: those of the first, and of the time after them.
    """
    log, tasks = result.log, result.log.tasks
    order = np.argsort(tasks.start, kind="stable")
    shown, steps = _shown(log, order, limit, most)
    horizon = log.makespan if len(shown) == len(order) else int(tasks.start[order[len(shown)]])
    edges = _edges(horizon, log.makespan)
    moves, served, moved, channel = derived.service(log)
    if (stripes := result.plan.rules.stripes) > 1:  # each transfer is on all of the memory's
        channel = np.where(channel < log.machine.memories, channel - channel % stripes, channel)
    lane = np.zeros(len(tasks), dtype=np.int64)
    lane[shown] = _lanes(channel[shown], served[shown], moved[shown], moves[shown])
    on_path = np.zeros(len(tasks), dtype=np.int8)
    on_path[result.critical_path.rows] = 1
    names: dict[str, int] = {}
    templates = [[names.setdefault(graph.name(task), len(names)) for task in range(len(graph))] for graph in log.graphs]
    start = tasks.start[shown]
    columns: dict[str, Ints] = {
        "step": np.searchsorted(steps, tasks.step[shown]),
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
        "launched": tasks.launched[shown],
        "bytes": log.bytes_moved()[shown],
        **_rates(log, edges),
        **(_overview(result, edges) if len(shown) < len(order) else {}),
    }
    facts = {
        "tasks": len(tasks),
        "shown": len(shown),
        "horizon_ps": horizon,
        "bins": len(edges) - 1,
        "names": list(names),
        **_machine(result),
        **_steps(log, templates, steps),
        **_bars(result),
    }
    return facts, columns, steps


def _shown(log: EventLog, order: Times, limit: int, most: int) -> tuple[Times, Times]:
    """Rows of the tasks that are shown one by one, in their order, and the numbers of their steps, ascending."""
    if len(order) <= limit and len(log.steps) <= most:
        return order, np.arange(len(log.steps))
    shown = order[: limit // 4]
    steps, first = np.unique(log.tasks.step[shown], return_index=True)
    if len(steps) > most:
        shown = shown[: np.sort(first)[most]]
        steps = np.unique(log.tasks.step[shown])
    return shown, steps.astype(np.int64)


def _bars(result: Result) -> dict[str, Any]:
    """Parts of the time of all steps: their sums, and bars in order of time.

    Of many steps a bar has the means of adjacent ones. ends: the first and the last of them, as (sequence, token).
    """
    steps, parts = result.log.steps, result.breakdown.tokens
    order = np.lexsort((steps.sequence, steps.released))
    size = max(1, ceil_div(len(order), BARS))
    bars = []
    for first in range(0, len(order), size):
        of = order[first : first + size]
        means = dict(zip(PARTS, parts[of].mean(axis=0).tolist(), strict=True))
        ends = [[int(steps.sequence[i]), int(steps.token[i])] for i in (of[0], of[-1])]
        bars.append({"ends": ends, "steps": len(of), "means": {part: ps for part, ps in means.items() if ps}})
    sums = {part: exact_sum(parts[:, number]) for number, part in enumerate(PARTS)}
    return {"sums": {part: ps for part, ps in sums.items() if ps}, "bars": bars, "alone": len(result.breakdown.sequences) < 2}


def _machine(result: Result) -> dict[str, Any]:
    """Facts about the machine, and the rules by which it ran."""
    log = result.log
    return {
        "words": list(log.owner_words),
        "makespan_ps": log.makespan,
        "devices": len(log.machine.devices),
        "engines": log.engines,
        "engine_names": log.machine.engine_names,
        "channels": log.machine.memories,
        "channel_names": [channel.name for channel in log.machine.channels],
        "interleaved": result.plan.rules.stripes > 1,
        "execution": result.plan.rules.execution,
        "bandwidth": log.bandwidth,
        "from_table": result.scenario.cost.model == "fixed",
    }


def _steps(log: EventLog, templates: Sequence[Sequence[int]], shown: Times) -> dict[str, Any]:
    """Facts about the steps that are shown and their graphs. templates: the numbers of the names of each graph's tasks."""
    return {
        "steps_in_all": len(log.steps),
        "graphs": [
            {
                "name": list(template),
                "kind": [graph.kinds[kind] for kind in graph.kind.tolist()],
                "layer": graph.layer.tolist(),
            }
            for graph, template in zip(log.graphs, templates, strict=True)
        ],
        "steps": {
            "graph": log.steps.graph[shown].tolist(),
            "context": log.steps.context[shown].tolist(),
            "prefill": derived.prefills(log)[shown].astype(int).tolist(),
        },
    }


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


def _edges(horizon: int, makespan: int) -> Times:
    """Ends of the equal parts of the time after the horizon [part + 1]; only the horizon if there is no such time."""
    parts = min(BINS, makespan - horizon)
    return np.array([horizon + (makespan - horizon) * i // max(parts, 1) for i in range(parts + 1)], dtype=np.int64)


def _over(
    edges: Times, group: Ints, groups: int, begin: Times, end: Times, amount: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Sums [group, part] of what intervals give to each part of the time: each gives `amount`, evenly from begin to end."""
    bins = len(edges) - 1
    chosen = np.flatnonzero((end > edges[0]) & (end > begin))
    group, begin, end, amount = group[chosen], begin[chosen], end[chosen], amount[chosen]
    first = np.maximum(np.searchsorted(edges, begin, side="right") - 1, 0)
    last = np.searchsorted(edges, end, side="left") - 1
    count = last - first + 1
    row = np.repeat(np.arange(len(first)), count)  # an interval once for each part that it reaches into
    part = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + first[row]
    inside = np.minimum(end[row], edges[part + 1]) - np.maximum(begin[row], edges[part])
    given = amount[row] * (inside / (end - begin)[row])
    sums = np.bincount(group[row].astype(np.int64) * bins + part, weights=given, minlength=groups * bins)
    return sums.astype(np.float64).reshape(groups, bins)


def _overview(result: Result, edges: Times) -> dict[str, Ints]:
    """Per engine, then per channel, and part of the time: the kind that has most of it, and the share that is busy in 1/255.

    Kinds are numbered in the order of `Metrics.kinds`, those from TONES on as one.
    """
    log, tasks, services = result.log, result.log.tasks, result.log.services
    rank = {of.kind: min(i, TONES) for i, of in enumerate(result.metrics.kinds)}
    tone = np.array([rank.get(kind, TONES) for kind in derived.forms(log).kinds], dtype=np.int64)[derived.kind(log)]
    held = np.flatnonzero((tasks.engine >= 0) & (tasks.engine < ROWS))
    served = np.flatnonzero(services.channel < ROWS)
    engines, channels = min(log.engines, ROWS), min(log.channels, ROWS)
    start, end = tasks.start[held], tasks.end[held]
    by_tone = np.concatenate(
        [
            _over(edges, tasks.engine[held] * (TONES + 1) + tone[held], engines * (TONES + 1), start, end, end - start),
            _over(
                edges, services.channel[served].astype(np.int64) * (TONES + 1) + tone[services.task[served]],
                channels * (TONES + 1), services.start[served], services.end[served], services.work[served],
            ),
        ]
    ).reshape(engines + channels, TONES + 1, -1)  # fmt: skip
    share = np.minimum(by_tone.sum(axis=1) / np.diff(edges), 1)
    return {
        "bin_tone": by_tone.argmax(axis=1).astype(np.int64).ravel(),
        "bin_share": np.ceil(share * 255).astype(np.int64).ravel(),
    }


def _rates(log: EventLog, edges: Times) -> dict[str, Ints]:
    """The intervals in which channels of the memory served: idle time before each, its length, and the work delivered in it.

    After the horizon they are the parts of the time.
    """
    services, horizon, memories = log.services, edges[0], log.machine.memories
    before = np.flatnonzero((services.start < horizon) & (services.channel < memories))
    channel, start, end = services.channel[before].astype(np.int64), services.start[before], services.end[before]
    ends = np.minimum(end, horizon)
    work = (services.work[before] * ((ends - start) / (end - start))).round().astype(np.int64)
    work = np.where(ends == end, services.work[before], work)
    if len(edges) > 1:
        late = _over(edges, services.channel, log.channels, services.start, services.end, services.work)[:memories]
        channel = np.concatenate([channel, np.repeat(np.arange(memories), len(edges) - 1)])
        start, ends = (np.concatenate([x, np.tile(y, memories)]) for x, y in ((start, edges[:-1]), (ends, edges[1:])))
        work = np.concatenate([work, late.round().astype(np.int64).ravel()])
    return _joined(channel, start, ends, work)


def _joined(channel: Ints, start: Times, end: Times, work: Ints) -> dict[str, Ints]:
    """Equal intervals of a channel become one with the sum of their work."""
    order = np.lexsort((end, start, channel))
    channel, start, end, work = channel[order], start[order], end[order], work[order]
    first = np.flatnonzero(
        np.append(True, (channel[1:] != channel[:-1]) | (start[1:] != start[:-1]) | (end[1:] != end[:-1]))[: len(order)]
    )
    channel, start, end = channel[first], start[first], end[first]
    work = np.add.reduceat(work, first) if len(first) else work
    before = np.where(np.append(True, channel[1:] != channel[:-1])[: len(first)], 0, np.append(0, end[:-1])[: len(first)])
    return {"rate_channel": channel, "rate_idle": start - before, "rate_span": end - start, "rate_work": work}
