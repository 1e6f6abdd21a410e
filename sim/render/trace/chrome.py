"""Write an event log as Chrome JSON, for tools that don't read Perfetto's own format.

The format knows only processes and threads: the groups of tracks become processes, the tracks threads. It is three to
five times the size of the native one and takes a few times as long to write and to load.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.analysis.power import Power
from sim.base.files import whole_file
from sim.log import derived
from sim.log.tables import EventLog
from sim.render.trace.details import arrows, before_of, carries_flow, constant_args, waited_of
from sim.render.trace.layout import Layout
from sim.render.trace.perfetto import check_options, energies
from sim.render.trace.tracks import Counter, Role, Slices, Track, Tracks, to_ns

Row = dict[str, Any]
Times = npt.NDArray[np.int64]

BLOCK = 1 << 14  # events that are encoded at a time


def write_chrome(
    log: EventLog,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str],
    detail: str = "full",
    flows: str = "all",
    window: tuple[int, int] | None = None,
    critical: npt.NDArray[np.int64] | None = None,
    power: Power | None = None,
) -> int:
    """Write the trace of a run as Chrome JSON and return the number of slices. For the arguments see `write_perfetto`."""
    check_options(detail, flows, critical)
    layout = Layout(log, window, critical, power)
    machine = layout.machine()
    groups = [machine, *(layout.sequences() if detail != "engines" else ())]
    threads = _Threads(layout.tracks)
    describe = _Arguments(log, energies(power)) if detail == "full" else None
    with whole_file(path) as file:
        file.write(b'{"displayTimeUnit":"ns","otherData":' + _json(dict(metadata)) + b',"traceEvents":[\n')
        file.write(b",\n".join(map(_json, threads.declarations())))
        for slices in groups:
            for block in _slices(slices, layout, threads, describe):
                file.write(block)
        if detail == "full" and flows != "none":
            for block in _arrows(log, machine, threads, arrows(log, machine, flows, critical)):
                file.write(block)
        for counter in layout.counters():
            for event in _counter(counter, threads):
                file.write(b",\n" + _json(event))
        file.write(b"\n]}\n")
    return sum(map(len, groups))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _inside(data: Mapping[str, object]) -> str:
    """The members of a JSON object that follow others."""
    return "".join(f",{_text(key)}:{_json(value).decode()}" for key, value in data.items())


def _us(ns: int) -> str:
    """The format's microseconds; three decimals, so whole nanoseconds, survive the way through a float."""
    return f"{ns // 1000}.{ns % 1000:03}"


class _Threads:
    """Which process and thread stand for each track: a process per group of tracks, a thread per track."""

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = {track.uuid: track for track in tracks.all}
        self.of = {uuid: (track.parent or uuid, uuid) for uuid, track in self._tracks.items()}

    def name(self, uuid: int) -> str:
        return self._tracks[uuid].name

    def _path(self, track: Track) -> str:
        above = self._tracks.get(track.parent)
        return track.name if above is None else f"{self._path(above)} / {track.name}"

    def declarations(self) -> Iterator[Row]:
        groups = dict.fromkeys(pid for pid, _ in self.of.values())
        for order, pid in enumerate(groups):
            yield _meta("process_name", pid, 0, name=self._path(self._tracks[pid]))
            yield _meta("process_sort_index", pid, 0, sort_index=order)
        for uuid, (pid, tid) in self.of.items():
            if self._tracks[uuid].unit is None:
                yield _meta("thread_name", pid, tid, name=self._tracks[uuid].name)
                yield _meta("thread_sort_index", pid, tid, sort_index=self._tracks[uuid].rank)


def _meta(event: str, pid: int, tid: int, **args: object) -> Row:
    return {"ph": "M", "name": event, "pid": pid, "tid": tid, "args": args}


