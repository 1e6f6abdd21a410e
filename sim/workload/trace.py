"""Requests read from a trace: CSV with a header, or one JSON object per line; either may be compressed (`.gz`).

The columns of public traces are known (`LAYOUTS`), so that these load as they are; for others the scenario names the columns.
One line is read at a time, so a file may be larger than memory. Times are integers of picoseconds: a float of seconds since
1970 would lose everything below a tenth of a microsecond.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TextIO

from sim.base.errors import InputError, nearest
from sim.base.files import HARMLESS, check_expansion, check_readable
from sim.base.quantities import DURATION, MAXIMUM, QuantityError, number, show
from sim.base.units import PS_PER_S, format_time
from sim.workload.requests import MAX_CONTEXT, MAX_REQUESTS, MAX_TOKENS, Request

LONGEST = 2**20  # characters of a line

#: Fields of a request; the first two are required.
COLUMNS = ("arrival", "tokens", "prompt", "context")

#: Picoseconds in the unit of arrivals that are plain numbers.
UNITS = {"s": PS_PER_S, "ms": 10**9, "us": 10**6, "ns": 10**3, "ps": 1}


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a known trace, and the unit of its arrivals if they are plain numbers."""

    name: str
    columns: Mapping[str, str]
    unit: str = "s"


#: The first layout whose columns are all present is used. Context or input tokens of a trace are a prompt here.
LAYOUTS = (
    Layout("decode-sim", {"arrival": "arrival", "tokens": "tokens"}),
    # https://github.com/Azure/AzurePublicDataset: AzureLLMInferenceDataset2023.md, AzureLLMInferenceDataset2024.md
    Layout("Azure", {"arrival": "TIMESTAMP", "prompt": "ContextTokens", "tokens": "GeneratedTokens"}),
    # https://github.com/Mutinifni/splitwise-sim: generate_trace.py; seconds
    Layout("Splitwise", {"arrival": "arrival_timestamp", "prompt": "prompt_size", "tokens": "token_size"}),
    # https://github.com/HPMLL/BurstGPT: BurstGPT_1.csv; seconds
    Layout("BurstGPT", {"arrival": "Timestamp", "prompt": "Request tokens", "tokens": "Response tokens"}),
    # https://github.com/kvcache-ai/Mooncake: FAST25-release; milliseconds
    Layout("Mooncake", {"arrival": "timestamp", "prompt": "input_length", "tokens": "output_length"}, unit="ms"),
)
_OPTIONAL = ("prompt", "context")  # columns of the program's own layout, where the file has them

_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,12}))?\s*(?:Z|([+-])(\d\d):?(\d\d))?", re.ASCII
)


