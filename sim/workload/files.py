"""Rows of files: CSV with a header, JSON Lines, or a JSON array of objects; each may be compressed (`.gz`).

A row is read at a time, so a file may be larger than memory.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, TextIO

from sim.base.errors import InputError, nearest_file
from sim.base.files import HARMLESS, check_expansion, check_readable, kind_of, siblings
from sim.base.quantities import show

LONGEST = 2**20  # characters of a line
CHUNK = 2**16  # characters of an array that are read at once
LARGEST = 2**26  # characters of an element of an array

#: Formats of a file. `json` and `jsonl` are read alike: an array, or a line for each object.
Format = Literal["csv", "jsonl", "json"]

#: A row and the line that it begins in.
Row = tuple[int, Mapping[str, Any]]

_SUFFIXES = (".csv", ".jsonl", ".json", ".gz")
_OBJECT = "a JSON object"


def format_of(path: Path) -> Format:
    """The format that the name of a file says."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    return "json" if name.endswith(".json") else "csv"


@contextmanager
def rows_of(path: Path, form: Format | None) -> Iterator[Iterator[Row]]:
    """The rows of a file. form: None takes it from the name of the file.

    Raises InputError that names file and line, what was expected and what was found.
    """
    try:
        if kind_of(path) is not None:
            check_readable(path)
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            if (form or format_of(path)) == "csv":
                yield _csv(path, _lines(path, file))
            elif _begins_with_bracket(file):
                yield _objects(path, _elements(path, file))
            else:
                yield _objects(path, _values(path, _lines(path, file)))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{nearest_file(path.name, siblings(path, _SUFFIXES))}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r}: cannot be read: {reason}") from None


def _begins_with_bracket(file: TextIO) -> bool:
    head = file.read(CHUNK).lstrip()
    file.seek(0)
    return head.startswith("[")


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    count = size = 0
    while line := file.readline(LONGEST):
        count += 1
        size += len(line)
        _check_size(path, size)
        if len(line) == LONGEST:
            raise InputError(f"{path}:{count}: expected a line of less than {LONGEST:,} characters")
        yield line


def _check_size(path: Path, size: int) -> None:
    """Raise InputError for a compressed file of which so many characters have come out, if that is out of proportion."""
    if path.suffix == ".gz" and size > HARMLESS:
        check_expansion(path, size)


def _csv(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                if twice := next((name for i, name in enumerate(header) if name in header[:i]), None):
                    raise InputError(f"{path}:{reader.line_num}: expected each column once, found {show(twice)} twice")
                continue
            if len(row) != len(header):
                raise InputError(f"{path}:{reader.line_num}: expected {len(header)} columns, found {len(row)}")
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _objects(path: Path, values: Iterable[tuple[int, Any]]) -> Iterator[Row]:
    """Values that are objects. Raises InputError for others."""
    for line, value in values:
        if not isinstance(value, dict):
            raise InputError(f"{path}:{line}: expected {_OBJECT}, found {show(value)}")
        yield line, value


def _values(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """The JSON values of lines, each with its line."""
    for count, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield count, json.loads(line, parse_float=Decimal)
        except (ValueError, RecursionError, InvalidOperation):  # the last: a number with a huge exponent
            raise InputError(f"{path}:{count}: expected {_OBJECT}, found {show(line.strip())}") from None


class _Text:
    """The text of a file from some place on, as far as it has been read. at: the place in `text`. line: of that place."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file, self._size = path, file, 0
        self.text, self.at, self.line = "", 0, 1

    def read(self) -> bool:
        """Read more of the file, at least as much again as there is; False at its end."""
        left = self.text[self.at :]
        more = self._file.read(max(CHUNK, len(left)))
        self._size += len(more)
        _check_size(self._path, self._size)
        self.text, self.at = left + more, 0
        return bool(more)

    def advance(self, to: int) -> None:
        """Go on to a place in `text`."""
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def next(self) -> str:
        """Skip white space; returns the character behind it, empty at the end of the file."""
        while True:
            end = len(self.text)
            place = next((i for i in range(self.at, end) if not self.text[i].isspace()), end)
            self.advance(place)
            if place < end or not self.read():
                return self.text[self.at : self.at + 1]


def _elements(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, each with the line that it begins in."""
    text = _Text(path, file)
    text.next()
    text.advance(text.at + 1)  # the bracket
    if text.next() == "]":
        return
    while True:
        text.next()
        line = text.line
        yield line, _element(path, text)
        mark = text.next()
        if mark == "]":
            return
        if mark != ",":
            raise InputError(
                f"{path}:{text.line}: expected ',' or ']' after an object, found {show(mark) if mark else 'the end'}"
            )
        text.advance(text.at + 1)


def _element(path: Path, text: _Text) -> Any:
    decoder = json.JSONDecoder(parse_float=Decimal)
    while True:
        try:
            value, end = decoder.raw_decode(text.text, text.at)
        except (RecursionError, InvalidOperation):
            break
        except ValueError:  # maybe it goes on in what has not been read yet
            if len(text.text) - text.at > LARGEST or not text.read():
                break
        else:
            text.advance(end)
            return value
    raise InputError(f"{path}:{text.line}: expected {_OBJECT}, found {show(text.text[text.at : text.at + 80])}")
