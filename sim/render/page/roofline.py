"""Roofline of a run: each kind of op under the roofs of the machine (Williams, Waterman, Patterson, 2009).

The intensity of a kind is its FLOPs over the bytes that it moved through the channel, loads made for it included; its rate is
its FLOPs over the time in which any of it was on an engine or was served by a channel. So no kind can be above the roofs of
the machine as a whole: all engines at their peak, all channels at their bandwidth. FLOPs are two per multiply-add of a matrix
product; of ops without products, one per element. Vector work beside products overlaps them, and does not count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.graph import QUANTITIES
from sim.base.units import PS_PER_S
from sim.log import derived
from sim.log.tables import EventLog
from sim.runs.result import Result

Ints = npt.NDArray[np.int64]

#: How durations relate to the roofs, by cost model.
NOTES = {
    "roofline": "", "kernel": "A kernel begins with a launch, and reaches a share of the rates: it stays below the roofs.",
}  # fmt: skip
FLOPS, VECTOR_OPS = QUANTITIES.index("flops"), QUANTITIES.index("vector_ops")


def roofline(result: Result) -> dict[str, Any]:
    """JSON-ready: `roofs` of the machine and `kinds` with flops, bytes, ps, intensity (null without bytes) and rate."""
    log, engines, model = result.log, result.scenario.hardware.engines, result.scenario.cost.model
    names = {kind: i for i, kind in enumerate(sorted({op.kind for graph in log.graphs for op in graph.ops.ops}))}
    flops, dtypes = _flops(log, names)
    moved, active = _moved(log, names)
    kinds = [
        {
            "kind": name,
            "flops": int(flops[i]),
            "bytes": int(moved[i]),
            "active_ps": int(active[i]),
            "intensity": float(flops[i] / moved[i]) if moved[i] else None,
            "flops_per_s": float(flops[i] / active[i] * PS_PER_S),
        }
        for name, i in names.items()
        if flops[i] and active[i]
    ]
    roofs = {dtype: peak * engines.count for dtype in dtypes if (peak := engines.peak(dtype)) is not None}
    return {
        "bytes_per_s": log.bandwidth * log.machine.memories,
        "roofs": {**dict(sorted(roofs.items(), key=lambda roof: -roof[1])), "vector": engines.vector_flops * engines.count},
        "nominal": model not in {"roofline", "kernel"},
        "note": NOTES.get(model, "Durations come from a table here, so the roofs are only nominal."),
        "kinds": sorted(kinds, key=lambda kind: (-kind["active_ps"], kind["kind"])),
    }


def _flops(log: EventLog, names: dict[str, int]) -> tuple[Ints, list[str]]:
    """FLOPs per kind of op [kind], by its number in `names`, and the number formats that matmuls computed in."""
    total = np.zeros(len(names), dtype=np.int64)
    dtypes = set()
    for graph, _, costs in derived.cost_blocks(log):
        computed, ops = np.unique(graph.op[graph.computes]), graph.ops.ops
        kind = np.array([names[ops[op].kind] for op in computed], dtype=np.int64)
        np.add.at(total, kind, np.where(costs[FLOPS] > 0, costs[FLOPS], costs[VECTOR_OPS]).sum(axis=1)[computed])
        dtypes |= {ops[op].dtype for op in computed if costs[FLOPS][op].any()}
    return total, sorted(dtypes)


def _moved(log: EventLog, names: dict[str, int]) -> tuple[Ints, Ints]:
    """Bytes through the channel, and ps in which any of its tasks was on an engine or being served, per kind of op [kind]."""
    tasks, services = log.tasks, log.services
    of_form = [np.array([names[op.kind] for op in graph.ops.ops], dtype=np.int64)[graph.op] for graph in log.graphs]
    kind = np.concatenate([np.zeros(0, dtype=np.int64), *of_form])[derived.form(log)]
    moved = np.zeros(len(names), dtype=np.int64)
    np.add.at(moved, kind, log.bytes_moved())
    held = np.flatnonzero(tasks.engine >= 0)
    which = np.concatenate([kind[held], kind[services.task]])
    start, end = np.concatenate([tasks.start[held], services.start]), np.concatenate([tasks.end[held], services.end])
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], np.arange(len(names) + 1))
    of_kind = [order[a:b] for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    active = np.array([_union(start[rows], end[rows]) for rows in of_kind], dtype=np.int64)
    return moved, active


def _union(start: Ints, end: Ints) -> int:
    """Length of the union of intervals, in ps."""
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reached = np.concatenate(([0], np.maximum.accumulate(end)))[:-1] if len(end) else end
    return int(np.maximum(end - np.maximum(start, reached), 0).sum())