def read(
    path: Path,
    *,
    format: Literal["csv", "jsonl"] | None = None,  # noqa: A002 -- the word that users know
    columns: Mapping[str, str] | None = None,
    unit: str | None = None,
    start: int = 0,
    duration: int | None = None,
    limit: int | None = None,
    speed: Fraction = Fraction(1),
    skip_empty: bool = False,
) -> list[Request]:
    """Read the requests of a trace, in order of arrival; the first arrives at 0.

    format: None takes it from the name of the file. columns: name of the column of each field (`COLUMNS`), where the file is
    of no known layout, or other columns are wanted. unit: of arrivals that are plain numbers. start, duration: ps of the trace,
    from its first row; requests that arrive in [start, start + duration) are taken, of these the first `limit`. speed: 2 halves
    all gaps, so that requests arrive twice as fast. skip_empty: leave out rows without output tokens instead of refusing them.

    Raises InputError that names file, line and column, what was expected and what was found.
    """
    taken: list[tuple[int, Request]] = []
    first: int | None = None
    with _opened(path) as lines:
        kind = format or ("jsonl" if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")) else "csv")
        rows = _Rows(path, _csv(path, lines) if kind == "csv" else _jsonl(path, lines), columns or {}, unit)
        for time, request in rows:
            first = time if first is None else first
            if (start and time - first < start) or (duration is not None and time - first >= start + duration):
                continue
            if not request.tokens and skip_empty:
                continue
            if not request.tokens:
                raise rows.error("tokens", "a whole number from 1 (or skip_empty, to leave such rows out)", 0)
            if len(taken) == MAX_REQUESTS:
                raise rows.error(
                    None, f"at most {MAX_REQUESTS:,} requests; take fewer with limit, or with start and duration", "more"
                )
            taken.append((time, request))
            if len(taken) == limit:
                break
    if not taken:
        raise InputError(
            f"{path}: expected requests" + (" between start and start + duration" if first is not None else "") + ", found none"
        )
    taken.sort(key=lambda each: each[0])
    begin = taken[0][0]
    if (taken[-1][0] - begin) / speed > MAXIMUM:
        raise InputError(
            f"{path}: expected arrivals within {MAXIMUM // PS_PER_S:,} s, found {format_time(taken[-1][0] - begin)}"
        )
    return [replace(request, arrival=(time - begin) * speed.denominator // speed.numerator) for time, request in taken]


class _Rows:
    """Iterates over (time in ps, request without arrival) of the rows of a trace, and keeps the line for errors."""

    def __init__(
        self, path: Path, rows: Iterator[tuple[int, Mapping[str, Any]]], columns: Mapping[str, str], unit: str | None
    ) -> None:
        self._path, self._rows, self._written, self._unit = path, rows, columns, unit
        self._line = 0
        self._columns: Mapping[str, str] = {}

    def __iter__(self) -> Iterator[tuple[int, Request]]:
        for line, row in self._rows:
            self._line = line
            if not self._columns:
                self._columns = self._choose(list(row))
            prompt, context = (
                self._count(row, what, 0, MAX_CONTEXT) if what in self._columns else 0 for what in ("prompt", "context")
            )
            yield (
                self._time(row),
                Request(arrival=0, context=context, prompt=prompt, tokens=self._count(row, "tokens", 0, MAX_TOKENS)),
            )

    def _choose(self, found: list[str]) -> Mapping[str, str]:
        """Name of the column for each field: as written in the scenario, otherwise as in the known layout of these columns."""
        for name in self._written.values():
            if name not in found:
                raise InputError(
                    f"{self._path}:1: no column {show(name)}{nearest(name, found)}; found {', '.join(map(show, found))}"
                )
        layout = next((each for each in LAYOUTS if {*each.columns.values()} <= {*found}), None)
        if layout is not None:
            self._unit = self._unit or layout.unit
            optional = {what: what for what in _OPTIONAL if what in found} if layout is LAYOUTS[0] else {}
            used = {
                *self._written.values()
            }  # a column that the scenario uses for another field is no longer that of the layout
            known = {what: name for what, name in (*layout.columns.items(), *optional.items()) if name not in used}
            chosen = {**known, **self._written}
            if what := next((what for what in ("arrival", "tokens") if what not in chosen), None):
                raise InputError(
                    f"{self._path}:1: columns: expected {what} as well: {show(layout.columns[what])} is taken for another field"
                )
            return chosen
        if not {"arrival", "tokens"} <= {*self._written}:
            known_names = "; ".join(f"{', '.join(each.columns.values())} ({each.name})" for each in LAYOUTS)
            raise InputError(
                f"{self._path}:1: expected the columns of a known trace, or 'columns' with at least arrival and tokens, found "
                f"{', '.join(map(show, found))}; known: {known_names}"
            )
        return self._written

    def _value(self, row: Mapping[str, Any], what: str) -> Any:
        value = row.get(self._columns[what])
        return value.strip() if isinstance(value, str) else value

    def _count(self, row: Mapping[str, Any], what: str, low: int, high: int) -> int:
        value = self._value(row, what)
        count = _number(value)
        if count is None or count != int(count) or not low <= count <= high:
            raise self.error(what, f"a whole number from {low} to {high}", value)
        return int(count)

    def _time(self, row: Mapping[str, Any]) -> int:
        value = self._value(row, "arrival")
        time = _number(value)
        if time is not None and abs(time) <= MAXIMUM:
            return int((time * UNITS[self._unit or "s"]).to_integral_value(ROUND_HALF_EVEN))
        if isinstance(value, str):
            if match := _TIMESTAMP.fullmatch(value):
                try:
                    return _since_epoch(*match.groups())
                except ValueError:  # the 31st of February
                    pass
            elif time is None:
                try:
                    return DURATION.parse(value)
                except QuantityError:
                    pass
        raise self.error("arrival", "a number, a duration such as '300 us' or a time such as 2023-11-16 18:15:46.68", value)

    def error(self, what: str | None, expected: str, found: object) -> InputError:
        """The error for a row, or for a value in it."""
        column = f" column {show(self._columns[what])}:" if what is not None else ""
        shown = show(float(found) if isinstance(found, Decimal) else found)
        return InputError(f"{self._path}:{self._line}:{column} expected {expected}, found {shown}")


def _number(value: object) -> Decimal | None:
    """A finite number, or the text of one, exactly as it is written; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal, str)):
        return None
    found = number(value) if isinstance(value, str) else Decimal(value)
    return found if found is not None and found.is_finite() and -40 < found.adjusted() < 40 else None


def _since_epoch(
    year: str, month: str, day: str, hour: str, minute: str, second: str, fraction: str | None, sign: str | None, h: str | None,
    m: str | None,
) -> int:  # fmt: skip
    """Picoseconds since 1970, in UTC if the time has an offset."""
    days = date(int(year), int(month), int(day)).toordinal() - date(1970, 1, 1).toordinal()
    minutes = (days * 24 + int(hour)) * 60 + int(minute)
    if sign is not None:
        minutes -= (1 if sign == "+" else -1) * (int(h or 0) * 60 + int(m or 0))
    return (minutes * 60 + int(second)) * PS_PER_S + int((fraction or "").ljust(12, "0"))


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a file."""
    try:
        if path.exists():
            check_readable(path)
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            yield _lines(path, file)
    except FileNotFoundError:
        siblings = (
            [p.name for p in path.parent.iterdir() if p.suffix in (".csv", ".jsonl", ".gz")] if path.parent.is_dir() else []
        )
        raise InputError(f"{path}: no such file{nearest(path.name, siblings)}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r}: cannot be read: {reason}") from None


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    count = size = 0
    while line := file.readline(LONGEST):
        count += 1
        size += len(line)
        if path.suffix == ".gz" and size > HARMLESS:
            check_expansion(path, size)
        if len(line) == LONGEST:
            raise InputError(f"{path}:{count}: expected a line of less than {LONGEST:,} characters")
        yield line


def _csv(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
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


def _jsonl(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for count, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_float=Decimal)
        except (ValueError, RecursionError, InvalidOperation):  # the last: a number with a huge exponent
            raise InputError(f"{path}:{count}: expected a JSON object, found {show(line.strip())}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{count}: expected a JSON object, found {show(row)}")
        yield count, row
