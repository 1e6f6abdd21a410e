"""A trace in which a real run and its simulation stand under each other: step by step, op by op.

    MODEL
      measured    step > layer > op, as the device ran it
      simulated   the same as the simulator has it
      simulated is ahead by     ms or us, at the end of each op (below 0: behind)

Each step begins at the same instant on both lines, so that the one that is ahead can be seen. Ops of one name have one color.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.graph import IntArray, OpGraph
from sim.base.files import whole_file
from sim.base.units import PS_PER_MS, PS_PER_US
from sim.render.trace.protobuf import Part
from sim.render.trace.track_event import (
    Events,
    Interned,
    annotation_table,
    counter_packets,
    first_packet,
    metadata_packet,
    slice_packets,
    track_packet,
)
from sim.render.trace.tracks import Counter, Role, Slices, Strings, Tracks, nesting_order, thin, to_ns

MEASURED, SIMULATED, AHEAD = "measured", "simulated", "simulated is ahead by"

#: Between one step and the next there is this part of the longer of the two that stand under each other.
GAP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Ops as they ran in a step. pieces: [op (index into the graph), start, duration], ps from its start. length: ps."""

    pieces: IntArray
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A step as it was measured and as it was simulated. times: (measured, predicted), ps of each op."""

    name: str
    ops: OpGraph
    measured: Run
    simulated: Run
    times: tuple[IntArray, IntArray]


def write_double(path: str | os.PathLike[str], title: str, pairs: Sequence[Pair], *, metadata: Mapping[str, str]) -> int:
    """Write the trace and return the number of slices. Raises OSError; then no file is left."""
    tracks, interned = Tracks(), Interned()
    group = tracks.add(title, description="The same decode steps, measured on a real device and simulated.")
    lines = (
        tracks.add(MEASURED, group, "What the real model did, by torch's profiler. Gaps are code between ops."),
        tracks.add(SIMULATED, group, "What the simulator makes of it. Time between ops is part of the ops here."),
    )
    ends = [_leads(pair) for pair in pairs]
    largest = max((int(np.abs(lead).max(initial=0)) for _, lead in ends), default=0)
    unit, size = ("ms", PS_PER_MS) if largest >= PS_PER_MS else ("us", PS_PER_US)  # the UI shows 0.15 ms as "150m ms"
    ahead = tracks.add(AHEAD, group, "By how much the simulated op ended before the measured one.", unit)
    hues, begin = Strings(), 0
    groups: list[Slices] = []
    leads: list[Counter] = []
    details: list[dict[str, int | str]] = [{}]  # of steps and layers: none
    for pair, (time, lead) in zip(pairs, ends, strict=True):
        for track, run in zip(lines, (pair.measured, pair.simulated), strict=True):
            groups += _slices(pair, run, track, begin, len(details), interned, hues)
        details += _details(pair)
        leads.append(thin(Counter(ahead, time + begin, lead / size)))
        longer = max(pair.measured.length, pair.simulated.length)
        begin += longer + longer // GAP
    slices = Slices.concatenate(groups)
    arguments = annotation_table(interned, details)
    index, opens = nesting_order(slices)
    events = slices.take(index)
    begins = events.take(opens)
    packets = slice_packets(
        Events(
            begin=opens, ns=to_ns(np.where(opens, events.start, events.end)), track=events.track, name=begins.name,
            category=begins.category, color=begins.color, details=[Part([arguments(begins.row)])],
        )
    )  # fmt: skip
    with whole_file(path) as file:
        file.write(first_packet())
        file.write(metadata_packet(metadata))
        file.write(b"".join(map(track_packet, tracks.all)) + interned.packet())
        file.write(packets.data)
        for counter in leads:
            file.write(counter_packets(to_ns(counter.time), counter.track, counter.value).data)
    return len(slices)


def _leads(pair: Pair) -> tuple[IntArray, IntArray]:
    """The measured end of each op, and measured end - simulated end, in ps; 0 at the beginning of the step."""
    ends = []
    for run in (pair.measured, pair.simulated):
        end = np.full(len(pair.ops.ops), -1, dtype=np.int64)
        np.maximum.at(end, run.pieces[0], run.pieces[1] + run.pieces[2])
        ends.append(end)
    both = np.flatnonzero((ends[0] >= 0) & (ends[1] >= 0))
    order = both[np.argsort(ends[0][both], kind="stable")]
    measured, simulated = ends[0][order], ends[1][order]
    return np.concatenate([[0], measured]), np.concatenate([[0], measured - simulated])


def name_of(ops: OpGraph, op: int) -> str:
    """Name of an op on both lines."""
    return f"{ops.ops[op].kind} {ops.ops[op].part}".rstrip()


def _details(pair: Pair) -> list[dict[str, int | str]]:
    """The arguments of each op."""
    rows: list[dict[str, int | str]] = []
    for op, measured, predicted in zip(pair.ops.ops, *(column.tolist() for column in pair.times), strict=True):
        times = {"measured_ps": measured, "predicted_ps": predicted}
        error = f"{predicted / measured - 1:+.1%}" if measured else "none"
        rows.append({"path": op.path, "shape": f"[{', '.join(op.shape)}]", **times, "error": error})
    return rows


def _slices(pair: Pair, run: Run, track: int, begin: int, first: int, interned: Interned, hues: Strings) -> list[Slices]:
    """Step, layers and ops of one line. The arguments of op 0 are at `first`."""
    op, start, duration = run.pieces[:, np.argsort(run.pieces[1], kind="stable")]
    start, end = start + begin, start + begin + duration
    layer = np.array([o.layer for o in pair.ops.ops], dtype=np.int64)[op]
    names = np.array([interned.names(name_of(pair.ops, i)) for i in range(len(pair.ops.ops))], dtype=np.int64)
    colors = np.array([hues(o.kind) * 40_503 % 65_521 for o in pair.ops.ops], dtype=np.int64)
    opens = np.flatnonzero(np.diff(layer, prepend=-2) != 0)  # of what runs of one layer without another between
    closes = np.append(opens[1:], len(op)) - 1
    inside = layer[opens] >= 0
    opens, closes = opens[inside], closes[inside]
    whole = np.array([begin], dtype=np.int64)
    made = [
        Slices.make(
            track=track, start=whole, end=whole + run.length, name=interned.names(pair.name), row=0,
            category=interned.categories("step"), role=Role.STEP,
        ),
        Slices.make(
            track=track, start=start[opens], end=end[closes], row=0, depth=1, role=Role.LAYER,
            name=np.array([interned.names(f"layer {number}") for number in layer[opens].tolist()], dtype=np.int64),
            category=interned.categories("layer"),
        ),
    ]  # fmt: skip
    for depth, chosen in ((1, layer < 0), (2, layer >= 0)):
        made.append(
            Slices.make(
                track=track, start=start[chosen], end=end[chosen], name=names[op[chosen]], color=colors[op[chosen]],
                row=first + op[chosen], category=interned.categories("op"), depth=depth, role=Role.OP,
            )
        )  # fmt: skip
    return made
