"""Two runs side by side: differences in settings, in results, and in where the time went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.analysis.parts import PARTS
from sim.analysis.requests import TITLES
from sim.base.units import format_bytes, format_energy, format_time
from sim.render.requests import data, worth_showing
from sim.runs.result import Result

#: Keys that name or explain a scenario, or only change how it is shown.
_NO_CAUSE = ("name", "description", "trace.", "report.")
FEW = 12


def compare(a: Result, b: Result) -> dict[str, Any]:
    """JSON-ready data.

    scenarios: their names. keys: the values that differ, {key: [a, b]}. numbers: [{name, unit, a, b, difference, ratio}].
    tokens: tokens that both runs have, with their times.
    sources: the largest differences of the totals over all tasks, {kind, part, difference_ps}, the largest first.
    """
    return {
        "scenarios": [a.scenario.name, b.scenario.name],
        "keys": _keys(a.scenario.to_dict(), b.scenario.to_dict()),
        "numbers": [_difference(*row) for row in _numbers(a, b)],
        "tokens": _tokens(a, b),
        "sources": _sources(a, b),
    }


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, Mapping):
        items = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in data.items()]
    elif isinstance(data, list | tuple):
        items = [(f"{prefix}[{i}]", value) for i, value in enumerate(data)]
    else:
        return {prefix: data}
    return {key: value for name, part in items for key, value in _flat(part, name).items()}


def _keys(a: Any, b: Any) -> dict[str, list[Any]]:
    one, other = _flat(a), _flat(b)
    return {
        key: [one.get(key), other.get(key)]
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key) and not key.startswith(_NO_CAUSE)
    }


def _numbers(a: Result, b: Result) -> list[tuple[str, str, float, float]]:
    def pair(name: str, unit: str, get: Any) -> tuple[str, str, float, float]:
        return name, unit, get(a), get(b)

    rows = [
        pair("makespan", "ps", lambda r: r.makespan),
        pair("tokens", "", lambda r: int(r.requests.tokens.sum())),
        pair("time of a step", "ps", lambda r: sum(t.end - t.start for t in r.metrics.tokens) // len(r.metrics.tokens)),
        pair("engine utilization", "share", lambda r: _share(sum(r.metrics.engine_busy), r.makespan * r.log.engines)),
        pair("channel utilization", "share", _utilization),
        pair("bytes read", "bytes", lambda r: r.metrics.bytes_read),
        pair("bytes written", "bytes", lambda r: r.metrics.bytes_written),
        pair("longest path", "ps", lambda r: r.bounds.critical_path),
        pair("lower bound", "ps", lambda r: r.bounds.lower),
        pair("above the lower bound", "share", lambda r: round(r.bounds.gap(r.makespan), 6)),
    ]
    if worth_showing(a) or worth_showing(b):
        rows += _requests(a, b)
    if a.energy is not None and b.energy is not None:
        rows += [
            ("energy", "fJ", a.energy.total, b.energy.total),
            ("energy a token", "fJ", a.energy.per_token, b.energy.per_token),
        ]
        rows.append(("mean power, W", "", round(a.energy.watts, 6), round(b.energy.watts, 6)))
    along = ("tokens", a.breakdown.tokens.sum(axis=0), b.breakdown.tokens.sum(axis=0))
    for title, ours, theirs in (along, ("all tasks", a.breakdown.total, b.breakdown.total)):
        for part, one, other in zip(PARTS, ours.tolist(), theirs.tolist(), strict=True):
            if one or other:
                rows.append((f"{part.replace('_', ' ')}, {title}", "ps", one, other))
    return rows


def _utilization(result: Result) -> float:
    """The share of the bandwidth of the memory that was used."""
    memories = result.log.machine.memories
    return _share(sum(result.metrics.delivered[:memories]), result.makespan * memories)


def _requests(a: Result, b: Result) -> Iterator[tuple[str, str, float, float]]:
    """Request metrics that both runs have."""
    one, other = data(a), data(b)
    yield "tokens/s", "", one["tokens_per_s"], other["tokens_per_s"]
    for name, title in TITLES.items():
        first, second = one[f"{name}_ps"], other[f"{name}_ps"]
        if first is not None and second is not None and (first["max"] or second["max"]):
            yield from ((f"{title}, {each}", "ps", first[each], second[each]) for each in ("mean", "p99"))
    for name, title in (("tokens_per_s", "fairness of tokens/s"), ("slowdown", "fairness of slowdowns")):
        if one["fairness"][name] is not None and other["fairness"][name] is not None:
            yield title, "", one["fairness"][name], other["fairness"][name]


def _difference(name: str, unit: str, a: float, b: float) -> dict[str, Any]:
    return {"name": name, "unit": unit, "a": a, "b": b, "difference": round(b - a, 6), "ratio": round(b / a, 6) if a else None}


def _tokens(a: Result, b: Result) -> list[dict[str, Any]]:
    times = [{(t.sequence, t.token): t.end - t.start for t in r.metrics.tokens} for r in (a, b)]
    return [
        {"sequence": s, "token": t, "a_ps": times[0][s, t], "b_ps": times[1][s, t]} for s, t in times[0] if (s, t) in times[1]
    ]


def _sources(a: Result, b: Result) -> list[dict[str, Any]]:
    kinds = sorted({*a.breakdown.kinds, *b.breakdown.kinds})
    table = np.zeros((len(kinds), len(PARTS)), dtype=np.int64)
    for sign, result in ((-1, a), (1, b)):
        for kind, row in zip(result.breakdown.kinds, result.breakdown.by_kind, strict=True):
            table[kinds.index(kind)] += sign * row
    order = np.argsort(-abs(table), axis=None, kind="stable")
    found = [(*divmod(int(i), len(PARTS)),) for i in order]
    return [{"kind": kinds[k], "part": PARTS[p], "difference_ps": int(table[k, p])} for k, p in found if table[k, p]]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def render(data: Mapping[str, Any]) -> RenderableType:
    """Render the data of `compare` for a terminal."""
    names = data["scenarios"]
    keys = _table("key", *names)
    for key, (a, b) in data["keys"].items():
        keys.add_row(key, *("" if value is None else str(value) for value in (a, b)))
    numbers = _table("", *names, "difference", "ratio")
    for row in data["numbers"]:
        shown = [_format(row[side], row["unit"]) for side in ("a", "b", "difference")]
        numbers.add_row(row["name"], *shown, f"{row['ratio']:.3f}" if row["ratio"] is not None else "")
    sections: list[RenderableType] = [Text("Differences in the scenarios", style="bold"), keys]
    sections += [Text(), Text("Results", style="bold"), numbers]
    if data["sources"]:
        sources = _table("kind", "part", "difference")
        for row in data["sources"][:FEW]:
            sources.add_row(row["kind"], row["part"].replace("_", " "), _format(row["difference_ps"], "ps", sign=True))
        sections += [Text(), Text("Where the difference comes from, over all tasks", style="bold"), sources]
    return Group(*sections)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _format(value: float, unit: str, *, sign: bool = False) -> str:
    plus = "+" if sign and value > 0 else ""
    if unit == "ps":
        return plus + format_time(int(value))
    if unit == "fJ":
        return plus + format_energy(int(value))
    if unit == "bytes":
        return plus + format_bytes(value)
    return f"{value:.1%}" if unit == "share" else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
