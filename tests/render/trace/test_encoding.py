"""The columnar encoder gives the bytes of the plain one, record by record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.render.trace import protobuf, track_event, write_perfetto
from sim.render.trace.protobuf import Part, pack
from sim.render.trace.track_event import Events, counter_packets, flow_field, integer_annotation, slice_packets, text_annotation
from tests.render.trace import reference
from tests.render.trace.logs import decoder, run

small = st.integers(1, 300)
time = st.one_of(st.integers(0, 200), st.integers(0, 1 << 40), st.integers(0, (1 << 63) - 1))


@st.composite
def slices(draw: st.DrawFn) -> list[reference.Slice]:
    """Records that all may have the same arguments, each of which is there or not."""
    keys = draw(st.lists(st.tuples(small, st.sampled_from((reference.INTEGER, reference.TEXT))), max_size=5))
    records = []
    for _ in range(draw(st.integers(1, 12))):
        begin = draw(st.booleans())
        record = reference.Slice(begin, draw(time), draw(small))
        if begin:
            record.name, record.category, record.color = draw(small), draw(small), draw(st.integers(0, 1 << 20))
            record.args = [(key, kind, draw(time)) for key, kind in keys if draw(st.booleans())]
            record.leaving = draw(st.lists(time, max_size=3))
            record.arriving = draw(st.lists(time, max_size=3))
        records.append(record)
    return records


def columns(records: list[reference.Slice]) -> Events:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(record, name) for record in records], dtype=np.int64)

    begins = [record for record in records if record.begin]
    details: list[Part] = []
    # A column for each argument at each place in the list, so that the order within a record is kept.
    for place in range(max((len(record.args) for record in begins), default=0)):
        for key, kind in sorted({record.args[place][:2] for record in begins if len(record.args) > place}):
            rows = [
                i for i, record in enumerate(begins) if [arg[:2] for arg in record.args[place : place + 1]] == [(key, kind)]
            ]
            values = np.array([begins[i].args[place][2] for i in rows], dtype=np.int64)
            encode = integer_annotation if kind == reference.INTEGER else text_annotation
            details.append(Part([encode(key, values)], np.array(rows)))
    for name, terminating in (("leaving", False), ("arriving", True)):
        flows = [getattr(record, name) for record in begins]
        ids = np.array([flow for each in flows for flow in each], dtype=np.int64)
        counts = np.array([len(each) for each in flows], dtype=np.int64)
        details.append(Part([flow_field(ids, terminating=terminating)], np.arange(len(begins)), counts))
    of_begins = {name: column(name)[column("begin") != 0] for name in ("name", "category", "color")}
    return Events(begin=column("begin").astype(bool), ns=column("ns"), track=column("track"), details=details, **of_begins)


@given(slices())
def test_slices_equal_the_reference(records: list[reference.Slice]) -> None:
    assert slice_packets(columns(records)).tobytes() == b"".join(map(reference.slice_packet, records))


@given(st.lists(st.tuples(time, st.integers(0, (1 << 63) - 1)), min_size=1), small)
def test_integer_counters_equal_the_reference(values: list[tuple[int, int]], track: int) -> None:
    ns, value = np.array(values, dtype=np.int64).T
    expected = b"".join(reference.counter_packet(at, track, each) for at, each in values)
    assert counter_packets(ns, track, value).tobytes() == expected


@given(st.lists(st.tuples(time, st.floats(allow_nan=False)), min_size=1), small)
def test_real_counters_equal_the_reference(values: list[tuple[int, float]], track: int) -> None:
    ns = np.array([at for at, _ in values], dtype=np.int64)
    expected = b"".join(reference.counter_packet(at, track, each) for at, each in values)
    assert counter_packets(ns, track, np.array([each for _, each in values])).tobytes() == expected


@given(st.lists(time), st.binary(max_size=7))
def test_varints(values: list[int], prefix: bytes) -> None:
    cells = protobuf.varints(np.array(values, dtype=np.int64), prefix)
    assert pack([Part([cells])], len(values)).tobytes() == b"".join(prefix + reference.varint(value) for value in values)
    assert [protobuf.varint(value) for value in values] == [reference.varint(value) for value in values]


@given(st.lists(st.tuples(st.binary(max_size=20), st.booleans(), st.binary(max_size=3), st.integers(0, 3)), min_size=1))
def test_parts_of_rows(rows: list[tuple[bytes, bool, bytes, int]]) -> None:
    first, some = (
        protobuf.Table([a for a, _, _, _ in rows]),
        np.array([i for i, row in enumerate(rows) if row[1]], dtype=np.int64),
    )
    second, count = protobuf.Table([rows[i][2] for i in some]), np.array([row[3] for row in rows])
    third = protobuf.fixed64(np.arange(count.sum(), dtype=np.uint64), b"x")
    parts = [
        Part([first(np.arange(len(rows))), protobuf.constant(b"!")]),
        Part([second(np.arange(len(some)))], some),
        Part([third], np.arange(len(rows)), count),
    ]
    number = iter(range(int(count.sum())))
    expected = [
        a + b"!" + b * there + b"".join(b"x" + next(number).to_bytes(8, "little") for _ in range(n)) for a, there, b, n in rows
    ]
    assert pack(parts, len(rows)).tobytes() == b"".join(expected)
    assert protobuf.sizes(parts, len(rows)).tolist() == [len(row) for row in expected]


def test_strings_are_declared_once() -> None:
    interned = track_event.Interned()
    interned.names("a")
    first = interned.packet()
    assert reference.sub(2, reference.uint(1, 1) + reference.sub(2, b"a")) in first
    assert interned.packet() == b""
    interned.names("b")
    interned.names("a")
    second = interned.packet()
    assert b"b" in second
    assert reference.sub(2, b"a") not in second


def packets(content: bytes) -> Iterator[bytes]:
    """The packets of a trace, as they stand in the file."""
    at = 0
    while at < len(content):
        start, size, shift = at, 0, 0
        while True:  # a length in varint follows the one-byte tag
            at += 1
            size |= (content[at] & 0x7F) << shift
            shift += 7
            if content[at] < 0x80:
                break
        at += 1 + size
        yield content[start:at]


def encoded_again(packet: Any) -> bytes:
    """The plain encoding of what protobuf's own classes read."""
    event = packet.track_event
    if event.type == event.TYPE_COUNTER:
        value = event.counter_value if event.HasField("counter_value") else event.double_counter_value
        return reference.counter_packet(packet.timestamp, event.track_uuid, value)
    record = reference.Slice(event.type == event.TYPE_SLICE_BEGIN, packet.timestamp, event.track_uuid)
    if record.begin:
        record.name, record.category, record.color = event.name_iid, event.category_iids[0], event.correlation_id
        record.leaving, record.arriving = list(event.flow_ids), list(event.terminating_flow_ids)
        for arg in event.debug_annotations:
            text = arg.HasField("string_value_iid")
            value = arg.string_value_iid if text else arg.int_value
            record.args.append((arg.name_iid, reference.TEXT if text else reference.INTEGER, value))
    return reference.slice_packet(record)


@pytest.mark.parametrize("overlap", [True, False])
def test_whole_traces_equal_the_reference(tmp_path: Path, overlap: bool) -> None:
    messages = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    path = tmp_path / "toy.pftrace"
    slices = write_perfetto(run(decoder(), overlap=overlap), path, metadata={})
    content = path.read_bytes()
    events = [
        (raw, packet)
        for raw, packet in zip(packets(content), messages.Trace.FromString(content).packet, strict=True)
        if packet.HasField("track_event")
    ]
    assert len(events) > 2 * slices
    for raw, packet in events:
        assert raw == encoded_again(packet)
