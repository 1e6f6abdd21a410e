"""Times in a native trace, read from the trace itself: when a token begins and ends, and when the trace does."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from sim.base.errors import InputError
from sim.base.files import shown
from sim.render.trace.track_event import BEGIN, END

LARGEST = 2**31  # bytes of a trace that is searched, unpacked

#: Names of the tracks of a token and its sequence: tokens by themselves, and steps of batches.
WORDS = (("token", "sequence"), ("step", "loop"))

Field = tuple[int, int, int]  # its number; its value, or where its bytes begin; where they end


def span_of(path: Path, sequence: int, token: int) -> tuple[int, int]:
    """The first and the last nanosecond of a token (in batches: of a step of a loop).

    Raises InputError if the trace has no such token, or is not a native one.
    """
    try:
        data = _unpacked(path)
        if len(data) > LARGEST:
            raise InputError(f"{shown(path)}: larger than {LARGEST:,} bytes; a time is found faster: --time")
        found = _search(data, sequence, token)
    except (OSError, EOFError, LookupError, ValueError, zlib.error) as error:
        raise InputError(f"{shown(path)}: not a native trace (.pftrace): {error or type(error).__name__}") from None
    if found is None:
        raise InputError(f"{shown(path)}: no token {sequence}.{token} in this trace")
    return found


def end_before(path: Path, time: int) -> int | None:
    """The last nanosecond of a trace that ends before a time; None if it does not, is no native one, or is very large."""
    try:
        data, last = _unpacked(path), 0
        if len(data) > LARGEST:
            return None
        for fields in _packets(data):
            last = max(last, fields.get(8, (0, 0))[0])
            if last >= time:
                return None
    except (OSError, EOFError, LookupError, ValueError, zlib.error):
        return None
    return last


def _unpacked(path: Path) -> bytes:
    """The bytes of a trace, or the first of a very large one."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return file.read(LARGEST + 1)


def _search(data: bytes, sequence: int, token: int) -> tuple[int, int] | None:
    """The time between the BEGIN of a slice of that name on a track of that sequence and the END that closes it."""
    wanted = {f"{inner} {token}".encode(): f"{outer} {sequence}".encode() for inner, outer in WORDS}
    tracks: dict[int, tuple[bytes, int]] = {}  # name and parent
    names: dict[int, bytes] = {}
    begin = on = depth = 0
    for fields in _packets(data):
        if 60 in fields:
            track = _of(data, fields[60])
            tracks[track[1][0]] = (data[slice(*track[2])], track.get(5, (0, 0))[0])
        elif 12 in fields:
            for number, at, end in _fields(data, *fields[12]):
                if number == 2:
                    entry = _of(data, (at, end))
                    names[entry[1][0]] = data[slice(*entry[2])]
        elif 11 in fields:
            event = _of(data, fields[11])
            kind, track_id = event.get(9, (0, 0))[0], event.get(11, (0, 0))[0]
            if on:
                if track_id == on:
                    depth += {BEGIN: 1, END: -1}.get(kind, 0)
                    if not depth:
                        return begin, fields[8][0]
            elif kind == BEGIN and (outer := wanted.get(names.get(event.get(10, (0, 0))[0], b""))) is not None:
                _, parent = tracks.get(track_id, (b"", 0))
                if tracks.get(parent, (b"", 0))[0] == outer:
                    begin, on, depth = fields[8][0], track_id, 1
    return None


def _packets(data: bytes) -> Iterator[dict[int, tuple[int, int]]]:
    for number, at, end in _fields(data, 0, len(data)):
        if number != 1:
            raise ValueError("expected packets")
        yield _of(data, (at, end))


def _of(data: bytes, where: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """The fields of a message by number, the last of each."""
    return {number: (at, end) for number, at, end in _fields(data, *where)}


def _fields(data: bytes, at: int, end: int) -> Iterator[Field]:
    """Fields of a message, by the wire format of Protocol Buffers."""
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value, at
        elif wire == 2:
            size, at = _varint(data, at)
            yield key >> 3, at, at + size
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"unexpected wire type {wire}")
    if at > end:
        raise ValueError("cut short")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
