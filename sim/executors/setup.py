"""The part of a plan that executors run, and questions that both of them ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from models.graph import IntArray, Members, StepLanes
from models.lanes import kept_of
from sim.cost import CostModel, launches_of
from sim.machine.arbiters import Arbiter
from sim.machine.machine import TIER_PATHS, Machine, Path
from sim.machine.routes import Route
from sim.machine.schedulers import Scheduler
from sim.mapping.steps import Shape
from sim.mapping.tasks import TaskGraph
from sim.serving.batch import CONTEXT, HOME, LOADS, LOGITS, ONE_MORE, QUERY, SEQUENCE, Batch
from sim.serving.batching import ResolvedBatching
from sim.workload.requests import Request

#: Called with the output tokens that have come since the last call, and the picosecond at which the last of them came.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a link serves: its arbiter, bandwidth in bytes/s, and latency in ps. kind: of its channel."""

    arbiter: Arbiter
    bandwidth: int
    latency: int
    kind: Path = "link"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Channels that are divided together: one, or all that transfers cross several of. joint: the latter."""

    channels: range
    arbiter: Arbiter
    latency: int
    joint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that executors need: the task graphs, the requests, the machine and its policies. It can be pickled.

    graph: the task graph of a step of one sequence that decodes one token. batching: how steps are made up if there are others
    (prefill, several sequences, drafts), with `graphs`, which gives the task graph of each; then `concurrency` may limit how
    many requests there are at a time, each coming `think` ps after one has ended, and each step begins with `step_overhead` ps
    of the host. arbiter: of the memory; each channel of each run has a copy of its own. bandwidth: of each channel of the
    memory, bytes/s (kept with the log, it does not enter times). latency: of the memory, ps. links: those of the last channels
    of the machine, in order of their numbers. sram: bytes for operands in flight on each device, None if unbounded. resident:
    bytes of weights that its SRAM holds beside them.
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
    links: tuple[Link, ...] = ()
    sram: tuple[int, ...] | None = None
    resident: tuple[int, ...] = ()
    batching: ResolvedBatching | None = None
    graphs: Callable[[Shape], TaskGraph] | None = None
    concurrency: int | None = None
    think: int = 0
    step_overhead: int = 0

    def launches(self, graph: TaskGraph) -> IntArray:
        """Picoseconds on an engine before it loads the operands of a task, part of its compute time [task]."""
        return launches_of(self.costs, graph)

    @property
    def engines(self) -> int:
        """Number of engines."""
        return self.machine.engines

    @property
    def channels(self) -> int:
        """Number of channels, links included."""
        return len(self.machine.channels)

    @property
    def devices(self) -> int:
        """Number of devices that are simulated."""
        return len(self.machine.devices)

    @property
    def memory_channels(self) -> int:
        """Number of channels of all memories, which have the first numbers."""
        return self.channels - len(self.links)

    @property
    def memory_channels_each(self) -> int:
        """Number of channels of the memory of a device."""
        return self.memory_channels // self.devices

    @property
    def engines_each(self) -> int:
        """Number of engines of a device."""
        return self.machine.engines_each

    @property
    def units(self) -> list[Unit]:
        """All channels by unit, in order: the memories, the links between devices, to the network, and to each tier.

        Links between devices are one unit where transfers cross several of them, and those to the network another.
        """
        first = self.memory_channels
        found = [Unit(channels=range(i, i + 1), arbiter=self.arbiter, latency=self.latency) for i in range(first)]
        for number, link in enumerate(self.links, first):
            joint = bool(self.machine.paths) and link.kind not in TIER_PATHS
            if joint and number > first and self.links[number - first - 1].kind == link.kind:
                found[-1] = replace(found[-1], channels=range(found[-1].channels.start, number + 1))
            else:
                found.append(Unit(channels=range(number, number + 1), arbiter=link.arbiter, latency=link.latency, joint=joint))
        return found


def lanes_of(number: int, token: int, batch: Batch, lanes: int = 1) -> StepLanes:
    """A step of a loop, to be costed, and the next ones, so many in all, if its members decode on."""
    later = np.arange(lanes, dtype=np.int64)
    table = batch.table[:, :, None] + ONE_MORE[:, None] * later  # [member, field, lane]
    return StepLanes(
        sequence=np.full(lanes, number), token=token + later, context=batch.context + len(batch) * later,
        members=Members(
            sequence=table[:, SEQUENCE], context=table[:, CONTEXT], query=table[:, QUERY], loads=table[:, LOADS],
            kept=kept_of(table[:, CONTEXT], table[:, QUERY], table[:, LOGITS]), logits=table[:, LOGITS], home=table[:, HOME],
        ),
    )  # fmt: skip
