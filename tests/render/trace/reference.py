"""A plain encoder of trace packets: one record at a time, straight from Perfetto's .proto files."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

INTEGER, TEXT = 4, 17  # fields of DebugAnnotation: int_value, string_value_iid


def varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def uint(number: int, value: int) -> bytes:
    return varint(number * 8 + 0) + varint(value)


def eight(number: int, value: bytes) -> bytes:
    return varint(number * 8 + 1) + value


def sub(number: int, body: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(body)) + body


@dataclass
class Slice:
    """A BEGIN (or END: then only the first three fields count)."""

    begin: bool
    ns: int
    track: int
    name: int = 1
    category: int = 1
    color: int = 0
    args: list[tuple[int, int, int]] = field(default_factory=list)  # (interned name, INTEGER or TEXT, value)
    leaving: list[int] = field(default_factory=list)
    arriving: list[int] = field(default_factory=list)


def packet(ns: int, event: bytes) -> bytes:
    #            TracePacket: timestamp   sequence id   state needed   track_event
    return sub(1, uint(8, ns) + uint(10, 1) + uint(13, 2) + sub(11, event))


def slice_packet(record: Slice) -> bytes:
    event = uint(9, 1 if record.begin else 2) + uint(11, record.track)
    if record.begin:
        event += uint(3, record.category) + uint(10, record.name)
        if record.color:
            event += uint(52, record.color)
        for name, kind, value in record.args:
            event += sub(4, uint(1, name) + uint(kind, value))
        for flow in record.leaving:
            event += eight(47, struct.pack("<Q", flow))
        for flow in record.arriving:
            event += eight(48, struct.pack("<Q", flow))
    return packet(record.ns, event)


def counter_packet(ns: int, track: int, value: float) -> bytes:
    event = uint(9, 4) + uint(11, track)
    event += uint(30, value) if isinstance(value, int) else eight(44, struct.pack("<d", value))
    return packet(ns, event)
