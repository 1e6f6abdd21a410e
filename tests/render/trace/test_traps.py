"""Traces that trace_processor corrupts silently.

Each test shows first, on packets made by the plain encoder, that the trap is real and how it shows, and then that the
writer keeps out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sim.render.trace import write_perfetto
from sim.render.trace.track_event import Interned, first_packet, track_packet
from sim.render.trace.tracks import Role, Slices, Track, lanes, nesting_order, to_ns
from tests.render.trace.logs import decoder, run
from tests.render.trace.reference import Slice, slice_packet
from tests.tools.trace_processor import TraceProcessor

Load = Callable[[Path], TraceProcessor]

A, B = 1, 2  # interned names


def spoiled(
    load: Load, path: Path, *records: Slice, tracks: tuple[Track, ...] = (Track(1, "line"), Track(2, "other"))
) -> TraceProcessor:
    interned = Interned()
    for name in "AB":
        interned.names(name)
    interned.categories("op")
    path.write_bytes(
        first_packet() + b"".join(map(track_packet, tracks)) + interned.packet() + b"".join(map(slice_packet, records))
    )
    return load(path)


def durations(trace: TraceProcessor) -> dict[str, int]:
    return {row["name"]: row["dur"] for row in trace.query("SELECT name, dur FROM slice")}


def test_overlap_on_a_track(load: Load, tmp_path: Path) -> None:
    records = [Slice(True, 0, 1, A), Slice(True, 5, 1, B), Slice(False, 10, 1), Slice(False, 17, 1)]
    trace = spoiled(load, tmp_path / "overlap.pftrace", *records)
    assert trace.problems() == []  # nothing is reported, yet A was to last 10 and B 12:
    assert durations(trace) == {"A": 17, "B": 5}

    start, end = np.array([0, 5000]), np.array([10_000, 17_000])
    assert len(set(lanes(np.zeros(2, dtype=np.int64), start, end).tolist())) == 2


def test_begin_before_end_at_one_instant(load: Load, tmp_path: Path) -> None:
    records = [Slice(True, 0, 1, A), Slice(True, 10, 1, B), Slice(False, 10, 1), Slice(False, 20, 1)]
    trace = spoiled(load, tmp_path / "instant.pftrace", *records)
    assert trace.problems() == []
    assert durations(trace) == {"A": 20, "B": 0}  # and not 10 each

    touching = Slices.make(
        track=1, start=np.array([10_000, 0]), end=np.array([20_000, 10_000]), name=np.array([B, A]), category=1, role=Role.OP
    )
    index, begin = nesting_order(touching)
    ns = to_ns(np.where(begin, touching.start[index], touching.end[index]))
    records = [Slice(bool(b), int(at), 1, int(touching.name[i])) for i, b, at in zip(index, begin, ns, strict=True)]
    assert durations(spoiled(load, tmp_path / "fixed.pftrace", *records)) == {"A": 10, "B": 10}


def test_missing_end(load: Load, tmp_path: Path) -> None:
    trace = spoiled(load, tmp_path / "endless.pftrace", Slice(True, 0, 1, A), Slice(True, 5, 2, B), Slice(False, 9, 2))
    assert [row["problem"] for row in trace.problems()] == ["slices without an end"]


def test_undefined_parent(load: Load, tmp_path: Path) -> None:
    orphan = Track(1, "line", parent=77)
    trace = spoiled(load, tmp_path / "orphan.pftrace", Slice(True, 0, 1, A), Slice(False, 9, 1), tracks=(orphan,))
    assert trace.problems() != [] or trace.query("SELECT 1 FROM slice") == []

    write_perfetto(run(decoder()), tmp_path / "whole.pftrace", metadata={})
    tracks = load(tmp_path / "whole.pftrace").query("SELECT name, parent_id FROM track")
    assert {track["name"] for track in tracks if track["parent_id"] is None} == {"Machine", "Sequences"}


def test_undefined_string(load: Load, tmp_path: Path) -> None:
    trace = spoiled(load, tmp_path / "nameless.pftrace", Slice(True, 0, 1, 99), Slice(False, 9, 1))
    assert trace.problems() != []


def test_arrow_that_ends_where_none_began(load: Load, tmp_path: Path) -> None:
    records = [Slice(True, 0, 1, A, arriving=[5]), Slice(False, 9, 1), Slice(True, 10, 2, B, leaving=[5]), Slice(False, 19, 2)]
    trace = spoiled(load, tmp_path / "arrow.pftrace", *records)
    assert trace.query("SELECT * FROM flow") == []  # and not a word about it, either
