"""Requests read from a trace: CSV with a header, JSON Lines or a JSON array; each may be compressed (`.gz`).

The columns of public traces are known (`sim.workload.layouts`), so that these load as they are; for others the scenario names
the columns. Conversations are read by turns (`sim.workload.conversations`). Times are integers of picoseconds: a float of
seconds since 1970 would lose everything below a tenth of a microsecond.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sim.base.errors import InputError, nearest
from sim.base.quantities import DURATION, MAXIMUM, QuantityError, number, show
from sim.base.units import PS_PER_S, format_time
from sim.workload.conversations import Conversations, is_conversation
from sim.workload.files import Format, Row, rows_of
from sim.workload.layouts import LAYOUTS, Chosen, layout_of, unit_of
from sim.workload.requests import MAX_CONTEXT, MAX_REQUESTS, MAX_TOKENS, Request

#: Picoseconds in the unit of arrivals that are plain numbers.
UNITS = {"s": PS_PER_S, "ms": 10**9, "us": 10**6, "ns": 10**3, "ps": 1}

_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,12}))?\s*(?:Z|([+-])(\d\d):?(\d\d))?", re.ASCII
)


class Traced(NamedTuple):
    """The requests of a trace, in order of arrival, and the names of columns that were not used."""

    requests: list[Request]
    ignored: tuple[str, ...]


def read(
    path: Path,
    *,
    format: Format | None = None,  # noqa: A002 -- the word that users know
    columns: Mapping[str, str] | None = None,
    unit: str | None = None,
    timed: bool = True,
    start: int = 0,
    duration: int | None = None,
    limit: int | None = None,
    speed: Fraction = Fraction(1),
    skip_empty: bool = False,
    characters_per_token: Fraction | None = None,
    history: Literal["prompt", "context"] = "prompt",
    prefix_tokens: int | None = None,
) -> Traced:
    """Read the requests of a trace, in order of arrival; the first arrives at 0.

    format: None takes it from the name of the file. columns: name of the column of each field (`layouts.COLUMNS`), where the
    file is of no known layout, or other columns are wanted. unit: of arrivals that are plain numbers. timed: arrivals of the
    file are used; otherwise it needs none, they only order requests, and all arrive at 0. start, duration: ps of the trace,
    from its first row; requests that arrive in [start, start + duration) are taken, of these the first `limit`. speed: 2 halves
    all gaps, so that requests arrive twice as fast. skip_empty: leave out rows without output tokens instead of refusing them.
    characters_per_token, history: see `Conversations`. prefix_tokens: of each id of a prefix; None takes those of the layout.

    Raises InputError that names file, line and column, what was expected and what was found.
    """
    taken: list[tuple[int, Request]] = []
    first: int | None = None
    window = bool(start) or duration is not None
    with rows_of(path, format) as lines:
        rows = _rows(
            path, lines, columns or {}, unit, timed=timed or window, turns=(characters_per_token, history),
            prefix_tokens=prefix_tokens,
        )  # fmt: skip
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
        between = " between start and start + duration" if window and first is not None else ""
        raise InputError(f"{path}: expected requests{between}, found none")
    taken.sort(key=lambda each: each[0])
    ordered = [request for _, request in taken]
    return Traced(_timed(path, taken, speed) if timed else ordered, rows.ignored)


def _timed(path: Path, taken: list[tuple[int, Request]], speed: Fraction) -> list[Request]:
    """Requests, in order, with their arrivals from the first on."""
    begin = taken[0][0]
    if (taken[-1][0] - begin) / speed > MAXIMUM:
        raise InputError(
            f"{path}: expected arrivals within {MAXIMUM // PS_PER_S:,} s, found {format_time(taken[-1][0] - begin)}"
        )
    return [replace(request, arrival=(time - begin) * speed.denominator // speed.numerator) for time, request in taken]


def _rows(
    path: Path, lines: Iterator[Row], columns: Mapping[str, str], unit: str | None, *, timed: bool,
    turns: tuple[Fraction | None, Literal["prompt", "context"]], prefix_tokens: int | None,
) -> _Rows | Conversations:  # fmt: skip
    """The requests of the rows of a file, which are conversations if the first one is."""
    first = next(lines, None)
    every = lines if first is None else chain((first,), lines)
    if first is None or columns or not is_conversation(first[1]):
        return _Rows(path, every, columns, unit, timed=timed, prefix_tokens=prefix_tokens)
    if timed:
        raise InputError(f"{path}:{first[0]}: {_without_arrivals('conversations have')}")
    return Conversations(path, every, *turns)


def _without_arrivals(what: str) -> str:
    return (
        f"{what} no arrivals: expected columns.arrival, or trace.arrivals to generate them, or a closed loop "
        "(workload.concurrency)"
    )


class _Rows:
    """Iterates over (time in ps, request without arrival) of the rows of a trace, and keeps the line for errors.

    ignored: names of columns that are not used, once the first row has been read.
    """

    def __init__(
        self, path: Path, rows: Iterable[Row], columns: Mapping[str, str], unit: str | None, *, timed: bool,
        prefix_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self._path, self._rows, self._written, self._unit, self._timed = path, rows, columns, unit, timed
        self._prefix_tokens = prefix_tokens
        self._line = 0
        self._chosen = Chosen({}, None)
        self.ignored: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[int, Request]]:
        for line, row in self._rows:
            self._line = line
            if not self._chosen.columns:
                self._chosen = self._choose(list(row))
                used = {*self._chosen.columns.values()}
                self.ignored = tuple(name for name in row if name not in used)
            prompt, context = (
                self._count(row, what, 0, MAX_CONTEXT) if what in self._chosen.columns else 0 for what in ("prompt", "context")
            )
            prefix = self._ids(row) if "prefix" in self._chosen.columns else ()
            tokens = self._count(row, "tokens", 0, MAX_TOKENS)
            time = self._time(row) if "arrival" in self._chosen.columns else 0
            yield time, Request(
                arrival=0, context=context, prompt=prompt, tokens=tokens, prefix=prefix,
                prefix_tokens=self._chosen.prefix_tokens if prefix else 0,
            )  # fmt: skip

    def _choose(self, found: list[str]) -> Chosen:
        """Column of each field: as written in the scenario, otherwise as in the known layout of these columns."""
        for name in self._written.values():
            if name not in found:
                raise InputError(
                    f"{self._path}:1: no column {show(name)}{nearest(name, found)}; found {', '.join(map(show, found))}"
                )
        layout = layout_of(found)
        if layout is None and "tokens" not in self._written:
            known = "; ".join(f"{', '.join(each.columns.values())} ({each.name})" for each in LAYOUTS)
            raise InputError(
                f"{self._path}:1: expected the columns of a known trace, or 'columns' with at least tokens, found "
                f"{', '.join(map(show, found))}; known: {known}"
            )
        unit, why, chosen, prefix_tokens = None, "this column is of no known trace", dict(self._written), 0
        if layout is not None:
            optional = {what: name for what, name in layout.optional.items() if name in found}
            used = {*chosen.values()}  # a column that the scenario uses for another field is no longer that of the layout
            chosen = {what: name for what, name in {**layout.columns, **optional}.items() if name not in used} | chosen
            if chosen.get("arrival") == layout.columns.get("arrival"):
                unit, why = unit_of(layout, found)
            if layout.keys == {*found} and "prefix" not in self._written:
                prefix_tokens = layout.prefix_tokens
            if what := next((what for what in layout.columns if what in ("arrival", "tokens") and what not in chosen), None):
                raise InputError(
                    f"{self._path}:1: columns: expected {what} as well: {show(layout.columns[what])} is taken for another field"
                )
        if self._timed and "arrival" not in chosen:
            raise InputError(f"{self._path}:1: {_without_arrivals('the requests have')}; found {', '.join(map(show, found))}")
        # Where arrivals only order requests, their unit does not matter.
        unit = self._unit or unit or (None if self._timed else "s")
        return Chosen(chosen, unit, why, self._prefix_tokens or prefix_tokens)

    def _value(self, row: Mapping[str, Any], what: str) -> Any:
        value = row.get(self._chosen.columns[what])
        return value.strip() if isinstance(value, str) else value

    def _count(self, row: Mapping[str, Any], what: str, low: int, high: int) -> int:
        value = self._value(row, what)
        count = _number(value)
        if count is None or count != int(count) or not low <= count <= high:
            raise self.error(what, f"a whole number from {low} to {high}", value)
        return int(count)

    def _ids(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids of a prompt's blocks: a list, in CSV as JSON; none if the row has no value."""
        value = self._value(row, "prefix")
        if value is None or value == "":
            return ()
        try:
            ids = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            ids = None
        if not isinstance(ids, list) or not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
            raise self.error("prefix", "a list of whole numbers", value)
        return tuple(ids)

    def _time(self, row: Mapping[str, Any]) -> int:
        value = self._value(row, "arrival")
        time = _number(value)
        if time is not None and abs(time) <= MAXIMUM:
            if self._chosen.unit is None:
                expected = f"the key 'unit' ({', '.join(UNITS)}) for a plain number, because {self._chosen.why}"
                raise self.error("arrival", expected, value)
            return int((time * UNITS[self._chosen.unit]).to_integral_value(ROUND_HALF_EVEN))
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
        column = f" column {show(self._chosen.columns[what])}:" if what is not None else ""
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
