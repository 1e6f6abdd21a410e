"""The plain numbers of a run: tokens, engines, memory, and what each kind of op took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    """`engine_busy`: ps per engine. `channel_busy`: ps in which the channel served somebody; `delivered`: ps of its bandwidth."""

    makespan: int
    tasks: int
    tokens: tuple[Token, ...]
    engine_busy: tuple[int, ...]
    channel_busy: int
    delivered: int
    bytes_read: int
    bytes_written: int
    kinds: tuple[Kind, ...]


def metrics(log: EventLog) -> Metrics:
    """Compute them all."""
    t = log.tasks
    held = t.engine >= 0
    busy = np.zeros(log.engines, dtype=np.int64)
    np.add.at(busy, t.engine[held], (t.end - t.start)[held])
    intervals = np.unique(np.stack([log.grants.channel.astype(np.int64), log.grants.start, log.grants.end]), axis=1)
    moved = log.bytes_moved()
    kind, names = _kinds(log)
    written = np.zeros(len(t), dtype=np.bool_)
    for step in range(len(log.steps)):
        graph = log.graphs[log.steps.graph[step]]
        written[log.rows(step)] = (graph.moves & WRITE_BITS) != 0

    def total(column: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
        sums = np.zeros(len(names), dtype=np.int64)
        np.add.at(sums, kind, column)
        return [int(x) for x in sums]

    kinds = [
        Kind(kind=name, tasks=count, compute=compute, transfer=transfer, bytes=size)
        for name, count, compute, transfer, size in zip(
            names, total(np.ones_like(t.start)), total(t.compute), total(t.work), total(moved), strict=True
        )
    ]
    return Metrics(
        makespan=log.makespan,
        tasks=len(t),
        tokens=tuple(
            Token(sequence=int(s), token=int(k), start=int(a), end=int(b))
            for s, k, a, b in zip(log.steps.sequence, log.steps.token, log.steps.released, log.steps.end, strict=True)
        ),
        engine_busy=tuple(int(x) for x in busy),
        channel_busy=int((intervals[2] - intervals[1]).sum()),
        delivered=int(log.grants.work.sum()),
        bytes_read=int(moved[~written].sum()),
        bytes_written=int(moved[written].sum()),
        kinds=tuple(sorted(kinds, key=lambda k: (-(k.compute + k.transfer), k.kind))),
    )


def _kinds(log: EventLog) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[str]]:
    """The kind of each row, as an index into a list of names."""
    names = sorted({kind for graph in log.graphs for kind in graph.kinds})
    column = np.empty(len(log.tasks), dtype=np.int64)
    number = [np.array([names.index(kind) for kind in graph.kinds], dtype=np.int64)[graph.kind] for graph in log.graphs]
    for step in range(len(log.steps)):
        column[log.rows(step)] = number[int(log.steps.graph[step])]
    return column, names