class _Arguments:
    """The arguments of slices, as in the native trace, as JSON. What no step changes is encoded once per task of a graph."""

    def __init__(self, log: EventLog, energy: Times | None) -> None:
        self._log, self._energy = log, np.zeros(len(log.tasks), dtype=np.int64) if energy is None else energy
        tasks = [(graph, task) for graph in log.graphs for task in range(len(graph))]
        self._constant = [_inside(constant_args(graph, task)) for graph, task in tasks]
        self._names = [_text(graph.name(task)) for graph, task in tasks]
        self._form, self._flops, self._bytes = derived.form(log), derived.flops(log), derived.bytes_moved(log)
        self._behind = {
            name: np.where(waited > 0, before, -1)
            for name, waited, before in zip(("engine_behind", "channel_behind"), waited_of(log), before_of(log), strict=True)
        }

    def __call__(self, slices: Slices) -> list[str]:
        """One text for each slice."""
        texts = [f'"start_ps":{a},"end_ps":{b}' for a, b in zip(slices.start.tolist(), slices.end.tolist(), strict=True)]
        of_tasks = np.isin(slices.role, (Role.RUN, Role.MOVE, Role.OP))
        waits = (slices.role == Role.PHASE) & (slices.cause >= 0)
        for chosen, told in (
            (of_tasks, self._tasks(slices.row[of_tasks])),
            (slices.role == Role.STEP, self._steps(slices.row[slices.role == Role.STEP])),
            (waits, self._named("waited_for", slices.cause[waits])),
        ):
            for i, text in zip(np.flatnonzero(chosen).tolist(), told, strict=True):
                texts[i] += text
        return texts

    def _tasks(self, rows: Times) -> list[str]:
        tasks = self._log.tasks
        texts = [f'{self._constant[f]},"ready_ps":{t}' for f, t in self._pairs(self._form[rows], tasks.ready[rows])]
        for name, values in (("flops", self._flops), ("bytes", self._bytes), ("energy_fj", self._energy)):
            some = np.flatnonzero(values[rows] > 0)
            for i, value in self._pairs(some, values[rows[some]]):
                texts[i] += f',"{name}":{value}'
        for name, before in self._behind.items():
            some = np.flatnonzero(before[rows] >= 0)
            for i, text in zip(some.tolist(), self._named(name, before[rows[some]]), strict=True):
                texts[i] += text
        return [a + b for a, b in zip(texts, self._owners(tasks.step[rows]), strict=True)]

    def _steps(self, steps: npt.NDArray[np.integer]) -> list[str]:
        context = self._log.steps.context[steps].tolist()
        return [f'{owner},"context":{length}' for owner, length in zip(self._owners(steps), context, strict=True)]

    def _owners(self, steps: npt.NDArray[np.integer]) -> list[str]:
        (sequence, token), table = self._log.owner_words, self._log.steps
        return [f',"{sequence}":{a},"{token}":{b}' for a, b in self._pairs(table.sequence[steps], table.token[steps])]

    def _named(self, argument: str, rows: Times) -> list[str]:
        return [f',"{argument}":{self._names[form]}' for form in self._form[rows].tolist()]

    @staticmethod
    def _pairs(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> Iterator[tuple[int, int]]:
        return zip(first.tolist(), second.tolist(), strict=True)


def _slices(slices: Slices, layout: Layout, threads: _Threads, describe: _Arguments | None) -> Iterator[bytes]:
    """Events of slices, in blocks."""
    about = [
        [f'{{"ph":"X","name":{_text(name)}' for name in layout.names.table()],
        [f',"cat":{_text(name)}' for name in layout.categories.table()],
    ]
    where = {uuid: f',"pid":{pid},"tid":{tid}' for uuid, (pid, tid) in threads.of.items()}
    # At one instant what is around comes first, or the reader nests it the wrong way round.
    order = np.lexsort((slices.depth, slices.start))
    for first in range(0, len(order), BLOCK):
        block = slices.take(order[first : first + BLOCK])
        start, end = to_ns(block.start), to_ns(block.end)
        columns = (block.name, block.category, block.track, start, end - start)
        args = [""] * len(block) if describe is None else [f',"args":{{{text}}}' for text in describe(block)]
        yield "".join(
            f',\n{about[0][n]}{about[1][c]}{where[t]},"ts":{_us(a)},"dur":{_us(d)}{told}}}'
            for n, c, t, a, d, told in zip(*(column.tolist() for column in columns), args, strict=True)
        ).encode()


def _arrows(log: EventLog, machine: Slices, threads: _Threads, pairs: tuple[Times, ...]) -> Iterator[bytes]:
    """Events of arrows, two for each, in blocks."""
    rows = len(log.tasks)
    track, start = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    ends = machine.take(carries_flow(log, machine))
    track[ends.row], start[ends.row] = ends.track, to_ns(ends.start)
    where = {uuid: f'"pid":{pid},"tid":{tid}' for uuid, (pid, tid) in threads.of.items()}
    for first in range(0, len(pairs[0]), BLOCK):
        some = [pair[first : first + BLOCK] for pair in pairs]
        columns = [column[each].tolist() for each in some for column in (track, start)]
        yield "".join(
            f',\n{{"ph":"s","id":{number},"name":"needs","cat":"flow",{where[a]},"ts":{_us(b)}}}'
            f',\n{{"ph":"f","id":{number},"name":"needs","cat":"flow",{where[c]},"ts":{_us(d)},"bp":"e"}}'
            for number, (a, b, c, d) in enumerate(zip(*columns, strict=True), start=first + 1)
        ).encode()


def _counter(counter: Counter, threads: _Threads) -> Iterator[Row]:
    pid, _ = threads.of[counter.track]
    for time, value in zip((to_ns(counter.time) / 1000).tolist(), counter.value.tolist(), strict=True):
        yield {"ph": "C", "name": threads.name(counter.track), "pid": pid, "ts": time, "args": {"value": value}}
