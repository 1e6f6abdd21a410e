"""Perfetto's messages: packets that declare tracks and names, and blocks of slices and counter values.

Field numbers are those of Perfetto's `trace_packet.proto`, `track_event.proto`, `track_descriptor.proto` and
`debug_annotation.proto`. The whole trace is one packet sequence; its state is cleared in the first packet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sim.render.trace.protobuf import (
    FIXED64,
    LENGTH,
    VARINT,
    Bytes,
    Cells,
    Mask,
    Part,
    Table,
    constant,
    fixed64,
    message,
    number,
    pack,
    sizes,
    tag,
    text,
    varints,
)
from sim.render.trace.tracks import Strings, Track

Column = npt.NDArray[np.integer]

BEGIN, END, COUNTER = 1, 2, 4
_BOOTTIME = 6
_CLEARED, _NEEDED = 1, 2  # sequence_flags: state starts afresh; state is needed to read the packet
_EXPLICIT_ORDER, _NO_MERGE = 3, 2  # TrackDescriptor: child_ordering, sibling_merge_behavior

_PACKET, _TIMESTAMP, _TRACK_EVENT, _INTERNED_DATA = 1, 8, 11, 12
_SEQUENCE = number(10, 1)  # trusted_packet_sequence_id
_STATE = _SEQUENCE + number(13, _NEEDED)
_KIND = len(tag(9, VARINT))  # where the number of the first field of a TrackEvent stands


@dataclass(slots=True)
class Interned:
    """All interned strings of the one sequence. Each goes into the trace once, before its first use."""

    names: Strings = field(default_factory=Strings)
    categories: Strings = field(default_factory=Strings)
    annotations: Strings = field(default_factory=Strings)
    strings: Strings = field(default_factory=Strings)
    _declared: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def packet(self) -> bytes:
        """A packet that declares the strings that came since the last call; empty if none did."""
        kinds = ((self.categories, 1), (self.names, 2), (self.annotations, 3), (self.strings, 29))
        entries = []
        for i, (strings, kind) in enumerate(kinds):
            table = strings.table()
            for iid in range(self._declared[i] + 1, len(table)):
                entries.append(message(kind, number(1, iid), text(2, table[iid])))
            self._declared[i] = len(strings)
        return message(_PACKET, _STATE, message(_INTERNED_DATA, *entries)) if entries else b""


def first_packet() -> bytes:
    """Start the sequence: clear its state, and say that timestamps are nanoseconds of one clock."""
    defaults = message(59, number(58, _BOOTTIME))
    return message(_PACKET, _SEQUENCE, number(13, _CLEARED | _NEEDED), number(87, 1), defaults)


def metadata_packet(values: Mapping[str, str]) -> bytes:
    """Trace-level facts: trace_processor shows `key` as `cr-key` in its metadata table, the UI in its info page."""
    entries = (message(2, text(1, key), text(2, value)) for key, value in values.items())
    return message(_PACKET, _SEQUENCE, message(5, *entries))


def track_packet(track: Track) -> bytes:
    """Declare a track. Its parent must be declared too, or its events are lost without a word."""
    fields = [number(1, track.uuid), text(2, track.name)]
    if track.parent:
        fields.append(number(5, track.parent))
    if track.unit is not None:
        fields.append(message(8, text(6, track.unit)))
    fields += [number(11, _EXPLICIT_ORDER), number(12, track.rank)]
    if track.description:
        fields.append(text(14, track.description))
    fields.append(number(15, _NO_MERGE))
    return message(_PACKET, _SEQUENCE, message(60, *fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """A block of BEGINs and ENDs, one row each, in an order in which those of each track nest.

    begin: which rows are BEGINs. ns: absolute times. track: uuids.
    name, category: interned. color: correlation ids, 0 for none. details: annotations and flows, part after part. These have
    one row for each BEGIN.
    """

    begin: Mask
    ns: Column
    track: Column
    name: Column
    category: Column
    color: Column
    details: Sequence[Part] = ()


def slice_packets(events: Events) -> Bytes:
    """Encode a block of slice events, as packets end to end."""
    begins = np.flatnonzero(events.begin)
    fields = varints(events.track, number(9, END) + tag(11, VARINT))
    fields.data[begins, _KIND] = BEGIN
    more = [Part([varints(events.category, tag(3, VARINT)), varints(events.name, tag(10, VARINT))], begins)]
    colored = np.flatnonzero(events.color)
    if len(colored):
        more.append(Part([varints(events.color[colored], tag(52, VARINT))], begins[colored]))
    more += [Part(part.cells, begins if part.rows is None else begins[part.rows], part.count) for part in events.details]
    return _packets(events.ns, [fields], more)


def counter_packets(ns: Column, track: int, values: npt.NDArray[np.integer | np.floating]) -> Bytes:
    """Encode the values of one counter, as packets end to end: integers exactly, others as doubles."""
    body = [constant(number(9, COUNTER) + number(11, track))]
    if np.issubdtype(values.dtype, np.integer):
        body.append(varints(values.astype(np.int64), tag(30, VARINT)))
    else:
        body.append(fixed64(values.astype(np.float64), tag(44, FIXED64)))
    return _packets(ns, body, [])


def _packets(ns: Column, body: Sequence[Cells], more: Sequence[Part]) -> Bytes:
    """Wrap the fields of TrackEvents into packets: those that all rows have, then what more there is."""
    rows = len(ns)
    event = sizes([Part(body), *more], rows)
    inside = [
        varints(ns, tag(_TIMESTAMP, VARINT)),
        constant(_STATE),
        varints(event, tag(_TRACK_EVENT, LENGTH)),
    ]
    whole = event + sum((cells.length for cells in inside), start=0)
    return pack([Part([varints(whole, tag(_PACKET, LENGTH)), *inside, *body]), *more], rows)


def integer_annotation(name: int, values: Column) -> Cells:
    """One non-negative integer argument per row, named by an interned string."""
    return _annotation(number(1, name) + tag(4, VARINT), values)


def text_annotation(name: int, strings: Column) -> Cells:
    """One argument per row whose value is an interned string."""
    return _annotation(number(1, name) + tag(17, VARINT), strings)


def _annotation(key: bytes, values: Column) -> Cells:
    size = tag(4, LENGTH)
    return varints(values, size + bytes([len(key)]) + key, sized=len(size))


def annotation_table(interned: Interned, rows: Iterable[Mapping[str, int | str]]) -> Table:
    """Arguments that many slices share, encoded once for each of `rows`."""
    table = []
    for row in rows:
        encoded = b""
        for key, value in row.items():
            name = number(1, interned.annotations(key))
            payload = number(17, interned.strings(value)) if isinstance(value, str) else number(4, value)
            encoded += message(4, name, payload)
        table.append(encoded)
    return Table(table)


def flow_field(ids: Column, *, terminating: bool) -> Cells:
    """Flow ids: of arrows that start at a slice, or of arrows that end there."""
    return fixed64(ids.astype(np.uint64), tag(48 if terminating else 47, FIXED64))
