"""Runs side by side: differences in settings, in results, and in where the time of a token went."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.analysis.parts import PARTS
from sim.analysis.requests import TITLES
from sim.analysis.sums import exact_sum
from sim.base.units import format_bytes, format_energy, format_number, format_time
from sim.render.narrow import Fitting
from sim.render.requests import data, worth_showing
from sim.runs.result import Result

#: Keys that name or explain a scenario, or only change how it is shown.
_NO_CAUSE = ("name", "description", "trace.", "report.")
FEW = 12
Row = tuple[str, str, list[float]]


def compare(results: Sequence[Result], names: Sequence[str] | None = None) -> dict[str, Any]:
    """JSON-ready data of two runs or more; differences and ratios are of each to the first.

    names: of the sides; by default the names of their scenarios, told apart by `named`.
    scenarios: those names. identical: whether settings and results are the same on all sides.
    keys: the settings that differ, {key: [value of each side]}. numbers: [{name, unit, values, differences, ratios}], where a
    ratio of shares is null. tokens: steps that all runs have, {sequence, token, times_ps}.
    sources: {kind, part, differences_ps}: differences of the time of all tasks, divided by the output tokens of each side, the
    largest first.
    """
    keys = _keys([_flat(result.scenario.to_dict()) for result in results])
    numbers = [_difference(*row) for row in _numbers(results)]
    same = not keys and not any(any(row["differences"]) for row in numbers)
    return {
        "scenarios": list(names or named([result.scenario.name for result in results])),
        "identical": same,
        "keys": keys,
        "numbers": numbers,
        "tokens": _tokens(results),
        "sources": _sources(results),
    }


def named(names: Sequence[str], changes: Sequence[Sequence[str]] = ()) -> list[str]:
    """Names that tell sides apart: a name that occurs twice is followed by the changes of its side, or by its letter.

    changes: of each side, assignments such as `mapping.execution=blocking`.
    """
    own = [", ".join(_short(each) for each in of) for of in changes] or [""] * len(names)
    long = [f"{n}, {c}" if c and names.count(n) > 1 else n for n, c in zip(names, own, strict=True)]
    return [f"{name} ({chr(97 + i)})" if long.count(name) > 1 else name for i, name in enumerate(long)]


def _short(assignment: str) -> str:
    """`execution=blocking` of `mapping.execution=blocking`."""
    key, sign, value = assignment.partition("=")
    return key.rpartition(".")[2] + sign + value


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, Mapping):
        items = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in data.items()]
    elif isinstance(data, list | tuple):
        items = [(f"{prefix}[{i}]", value) for i, value in enumerate(data)]
    else:
        return {prefix: data}
    return {key: value for name, part in items for key, value in _flat(part, name).items()}


def _keys(sides: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    every = dict.fromkeys(key for side in sides for key in side)
    values = {key: [side.get(key) for side in sides] for key in every if not key.startswith(_NO_CAUSE)}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _numbers(results: Sequence[Result]) -> Iterator[Row]:
    def row(name: str, unit: str, get: Callable[[Result], float]) -> Row:
        return name, unit, [get(result) for result in results]

    yield row("makespan", "ps", lambda r: r.makespan)
    yield row("tokens", "", _emitted)
    if all(r.metrics.tokens for r in results):
        yield row("time of a step", "ps", lambda r: exact_sum(r.metrics.tokens.times) // len(r.metrics.tokens))
    yield row("engine utilization", "share", lambda r: _share(sum(r.metrics.engine_busy), r.makespan * r.log.engines))
    yield row("channel utilization", "share", _utilization)
    yield row("bytes read", "bytes", lambda r: r.metrics.bytes_read * r.log.machine.like)
    yield row("bytes written", "bytes", lambda r: r.metrics.bytes_written * r.log.machine.like)
    yield row("bytes per token", "bytes", lambda r: _moved(r) // _emitted(r))
    yield row("longest path", "ps", lambda r: r.bounds.critical_path)
    yield row("lower bound", "ps", lambda r: r.bounds.lower)
    yield row("above the lower bound", "share", lambda r: round(r.bounds.gap(r.makespan), 6))
    if any(worth_showing(r) for r in results):
        yield from _requests(results)
    energies = [r.energy for r in results if r.energy is not None]
    if len(energies) == len(results):
        yield "energy", "fJ", [e.total for e in energies]
        yield "energy per token", "fJ", [e.per_token for e in energies]
        yield "mean power, W", "", [round(e.watts, 6) for e in energies]
    yield from _parts(results)


def _parts(results: Sequence[Result]) -> Iterator[Row]:
    """Where the time of a step went along its critical chain, and that of the tasks of a token; only parts that occur."""
    chains = [r.breakdown.tokens for r in results]
    if all(len(rows) for rows in chains):
        one = "step" if any(r.log.batched is not None for r in results) else "token"
        yield from _occurring(f"chain of a {one}", [rows.sum(axis=0) // len(rows) for rows in chains])
    yield from _occurring("tasks of a token", [_for_each_token(r, r.breakdown.total) for r in results])


def _occurring(title: str, sides: Sequence[Any]) -> Iterator[Row]:
    for part, values in zip(PARTS, zip(*(side.tolist() for side in sides), strict=True), strict=True):
        if any(values):
            yield f"{part.replace('_', ' ')}, {title}", "ps", list(values)


def _emitted(result: Result) -> int:
    """Output tokens, at least 1."""
    return max(1, int(result.requests.tokens.sum()))


def _moved(result: Result) -> int:
    """Bytes read and written by all devices, also by those that one stands for."""
    return (result.metrics.bytes_read + result.metrics.bytes_written) * result.log.machine.like


def _for_each_token(result: Result, times: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Times of the tasks of all devices, also of those that one stands for, for each output token; products may pass int64."""
    whole: npt.NDArray[Any] = times.astype(object) * result.log.machine.like // _emitted(result)
    return whole


