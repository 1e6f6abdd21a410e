"""Protobuf's wire format for columns: many records are encoded at once, with NumPy and no object per record.

A record is a row of a block; its parts are `Cells`, byte strings of a few bytes. `pack` computes where each part of each row
begins, and writes one part of all rows at a time: NumPy copies items of any size to any places if they are of the dtype `V`, so
that neither padding nor a mask is needed. A tag and its number are one or two words of 8 bytes, made by shifts. Varints are
canonical (shortest), so the bytes equal those of any plain encoder that writes the fields in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Lengths = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

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

    def write(self, out: Bytes, at: Rows) -> None:
        """Write row i so that it begins at at[i]."""
        if isinstance(self.length, int):
            _items(out, self.length)[at] = _first(self.data, self.length)
            return
        for length in np.flatnonzero(np.bincount(self.length)).tolist():
            rows = np.flatnonzero(self.length == length)
            _items(out, length)[at[rows]] = _first(self.data, length)[rows]


@dataclass(frozen=True, slots=True)
class Part:
    """Cells that follow one another in some rows of a block.

    rows: ascending; None for all. count: how many of the cells, which are then of one column and of one length, each of those
    rows has; None for one.
    """

    cells: Sequence[Cells]
    rows: Rows | None = None
    count: Lengths | None = None

    def lengths(self) -> Lengths | int:
        """Bytes in each of its rows."""
        each: Lengths | int = sum((cells.length for cells in self.cells), start=0)
        return each if self.count is None else each * self.count

    def write(self, out: Bytes, at: Rows) -> None:
        """Write it where the free bytes of each row of the block begin, and let them begin behind it."""
        rows = slice(None) if self.rows is None else self.rows
        here = at[rows]
        if self.count is None:
            for cells in self.cells:
                cells.write(out, here)
                here = here + cells.length
            at[rows] = here
            return
        (cells,) = self.cells
        before = np.cumsum(self.count) - self.count
        number = np.arange(int(self.count.sum())) - np.repeat(before, self.count)  # in its row
        cells.write(out, np.repeat(here, self.count) + number * cells.length)
        at[rows] = here + self.lengths()


def sizes(parts: Sequence[Part], rows: int) -> Lengths:
    """Bytes of the parts in each row of a block."""
    total = np.zeros(rows, dtype=np.int64)
    for part in parts:
        total[slice(None) if part.rows is None else part.rows] += part.lengths()
    return total


def pack(parts: Sequence[Part], rows: int) -> Bytes:
    """The rows end to end, each with its parts one after the other."""
    size = sizes(parts, rows)
    at = np.cumsum(size) - size
    out = np.empty(int(size.sum()), dtype=np.uint8)
    for part in parts:
        part.write(out, at)
    return out


def _items(out: Bytes, length: int) -> npt.NDArray[np.void]:
    """All items of so many bytes in `out`, at any place."""
    return np.ndarray(max(0, len(out) - length + 1), dtype=f"V{length}", buffer=out, strides=(1,))


def _first(data: Bytes, length: int) -> npt.NDArray[np.void]:
    """The first bytes of each row."""
    return np.ndarray(len(data), dtype=f"V{length}", buffer=data, strides=(data.strides[0],))


def constant(value: bytes) -> Cells:
    """The same bytes in every row."""
    return Cells(np.frombuffer(value, dtype=np.uint8)[None, :], len(value))


def varints(values: npt.NDArray[np.integer | np.bool_], prefix: bytes = b"", *, sized: int | None = None) -> Cells:
    """A column of non-negative integers as varints behind a prefix (at most 7 bytes).

    sized: the place in the prefix of a byte to which the length of the varint is added.
    """
    most = int(values.max(initial=0))
    narrow, wide = width(int(values.min(initial=most))), width(most)
    low = _groups(values.astype(np.uint64), most)
    high = values.astype(np.uint64) >> np.uint64(56) if wide > 8 else None
    length: Lengths | int = wide
    if narrow == wide:
        low |= _MORE[wide]
    else:
        length = np.full(len(values), narrow, dtype=np.int64)
        for groups in range(narrow, wide):
            length += values >= 1 << 7 * groups
        low |= _MORE[length]
    start: Words | int = int.from_bytes(prefix, "little")
    if sized is not None:
        start = start + (np.asarray(length, dtype=np.uint64) << np.uint64(8 * sized))
    return Cells(_behind(start, len(prefix), low, high, len(prefix) + wide), len(prefix) + length)


def fixed64(values: npt.NDArray[np.integer | np.floating], prefix: bytes = b"") -> Cells:
    """A column of 8-byte numbers behind a prefix (at most 7 bytes)."""
    words = np.ascontiguousarray(values).view(np.uint64)
    return Cells(_behind(int.from_bytes(prefix, "little"), len(prefix), words, None, len(prefix) + 8), len(prefix) + 8)


def width(value: int) -> int:
    """Bytes of a varint."""
    return max(1, -(-value.bit_length() // 7))


#: By length of a varint: the continuation bits (0x80 of every byte but the last), as far as they are in the first eight bytes.
_MORE = np.array([sum(0x80 << 8 * i for i in range(min(length, 9) - 1)) for length in range(11)], dtype=np.uint64)


def _groups(values: Words, most: int) -> Words:
    """Each of the lowest eight groups of seven bits in a byte of its own, whose highest bit is 0; most: the largest value.

    The 56 bits are halved three times, and each upper half moves up to make space, here for groups h (high) to a (low):

        bits  63      55      47      39      31      23      15      7      0
              ........hhhhhhhgggggggfffffffeeeeeeedddddddcccccccbbbbbbbaaaaaaa   the value
              ....hhhhhhhgggggggfffffffeeeeeee....dddddddcccccccbbbbbbbaaaaaaa   halves of 28 bits, in words of 32
              ..hhhhhhhggggggg..fffffffeeeeeee..dddddddccccccc..bbbbbbbaaaaaaa   quarters of 14 bits, in words of 16
              .hhhhhhh.ggggggg.fffffff.eeeeeee.ddddddd.ccccccc.bbbbbbb.aaaaaaa   groups of 7 bits, in bytes
    """
    if most >= 1 << 28:
        values = _spread(values & np.uint64((1 << 56) - 1), _bits(28, 64), 28)
    if most >= 1 << 14:
        values = _spread(values, _bits(14, 32), 14)
    return _spread(values, _bits(7, 16), 7)


def _bits(count: int, apart: int) -> int:
    """The lowest `count` bits of every `apart` bits of a word of 64."""
    return sum((1 << count) - 1 << at for at in range(0, 64, apart))


def _spread(values: Words, lower: int, half: int) -> Words:
    """Move the upper half of each field up. lower: the bits of the lower halves, of `half` bits each in words of 2^n bits."""
    word = 1 << half.bit_length()  # 28 -> 32, 14 -> 16, 7 -> 8
    return (values & np.uint64(lower)) | (values & np.uint64(lower << half)) << np.uint64(word - half)


def _behind(prefix: Words | int, size: int, low: Words, high: Words | None, most: int) -> Bytes:
    """Rows of at most `most` bytes: a prefix of `size` bytes, then the eight of `low` and the ninth and tenth of `high`.

    words[:, 0] is the prefix and, above it, as much of `low` as fits; words[:, 1] the rest of `low` and, above it, `high`.
    """
    words = np.empty((len(low), 1 if most <= 8 else 2), dtype="<u8")
    words[:, 0] = low << np.uint64(8 * size) | np.asarray(prefix, dtype=np.uint64)
    if most > 8:
        above = low >> np.uint64(64 - 8 * size) if size else np.zeros_like(low)
        words[:, 1] = above if high is None else above | high << np.uint64(8 * size)
    return words.view(np.uint8)


class Table:
    """Byte strings to choose from: `table(index)` is the column with string `index[i]` in row i."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._length = np.array([len(value) for value in values], dtype=np.int64)
        self._data = np.zeros((len(values), int(self._length.max(initial=0))), dtype=np.uint8)
        for row, value in zip(self._data, values, strict=True):
            row[: len(value)] = np.frombuffer(value, dtype=np.uint8)

    def __call__(self, index: npt.NDArray[np.integer]) -> Cells:
        return Cells(self._data[index], self._length[index])
