"""Write an event log as Chrome JSON, for tools that don't read Perfetto's own format.

The format knows only processes and threads: the groups of tracks become processes, the tracks threads. It is about five
times the size of the native one and slower to write and to load.
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
            for event in _slices(slices, layout, threads, describe):
                file.write(b",\n" + _json(event))
        if detail == "full" and flows != "none":
            for event in _arrows(log, machine, threads, arrows(log, machine, flows, critical)):
                file.write(b",\n" + _json(event))
        for counter in layout.counters():
            for event in _counter(counter, threads):
                file.write(b",\n" + _json(event))
        file.write(b"\n]}\n")
    return sum(map(len, groups))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _us(ps: int) -> float:
    """The format's microseconds; three decimals, so whole nanoseconds, survive the way through a float."""
    return int(to_ns(np.array(ps))) / 1000


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
    """The arguments of one slice, as in the native trace."""

    def __init__(self, log: EventLog, energy: npt.NDArray[np.int64] | None) -> None:
        self._log, self._energy = log, energy
        self._owner = dict(zip(log.owner_words, ("sequence", "token"), strict=True))
        self._constant = [constant_args(graph, task) for graph in log.graphs for task in range(len(graph))]
        self._engine, self._channel = waited_of(log)
        self._form, self._flops, self._bytes = derived.form(log), derived.flops(log), derived.bytes_moved(log)

    def __call__(self, slices: Slices, i: int) -> Row:
        row, role = int(slices.row[i]), slices.role[i]
        args: Row = {"start_ps": int(slices.start[i]), "end_ps": int(slices.end[i])}
        if role in (Role.RUN, Role.MOVE, Role.OP):
            step = self._log.tasks.step[row]
            args |= self._constant[self._form[row]]
            args |= {
                "ready_ps": int(self._log.tasks.ready[row]),
                "flops": int(self._flops[row]),
                "bytes": int(self._bytes[row]),
            }
            args |= self._behind(row)
            args |= {} if self._energy is None else {"energy_fj": int(self._energy[row])}
            args |= {word: int(getattr(self._log.steps, name)[step]) for word, name in self._owner.items()}
        elif role == Role.STEP:
            args |= {word: int(getattr(self._log.steps, name)[row]) for word, name in self._owner.items()}
            args["context"] = int(self._log.steps.context[row])
        elif role == Role.PHASE and slices.cause[i] >= 0:
            args["waited_for"] = self._log.name(int(slices.cause[i]))
        return args

    def _behind(self, row: int) -> Row:
        """Names of the tasks that were in the way on the engine and on the channel."""
        waited = (self._engine[row] > 0, self._channel[row] > 0)
        pairs = zip(("engine_behind", "channel_behind"), waited, before_of(self._log), strict=True)
        return {name: self._log.name(int(before[row])) for name, was, before in pairs if was and before[row] >= 0}


def _slices(slices: Slices, layout: Layout, threads: _Threads, describe: _Arguments | None) -> Iterator[Row]:
    names, categories = layout.names.table(), layout.categories.table()
    # At one instant what is around comes first, or the reader nests it the wrong way round.
    for i in np.lexsort((slices.depth, slices.start)):
        pid, tid = threads.of[int(slices.track[i])]
        start, end = to_ns(slices.start[i]), to_ns(slices.end[i])
        event = {
            "ph": "X", "name": names[slices.name[i]], "cat": categories[slices.category[i]], "pid": pid, "tid": tid,
            "ts": int(start) / 1000, "dur": int(end - start) / 1000,
        }  # fmt: skip
        if describe is not None:
            event["args"] = describe(slices, i)
        yield event


def _arrows(log: EventLog, machine: Slices, threads: _Threads, pairs: tuple[npt.NDArray[np.int64], ...]) -> Iterator[Row]:
    track = np.zeros(len(log.tasks), dtype=np.int64)
    start, end = np.zeros_like(track), np.zeros_like(track)
    ends = machine.take(carries_flow(log, machine))
    track[ends.row], start[ends.row], end[ends.row] = ends.track, ends.start, ends.end
    for number, (producer, consumer) in enumerate(zip(*pairs, strict=True), start=1):
        for phase, row in (("s", producer), ("f", consumer)):
            pid, tid = threads.of[int(track[row])]
            event: Row = {
                "ph": phase,
                "id": number,
                "name": "needs",
                "cat": "flow",
                "pid": pid,
                "tid": tid,
                "ts": _us(start[row]),
            }
            yield event | ({"bp": "e"} if phase == "f" else {})


def _counter(counter: Counter, threads: _Threads) -> Iterator[Row]:
    pid, _ = threads.of[counter.track]
    for time, value in zip(counter.time, counter.value, strict=True):
        yield {"ph": "C", "name": threads.name(counter.track), "pid": pid, "ts": _us(time), "args": {"value": value.item()}}
