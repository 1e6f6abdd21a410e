"""All that a simulation needs, and what both executors ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.graph import QUANTITIES, IntArray, Members, StepLanes
from sim.base.errors import InputError
from sim.base.units import format_bytes
from sim.cost import CostModel
from sim.machine.arbiters import Arbiter
from sim.machine.routes import Route
from sim.machine.schedulers import Scheduler
from sim.mapping.lowering import MOST_TILES
from sim.mapping.steps import Shape
from sim.mapping.tasks import TaskGraph
from sim.serving.batcher import ONE_MORE, Batch, Batching
from sim.workload.requests import Request

#: Called with the output tokens that have come since the last call, and the picosecond at which the last of them came.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that a simulation needs.

    graph: the task graph of a step of one sequence that decodes one token. batching: how steps are made up if there are others
    (prefill, several sequences, drafts), with `graphs`, which gives the task graph of each; then `concurrency` may limit how
    many requests there are at a time, each coming `think` ps after one has ended. arbiter: each channel of each run has a
    copy of its own. bandwidth: of each channel, bytes/s (kept with the log, it does not enter times). latency: ps. sram:
    bytes, None if unbounded.
    """

    graph: TaskGraph
    sequences: Sequence[Request]
    dependency: Literal["sampled", "known"]
    costs: CostModel
    engines: int
    scheduler: Scheduler
    overlap: bool
    arbiter: Arbiter
    bandwidth: int
    channels: int = 1
    route: Route = "interleaved"
    latency: int = 0
    sram: int | None = None
    batching: Batching | None = None
    graphs: Callable[[Shape], TaskGraph] | None = None
    concurrency: int | None = None
    think: int = 0


def lanes_of(number: int, token: int, batch: Batch, lanes: int = 1) -> StepLanes:
    """A step of a loop, to be costed, and the next ones, so many in all, if its members decode on."""
    later = np.arange(lanes, dtype=np.int64)
    table = batch.table[:, :, None] + ONE_MORE[:, None] * later  # [member, field, lane]
    return StepLanes(
        sequence=np.full(lanes, number), token=token + later, context=batch.context + len(batch) * later,
        members=Members(
            sequence=table[:, 0], context=table[:, 1], query=table[:, 2], loads=table[:, 3], logits=np.full(lanes, batch.logits)
        ),
    )  # fmt: skip


class SramError(InputError):
    """Operands of a step do not fit SRAM."""


def sram_use(setup: Setup, graph: TaskGraph | None = None, lanes: StepLanes | None = None) -> dict[int, int]:
    """Bytes of SRAM that the operand of each computing task takes; raises SramError if one does not fit.

    Of the step that decodes one token, or of this one.
    """
    graph = setup.graph if graph is None else graph
    costs = graph.ops.costs(0) if lanes is None else graph.ops.costs_of(lanes)[:, :, 0]
    moved = graph.bytes_moved(costs)
    use: dict[int, int] = {}
    for task in np.flatnonzero(graph.prefetch).tolist():
        consumer = int(graph.outputs[graph.output_start[task]])
        use[consumer] = use.get(consumer, 0) + max(1, int(moved[task]))
    if setup.sram is not None and max(use.values(), default=0) > setup.sram:
        tokens = 1 if lanes is None or lanes.members is None else int(lanes.members.query.sum())
        raise SramError(_what_would_fit(graph, costs, use, setup.sram, tokens))
    return use


def _what_would_fit(graph: TaskGraph, costs: IntArray, use: dict[int, int], sram: int, tokens: int) -> str:
    flops, weights = costs[QUANTITIES.index("flops")].tolist(), costs[QUANTITIES.index("weight")].tolist()
    tiles: dict[str, int] = {}
    least = 0  # bytes that tiling cannot go below
    for task, size in use.items():
        op = int(graph.op[task])
        tiled = flops[op] and graph.head[task] < 0  # only products by weights
        least = max(least, -(-weights[op] // MOST_TILES) if tiled else size)
        if size > sram:
            tiles[graph.kind_of(task)] = max(tiles.get(graph.kind_of(task), 1), -(-weights[op] // max(sram, 1)))
    if least > sram:
        advice = f"tiling does not cut it below {format_bytes(least)}"
        if most := tokens * sram // least if tokens > 1 else 0:  # rows of the embedding: one for each new token
            advice += f", a step of {most} new tokens instead of {tokens} would (workload.prefill.chunk)"
    else:
        by_kind = ", ".join(f"{kind}: {count}" for kind, count in tiles.items())
        advice = f"mapping.tiles of {max(tiles.values())} would fit" + (f", or of {{{by_kind}}}" if len(tiles) > 1 else "")
    largest = max(use, key=lambda task: use[task])
    return f"{graph.name(largest)} needs {format_bytes(use[largest])} at once, SRAM has {format_bytes(sram)}; {advice}"
