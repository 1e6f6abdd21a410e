"""The part of a plan that executors run, and questions that both of them ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.graph import QUANTITIES, IntArray, Members, StepLanes
from sim.base.errors import ConfigError
from sim.base.units import ceil_div, format_bytes
from sim.cost import CostModel
from sim.machine.arbiters import Arbiter
from sim.machine.machine import Machine
from sim.machine.routes import Route
from sim.machine.schedulers import Scheduler
from sim.mapping.settings import MOST_TILES
from sim.mapping.steps import Shape
from sim.mapping.tasks import CLASS_BIT, TaskGraph
from sim.serving.batch import ONE_MORE, Batch
from sim.serving.batching import ResolvedBatching
from sim.workload.requests import Request

#: Called with the output tokens that have come since the last call, and the picosecond at which the last of them came.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that executors need: the task graphs, the requests, the machine and its policies. It can be pickled.

    graph: the task graph of a step of one sequence that decodes one token. batching: how steps are made up if there are others
    (prefill, several sequences, drafts), with `graphs`, which gives the task graph of each; then `concurrency` may limit how
    many requests there are at a time, each coming `think` ps after one has ended. arbiter: each channel of each run has a
    copy of its own. bandwidth: of each channel, bytes/s (kept with the log, it does not enter times). latency: ps. launch: ps
    on an engine before it loads the operands of its task, part of the task's compute time. sram:
    bytes for operands in flight, None if unbounded. resident: bytes of weights that SRAM holds beside them.
    """

    graph: TaskGraph
    sequences: Sequence[Request]
    dependency: Literal["sampled", "known"]
    costs: CostModel
    machine: Machine
    scheduler: Scheduler
    overlap: bool
    arbiter: Arbiter
    bandwidth: int
    route: Route = "interleaved"
    latency: int = 0
    launch: int = 0
    sram: int | None = None
    resident: int = 0
    batching: ResolvedBatching | None = None
    graphs: Callable[[Shape], TaskGraph] | None = None
    concurrency: int | None = None
    think: int = 0

    @property
    def engines(self) -> int:
        """Number of engines."""
        return self.machine.engines

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.machine.channels)


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


def sram_use(setup: Setup, graph: TaskGraph | None = None, lanes: StepLanes | None = None, lane: int = 0) -> dict[int, int]:
    """Bytes of SRAM that the operands of each computing task take; by default of the step that decodes one token.

    Raises ConfigError if those of a task do not fit, and says what would.
    """
    graph = setup.graph if graph is None else graph
    costs = graph.ops.costs(0) if lanes is None else graph.ops.costs_of(lanes)[:, :, lane]
    moved = graph.bytes_moved(costs)
    use: dict[int, int] = {}
    for task in np.flatnonzero(graph.prefetch).tolist():
        consumer = int(graph.outputs[graph.output_start[task]])
        use[consumer] = use.get(consumer, 0) + max(1, int(moved[task]))
    if setup.sram is not None:
        tokens = 1 if lanes is None or lanes.members is None else int(lanes.members.query[:, lane].sum())
        _refuse_what_does_not_fit(setup, graph, costs, use, setup.sram, tokens)
    return use


def refuse_large_weights(setup: Setup, graph: TaskGraph, lanes: StepLanes, sram: int) -> None:
    """Raise ConfigError if the weights that an engine loads for one task exceed SRAM, where there is no prefetch."""
    costs = graph.ops.costs_of(lanes)[:, :, 0]
    own = np.flatnonzero((graph.moves & CLASS_BIT["weight"] != 0) & graph.computes)
    weights = graph.share(costs[QUANTITIES.index("weight")], own)
    tokens = 1 if lanes.members is None else int(lanes.members.query.sum())
    _refuse_what_does_not_fit(setup, graph, costs, dict(zip(own.tolist(), weights.tolist(), strict=True)), sram, tokens)


def _refuse_what_does_not_fit(
    setup: Setup, graph: TaskGraph, costs: IntArray, use: dict[int, int], sram: int, tokens: int
) -> None:  # fmt: skip
    """Raise ConfigError if the bytes that some task uses exceed SRAM. use: bytes by number of the task. tokens: new ones."""
    if max(use.values(), default=0) > sram:
        beside = f" (resident weights hold {format_bytes(setup.resident)} more)" if setup.resident else ""
        raise ConfigError("hardware.sram", f"{_what_would_fit(graph, costs, use, sram, tokens)}{beside}")


def _what_would_fit(graph: TaskGraph, costs: IntArray, use: dict[int, int], sram: int, tokens: int) -> str:
    """The operands that do not fit, and the number of tiles, of which two fit, or of new tokens with which they would."""
    flops, weights = costs[QUANTITIES.index("flops")].tolist(), costs[QUANTITIES.index("weight")].tolist()
    tiles: dict[str, int] = {}
    least = 0  # bytes that tiling cannot go below
    for task, size in use.items():
        op = int(graph.op[task])
        tiled = flops[op] and graph.head[task] < 0  # only weight matmuls
        least = max(least, ceil_div(weights[op], MOST_TILES) if tiled else size)
        if size > sram:
            tiles[graph.kind_of(task)] = max(tiles.get(graph.kind_of(task), 1), ceil_div(weights[op], max(sram // 2, 1)))
    if least > sram:
        advice = f"tiling does not cut it below {format_bytes(least)}"
        if most := tokens * sram // least if tokens > 1 else 0:  # rows of the embedding: one for each new token
            advice += f", a step of {most} new tokens instead of {tokens} would (workload.prefill.chunk)"
    else:
        twice = max(tiles.values()) <= MOST_TILES
        by_kind = ", ".join(f"{kind}: {min(count, MOST_TILES)}" for kind, count in tiles.items())
        advice = f"mapping.tiles of {min(max(tiles.values()), MOST_TILES)}"
        advice += f"{f', or of {{{by_kind}}},' if len(tiles) > 1 else ''} would fit"
        advice += " twice, so that one is loaded while another is used" if twice else ", one at a time"
    largest = max(use, key=lambda task: use[task])
    return f"{graph.name(largest)} needs {format_bytes(use[largest])} at once, SRAM has {format_bytes(sram)}; {advice}"
