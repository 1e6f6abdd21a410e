"""Protobuf's wire format for columns: many records are encoded at once, with NumPy and no object per record.

A record is a row; its parts are `Cells`, left-aligned byte strings of at most a few bytes. `join` lays the parts of a block of
rows side by side in one padded matrix and drops the padding with a single boolean selection, which NumPy does at memory
speed. What differs in size too much from row to row to be padded (annotations, flows) is kept `Ragged` and merged in
by `interleave`, all at once. Varints are canonical (shortest), so the bytes equal those of any plain encoder that writes
the fields in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Lengths = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

VARINT, FIXED64, LENGTH = 0, 1, 2
"""Wire types."""


def varint(value: int) -> bytes:
    """One unsigned integer (of at most 64 bits) as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(field: int, wire: int) -> bytes:
    """The key in front of a field."""
    return varint(field << 3 | wire)


def number(field: int, value: int) -> bytes:
    """One field with an unsigned integer."""
    return tag(field, VARINT) + varint(value)


def message(field: int, *parts: bytes) -> bytes:
    """One field with a string, bytes or a nested message that consists of `parts`."""
    body = b"".join(parts)
    return tag(field, LENGTH) + varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    """One field with a string."""
    return message(field, value.encode())


@dataclass(frozen=True, slots=True)
class Cells:
    """A column of byte strings: row i is `data[i, :length[i]]`.

    data: uint8 [rows, width], or [1, width] if all rows are equal. length: int64 [rows], or one int for all.
    """

    data: Bytes
    length: Lengths | int

    def only(self, present: Mask) -> Cells:
        """The same column, empty where `present` is False."""
        return Cells(self.data, self.length * present.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Ragged:
    """Byte strings end to end: `data` uint8 [sum(length)], `length` int64 [rows]."""

    data: Bytes
    length: Lengths


def constant(value: bytes) -> Cells:
    """The same bytes in every row."""
    return Cells(np.frombuffer(value, dtype=np.uint8)[None, :], len(value))


def varints(values: npt.NDArray[np.integer | np.bool_]) -> Cells:
    """A column of non-negative integers as varints."""
    top = int(values.max(initial=0))
    # Narrow arithmetic where the values allow: this is the hottest loop of the writer.
    rest: npt.NDArray[Any] = values.astype(np.uint32 if top < 1 << 32 else np.uint64)
    width = max(1, -(-top.bit_length() // 7))
    data = np.empty((width, len(values)), dtype=np.uint8)
    if width == 1:
        data[0] = rest
        return Cells(data.T, 1)
    length = np.ones(len(values), dtype=np.int64)
    for column in data[:-1]:
        low = rest.astype(np.uint8)
        rest = rest >> 7
        more = rest != 0
        np.bitwise_or(low & 0x7F, more.view(np.uint8) << 7, out=column)
        length += more
    data[-1] = rest
    return Cells(data.T, length)


def fixed64(values: npt.NDArray[np.integer | np.floating]) -> Cells:
    """A column of 8-byte numbers (little-endian, as they are)."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return Cells(little.view(np.uint8).reshape(-1, 8), 8)


class Table:
    """Byte strings to choose from: `table(index)` is the column with string `index[i]` in row i."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._length = np.array([len(value) for value in values], dtype=np.int64)
        self._data = np.zeros((len(values), int(self._length.max(initial=0))), dtype=np.uint8)
        for row, value in zip(self._data, values, strict=True):
            row[: len(value)] = np.frombuffer(value, dtype=np.uint8)

    def __call__(self, index: npt.NDArray[np.integer]) -> Cells:
        return Cells(self._data[index], self._length[index])


def nested(field: int, *parts: Cells, extra: Lengths | int = 0) -> tuple[Cells, ...]:
    """The parts of a message in `field`; `extra` bytes of it per row are appended elsewhere."""
    size = sum((part.length for part in parts), start=extra)
    if isinstance(size, int):
        return (constant(tag(field, LENGTH) + varint(size)), *parts)
    return (constant(tag(field, LENGTH)), varints(size), *parts)


def join(parts: Sequence[Cells], rows: int) -> Ragged:
    """Concatenate the parts of each row."""
    width = sum(part.data.shape[1] for part in parts)
    matrix = np.empty((rows, width), dtype=np.uint8)
    mask = np.ones((rows, width), dtype=np.bool_)
    total = np.zeros(rows, dtype=np.int64)
    at = 0
    for part in parts:
        size = part.data.shape[1]
        if part.data.flags.c_contiguous and len(part.data) > 1 and size > 8:
            matrix[:, at : at + size] = part.data
        else:
            for j in range(size):  # column by column: the inner loop of NumPy then runs over the rows
                matrix[:, at + j] = part.data[:, j]
        if not isinstance(part.length, int) or part.length < size:
            shortest = int(np.min(part.length, initial=size))
            for j in range(shortest, size):
                mask[:, at + j] = part.length > j
        total += part.length
        at += size
    return Ragged(matrix[mask], total)


def interleave(*parts: Ragged) -> Ragged:
    """In each row, what the first of the parts holds, then what the second holds, and so on."""
    lengths = np.stack([part.length for part in parts], axis=1)
    holding = [i for i, part in enumerate(parts) if len(part.data)]
    if len(holding) < 2:
        return Ragged(parts[holding[0] if holding else 0].data, lengths.sum(axis=1))
    which = np.tile(np.arange(len(parts), dtype=np.uint8), len(lengths))
    place = np.repeat(which, lengths.ravel())  # of each byte, the part that it comes from
    data = np.empty(len(place), dtype=np.uint8)
    for i in holding:
        data[place == i] = parts[i].data
    return Ragged(data, lengths.sum(axis=1))


def spread(part: Ragged, present: Mask) -> Ragged:
    """Give the rows of `part` to the rows where `present` is True, and nothing to the others."""
    length = np.zeros(len(present), dtype=np.int64)
    length[present] = part.length
    return Ragged(part.data, length)
