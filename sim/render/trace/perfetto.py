"""Write an event log as a native Perfetto trace, which ui.perfetto.dev and trace_processor read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from sim.analysis.power import Power
from sim.base.errors import InputError, unknown
from sim.base.files import whole_file
from sim.log.tables import EventLog
from sim.render.trace.details import Details, Flows, arrows
from sim.render.trace.layout import Layout
from sim.render.trace.track_event import (
    Events,
    Interned,
    counter_packets,
    first_packet,
    metadata_packet,
    slice_packets,
    track_packet,
)
from sim.render.trace.tracks import Counter, Slices, nesting_order, to_ns

DETAILS = ("full", "ops", "engines")
FLOWS = ("all", "critical", "none")

#: Events encoded at a time: the padded matrix of a block then fits into a processor's cache.
BLOCK = 1 << 15


def check_options(detail: str, flows: str, critical: object | None) -> None:
    """Raise InputError if an option has no such value."""
    if detail not in DETAILS:
        raise unknown("trace detail", detail, DETAILS)
    if flows not in FLOWS:
        raise unknown("trace flows", flows, FLOWS)
    if flows == "critical" and critical is None and detail == "full":
        raise InputError("trace flows 'critical': the critical path of the run is needed")


def energies(power: Power | None) -> npt.NDArray[np.int64] | None:
    """Femtojoules of each task [row], if they are known and an argument can hold them."""
    return power.tasks if power is not None and power.tasks.dtype != object else None


def write_perfetto(
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
    """Write the trace of a run and return the number of slices in it.

    path: compressed if it ends in `.gz`. metadata: facts about the run, shown by the viewer.
    detail: `full`, `ops` (no arguments, no flows) or `engines` (no tokens either).
    flows: arrows for `all` dependencies, along the `critical` path, or `none`.
    window: picoseconds [from, to); only what overlaps it is written, whole.
    critical: rows of the task table along the critical path, in order; they get a track of their own. power: watts over time,
    for a counter.

    Times are rounded to nanoseconds; at detail `full` the arguments have them in picoseconds. The bytes depend on nothing
    but the arguments. Raises InputError for an unknown option and OSError if the file can't be written; then none is left.
    """
    check_options(detail, flows, critical)
    layout = Layout(log, window, critical, power)
    interned = Interned(names=layout.names, categories=layout.categories)
    details = Details(log, interned, energies(power)) if detail == "full" else None
    declarations = _Declarations(layout, interned)
    count = 0
    with whole_file(path) as file:
        file.write(first_packet())
        file.write(metadata_packet(metadata))
        for slices, arrow in _groups(log, layout, detail, flows):
            count += len(slices)
            file.write(declarations.packets())
            for block in _slice_blocks(slices, details, arrow):
                file.write(block.data)
        for counter in layout.counters():
            for chunk in _counter_blocks(counter):
                file.write(chunk.data)
    return count


def _groups(log: EventLog, layout: Layout, detail: str, flows: str) -> Iterator[tuple[Slices, Flows | None]]:
    """The slices of the machine, which carry the arrows, and then of one sequence after the other."""
    machine = layout.machine()
    drawn = detail == "full" and flows != "none"
    yield machine, Flows(log, arrows(log, machine, flows, layout.critical)) if drawn else None
    if detail != "engines":
        for slices in layout.sequences():
            yield slices, None


class _Declarations:
    """Packets for the tracks and strings that came since the last call."""

    def __init__(self, layout: Layout, interned: Interned) -> None:
        self._layout, self._interned, self._tracks = layout, interned, 0

    def packets(self) -> bytes:
        fresh = self._layout.tracks.all[self._tracks :]
        self._tracks += len(fresh)
        return b"".join(map(track_packet, fresh)) + self._interned.packet()


def _slice_blocks(slices: Slices, details: Details | None, flows: Flows | None) -> Iterator[npt.NDArray[np.uint8]]:
    index, begin = nesting_order(slices)
    for offset in range(0, len(index), BLOCK):
        mine, opens = index[offset : offset + BLOCK], begin[offset : offset + BLOCK]
        starts = slices.take(mine[opens])
        yield slice_packets(
            Events(
                begin=opens,
                ns=to_ns(np.where(opens, slices.start[mine], slices.end[mine])),
                track=slices.track[mine],
                name=starts.name,
                category=starts.category,
                color=starts.color,
                details=() if details is None else details.encode(starts, flows),
            )
        )


def _counter_blocks(counter: Counter) -> Iterator[npt.NDArray[np.uint8]]:
    for offset in range(0, len(counter.time), BLOCK):
        part = slice(offset, offset + BLOCK)
        yield counter_packets(to_ns(counter.time[part]), counter.track, counter.value[part])
