"""The plain numbers of a run: tokens, engines, memory, and what each kind of op took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.analysis.context import grid
from sim.eventlog import EventLog
from sim.tasks import WRITE_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One output token: from its release to the end of its last task, in ps."""

    sequence: int
    token: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """All tasks of one kind: their number, ps on engines, bytes through the channel, ps of channel time."""

    kind: str
    tasks: int
    compute: int
    transfer: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """`engine_busy`: ps per engine. `channel_busy`: ps in which some channel served; `delivered`: ps of bandwidth, each."""

    makespan: int
    tasks: int
    tokens: tuple[Token, ...]
    engine_busy: tuple[int, ...]
    channel_busy: int
    delivered: tuple[int, ...]
    bytes_read: int
    bytes_written: int
    kinds: tuple[Kind, ...]


def metrics(log: EventLog) -> Metrics:
    """Compute them all."""
    t = log.tasks
    by_engine = np.argsort(t.engine, kind="stable")  # a radix sort, on 16 bits
    until = np.searchsorted(t.engine[by_engine], np.arange(-1, log.engines), side="right")
    held = np.concatenate(([0], np.cumsum((t.end - t.start)[by_engine])))[until]
    moved = log.bytes_moved()
    read = written = 0
    kinds: dict[str, list[int]] = {}
    for number, graph in enumerate(log.graphs):
        steps = int((log.steps.graph == number).sum())
        compute, work, size = (grid(log, number, column).sum(axis=0) for column in (t.compute, t.work, moved))
        writes = (graph.moves & WRITE_BITS) != 0
        read, written = read + int(size[~writes].sum()), written + int(size[writes].sum())
        for kind, name in enumerate(graph.kinds):
            of = graph.kind == kind
            here = (steps * int(of.sum()), int(compute[of].sum()), int(work[of].sum()), int(size[of].sum()))
            kinds[name] = [a + b for a, b in zip(kinds.get(name, (0, 0, 0, 0)), here, strict=True)]
    return Metrics(
        makespan=log.makespan,
        tasks=len(t),
        tokens=tuple(
            Token(sequence=int(s), token=int(k), start=int(a), end=int(b))
            for s, k, a, b in zip(log.steps.sequence, log.steps.token, log.steps.released, log.steps.end, strict=True)
        ),
        engine_busy=tuple(np.diff(held).tolist()),
        channel_busy=_busy(log),
        delivered=tuple(int(log.grants.work[log.grants.channel == number].sum()) for number in range(log.channels)),
        bytes_read=read,
        bytes_written=written,
        kinds=tuple(
            Kind(kind=kind, tasks=tasks, compute=compute, transfer=transfer, bytes=size)
            for kind, (tasks, compute, transfer, size) in sorted(kinds.items(), key=lambda k: (-(k[1][1] + k[1][2]), k[0]))
        ),
    )


def _busy(log: EventLog) -> int:
    """Picoseconds in which some channel served somebody."""
    if not len(log.grants):
        return 0
    order = np.argsort(log.grants.start, kind="stable")
    start, until = log.grants.start[order], np.maximum.accumulate(log.grants.end[order])
    idle = np.maximum(start[1:] - until[:-1], 0).sum()
    return int(until[-1] - start[0] - idle)