def _utilization(result: Result) -> float:
    """The share of the bandwidth of the memory that was used."""
    memories = result.log.machine.memories
    return _share(sum(result.metrics.delivered[:memories]), result.makespan * memories)


def _requests(results: Sequence[Result]) -> Iterator[Row]:
    """Request metrics that all runs have."""
    sides = [data(result) for result in results]
    yield "tokens/s", "", [side["tokens_per_s"] for side in sides]
    for name, title in TITLES.items():
        found = [side[f"{name}_ps"] for side in sides if side[f"{name}_ps"] is not None]
        if len(found) == len(sides) and any(each["max"] for each in found):
            yield from ((f"{title}, {which}", "ps", [each[which] for each in found]) for which in ("mean", "p99"))
    for name, title in (("tokens_per_s", "fairness of tokens/s"), ("slowdown", "fairness of slowdowns")):
        values = [side["fairness"][name] for side in sides]
        if None not in values:
            yield title, "", values


def _difference(name: str, unit: str, values: list[float]) -> dict[str, Any]:
    first, others = values[0], values[1:]
    ratios = [round(value / first, 6) if first and unit != "share" else None for value in others]
    differences = [round(value - first, 6) for value in others]
    return {"name": name, "unit": unit, "values": values, "differences": differences, "ratios": ratios}


def _tokens(results: Sequence[Result]) -> list[dict[str, Any]]:
    times = [{(t.sequence, t.token): t.end - t.start for t in r.metrics.tokens} for r in results]
    return [
        {"sequence": s, "token": t, "times_ps": [each[s, t] for each in times]}
        for s, t in times[0]
        if all((s, t) in each for each in times)
    ]


