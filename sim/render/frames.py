"""Tables of a result for data frames: one row per task, output token or request, as NumPy columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.analysis.parts import PARTS
from sim.analysis.rules import Rules
from sim.base.errors import InputError
from sim.log import derived
from sim.log.tables import EventLog
from sim.runs.result import Result

Columns = dict[str, npt.NDArray[Any]]
Times = npt.NDArray[np.int64]


def tasks(result: Result) -> Columns:
    """Tasks, in the order of the task table. Times are ps. Raises InputError if ops were not recorded.

    step, sequence, token: of its step. name, kind, layer, head: -1 where it is of none. engine: -1 for a DMA. bytes, flops.
    ready, start, loaded, end, compute, work: as in `log.tasks`. wait: from ready to start. wait_channel: in [start, end],
    beyond its time at full speed.
    """
    log = result.rows("a table of tasks")
    form, step, table = derived.form(log), log.tasks.step, log.tasks
    return {
        "step": step, "sequence": log.steps.sequence[step], "token": log.steps.token[step],
        "name": _of_forms(log, lambda graph, task: graph.name(task))[form],
        "kind": np.array(derived.forms(log).kinds, dtype=object)[derived.kind(log)],
        "layer": derived.layer(log), "head": np.concatenate([graph.head for graph in log.graphs])[form],
        "engine": table.engine, "bytes": derived.bytes_moved(log), "flops": derived.flops(log),
        "ready": table.ready, "start": table.start, "loaded": table.loaded, "end": table.end,
        "compute": table.compute, "work": table.work,
        "wait": table.start - table.ready, "wait_channel": _channel_waits(log, result.plan.rules),
    }  # fmt: skip


def tokens(result: Result) -> Columns:
    """Output tokens, in order of step; of a batched step one row for each token of each member. Times are ps.

    step, sequence, token: which; several tokens of one step are those of a draft. start, end: of its step. took: end - start.
    compute, transfer, wait_engine, ...: the parts of that time, along the critical chain of the step.
    """
    log, members = result.log, result.log.members
    if not len(log.steps):
        raise result.scenario.error("record", f"expected all or steps for a table of tokens, found {result.scenario.record}")
    row = np.repeat(np.arange(len(members)), members.emitted)
    sequence, step = members.sequence[row], members.step[row]
    if log.batched is None:
        token = log.steps.token[step]
    else:
        token = np.empty(len(row), dtype=np.int32)
        order = np.lexsort((log.steps.end[step], sequence))
        first = np.searchsorted(sequence[order], sequence[order])
        token[order] = np.arange(len(row)) - first
    start, end = log.steps.released[step], log.steps.end[step]
    of_step = result.breakdown.tokens[step]
    parts = {name: of_step[:, i] for i, name in enumerate(PARTS)}
    return {"step": step, "sequence": sequence, "token": token, "start": start, "end": end, "took": end - start, **parts}


def requests(result: Result) -> Columns:
    """Requests, in order of number. Times are ps.

    sequence, arrival, queued, ttft, tpot (-1 where there is one token only), e2e, tokens, slowdown (against a machine of its
    own), counted (not in the warm-up).
    """
    r = result.requests
    return {
        "sequence": np.arange(len(r)), "arrival": r.arrival, "queued": r.queued, "ttft": r.ttft, "tpot": r.tpot,
        "e2e": r.e2e, "tokens": r.tokens, "slowdown": r.slowdown, "counted": r.counted,
    }  # fmt: skip


#: Tables by their names.
TABLES: dict[str, Callable[[Result], Columns]] = {"tasks": tasks, "tokens": tokens, "requests": requests}


def columns(result: Result, table: str) -> Columns:
    """The columns of a table. Raises InputError if there is no such table."""
    if table not in TABLES:
        raise InputError(f"expected a table of {', '.join(TABLES)}, found {table}")
    return TABLES[table](result)


def _of_forms(log: EventLog, of: Callable[[Any, int], str]) -> npt.NDArray[np.object_]:
    """A text for each task of all graphs."""
    return np.array([of(graph, task) for graph in log.graphs for task in range(len(graph))], dtype=object)


def _channel_waits(log: EventLog, rules: Rules) -> Times:
    """Picoseconds of [start, end] that a task waits for the channel, as `sim.analysis.breakdown` defines them [row]."""
    t = log.tasks
    held, moves = t.engine >= 0, t.work > 0
    transfer = np.where(moves, rules.latency + -(-t.work // rules.stripes), 0)
    if rules.execution == "stream":
        hidden = held & (t.compute >= t.launched + transfer)
        used = np.where(hidden, t.compute, t.launched + transfer)
    else:
        used = np.where(held, t.launched + t.end - t.loaded, 0) + transfer
    return np.asarray(t.end - t.start - used)
