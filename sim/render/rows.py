"""Long lists of plain data that are made when they are read: a million dicts at once would take a gigabyte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 4096  # rows made at once

Index = slice | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """count: rows in all. make: those of a slice, or of the numbers in an array, as plain data."""

    count: int
    make: Callable[[Index], list[Any]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.all())

    def all(self) -> Iterator[list[Any]]:
        """All rows, some at a time."""
        for first in range(0, self.count, CHUNK):
            yield self.make(slice(first, first + CHUNK))

    def only(self, rows: npt.NDArray[np.int64]) -> Rows:
        """Keep some rows, given by their numbers."""
        return Rows(len(rows), lambda index: self.make(rows[index]))


def plain(data: Any) -> Any:
    """The same data with lists for all rows. Values of dicts are searched for rows, those of lists are not."""
    if isinstance(data, Rows):
        return list(data)
    return {key: plain(value) for key, value in data.items()} if isinstance(data, dict) else data


def as_json(data: Any, separators: tuple[str, str] = (", ", ": ")) -> Iterator[str]:
    """The JSON of `plain(data)`, the same bytes as of `json.dumps`, piece by piece."""
    between, after = separators
    if isinstance(data, Rows):
        yield "["
        for number, chunk in enumerate(data.all()):
            yield (between if number else "") + json.dumps(chunk, separators=separators)[1:-1]
        yield "]"
    elif isinstance(data, dict):
        yield "{"
        for number, (key, value) in enumerate(data.items()):
            yield f"{between if number else ''}{json.dumps(key)}{after}"
            yield from as_json(value, separators)
        yield "}"
    else:
        yield json.dumps(data, separators=separators)