def _sources(results: Sequence[Result]) -> list[dict[str, Any]]:
    kinds = sorted({kind for result in results for kind in result.breakdown.kinds})
    place = {kind: i for i, kind in enumerate(kinds)}
    table = np.zeros((len(results), len(kinds), len(PARTS)), dtype=object)  # sums may pass int64
    for side, result in zip(table, results, strict=True):
        side[[place[kind] for kind in result.breakdown.kinds]] = _for_each_token(result, result.breakdown.by_kind)
    differences = table[1:] - table[0]
    largest = abs(differences).max(axis=0)  # [kind, part]
    found = [divmod(int(i), len(PARTS)) for i in np.argsort(-largest, axis=None, kind="stable")]
    return [
        {"kind": kinds[k], "part": PARTS[p], "differences_ps": differences[:, k, p].tolist()} for k, p in found if largest[k, p]
    ]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def render(data: Mapping[str, Any]) -> RenderableType:
    """Render the data of `compare` for a terminal."""
    names = data["scenarios"]
    if data["identical"]:
        return Text(f"{_listed(names)} are identical: the same settings, and the same results.")
    sections: list[RenderableType] = [Text("Differences in the scenarios", style="bold"), _settings(data["keys"], names)]
    if not any(any(row["differences"]) for row in data["numbers"]):
        sections += [Text(), Text("The results are identical.", style="bold")]
    sections += [Text(), Text("Results", style="bold"), _results(data["numbers"], names)]
    if data["sources"]:
        columns = [f"difference of {name}" for name in names[1:]] if len(names) > 2 else ["difference"]
        sources = _table("kind", "part", *columns)
        for row in data["sources"][:FEW]:
            shown = [_format(ps, "ps", sign=True) for ps in row["differences_ps"]]
            sources.add_row(row["kind"], row["part"].replace("_", " "), *shown)
        title = "Where the difference comes from, over all tasks, for each output token"
        sections += [Text(), Text(title, style="bold"), sources]
    return Group(*sections)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _settings(keys: Mapping[str, Sequence[Any]], names: Sequence[str]) -> RenderableType:
    if not keys:
        return Text("none")
    table = Table(box=None, pad_edge=False, header_style="dim")  # of texts, which wrap
    table.add_column("key", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for key, values in keys.items():
        table.add_row(key, *("" if value is None else str(value) for value in values))
    return table


def _results(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Fitting:
    """Two sides have columns of their difference and ratio; more of them have their ratio to the first beside each."""
    two = len(names) == 2
    table = _table("", *names, *(("difference", "ratio") if two else ()), drop=("difference", "ratio"))
    for row in rows:
        shown = [_format(value, row["unit"]) for value in row["values"]]
        changes = [_ratio(ratio, row, i) for i, ratio in enumerate(row["ratios"])]
        if two:
            shown += [_format(row["differences"][0], row["unit"], sign=True), "" if row["unit"] == "share" else changes[0]]
        else:
            shown = [shown[0], *(f"{value}  {change}" for value, change in zip(shown[1:], changes, strict=True))]
        table.add_row(row["name"], *shown)
    return table


def _ratio(ratio: float | None, row: Mapping[str, Any], i: int) -> str:
    if row["unit"] == "share":
        return _format(row["differences"][i], "share", sign=True)
    return "" if ratio is None else f"{ratio:.3f}x"


def _table(first: str, *columns: str, drop: Sequence[str] = ()) -> Fitting:
    table = Fitting(drop=drop)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _format(value: float, unit: str, *, sign: bool = False) -> str:
    """A value, or with its sign a difference: of shares in percentage points (pp)."""
    plus = "+" if sign and value > 0 else ""
    if unit == "ps":
        return plus + format_time(int(value))
    if unit == "fJ":
        return plus + format_energy(int(value))
    if unit == "bytes":
        return plus + format_bytes(value)
    if unit == "share":
        points = round(100 * value, 1)
        return f"{points:+.1f} pp" if sign and points else "0.0 pp" if sign else f"{value:.1%}"
    return plus + (format_number(value) if isinstance(value, float) else f"{value:,}")
