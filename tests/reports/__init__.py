"""Stored numbers of the shipped scenarios: some forty of `sim run --json`, and a hash of the event log.

`make reports` writes them all again; read the difference before you commit it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import sim
from sim.analysis.parts import WITHOUT_LINKS
from sim.log.tables import EventLog
from sim.render.trace.of_result import write_trace
from sim.scenario.shipped import find_scenario

FOLDER = Path(__file__).parent
SAMPLE = FOLDER.parents[1] / "traces" / "sample.pftrace.gz"

#: Fields of the JSON object that are stored as they are, by their path.
FIELDS = (
    "makespan_ps", "tasks",
    *(f"requests.{name}" for name in ("count", "tokens", "tokens_per_s", "requests_per_s", "in_system")),
    *(f"requests.{name}_ps.{each}" for name in ("ttft", "tpot", "itl", "e2e") for each in ("mean", "p99")),
    "requests.itl_ps.max", "requests.queued_ps.mean", "requests.fairness.tokens_per_s", "requests.fairness.slowdown",
    *(f"memory.{name}" for name in ("bytes_read", "bytes_written", "busy_ps", "utilization")),
    *(f"bounds.{name}_ps" for name in ("critical_path", "compute", "memory", "lower", "upper")),
    *(f"breakdown_ps.total.{part}" for part in WITHOUT_LINKS),
    "critical_path.tasks",
)  # fmt: skip

#: The same, of parts that only some have: energy where its figures are known, links where there are several devices.
MORE = {
    "energy": tuple(f"energy.{name}_fj" for name in ("total", "compute", "memory", "static", "waiting")),
    "links": ("links.bytes_sent", "links.exposed_ps", "bounds.link_ps"),
}

#: Columns of the event log that are hashed, by table.
COLUMNS = {
    "tasks": ("step", "task", "engine", "ready", "start", "loaded", "end", "compute", "work", "launched"),
    "services": ("task", "channel", "start", "end", "work"),
    "steps": ("sequence", "token", "context", "graph", "first", "released", "end"),
    "members": ("step", "sequence", "context", "query", "loads", "logits", "emitted", "home"),
}

#: Columns that are part of the hash of a log only where they are not 0.
OFTEN_ZERO = ("launched", "home")

Number = int | float | str | None


@cache
def run(name: str) -> sim.Result:
    """A shipped scenario, run once for all tests."""
    return sim.run(find_scenario(name), executor="compiled")


def stored(name: str) -> dict[str, Number]:
    """The stored numbers of a scenario, by name."""
    numbers: dict[str, Number] = json.loads((FOLDER / f"{name}.json").read_text())
    return numbers


def numbers(result: sim.Result) -> dict[str, Number]:
    """The numbers of a run that are stored, by name, and the hash of its log."""
    summary = sim.summary(result, timing=False)
    return {**of_summary(summary), "log": digest(result.log)}


def of_summary(summary: Mapping[str, Any]) -> dict[str, Number]:
    """Fields of the JSON object of a run, and sums over its lists, by name; None where there is no such number."""
    return {
        **{path: _at(summary, path) for path in FIELDS},
        **{path: _at(summary, path) for key, paths in MORE.items() if key in summary for path in paths},
        "engines.busy_ps": sum(engine["busy_ps"] for engine in summary["engines"]),
        **{f"blame.{resource}_ps": _waits(summary, resource) for resource in ("engine", "channel")},
        "checks": len(summary["checks"]),
        "extrapolated": len(summary["extrapolations"]),
    }


def _at(summary: Any, path: str) -> Number:
    for key in path.split("."):
        summary = None if summary is None else summary[key]
    found: Number = summary
    return found


def _waits(summary: Mapping[str, Any], resource: str) -> int | None:
    """Time that all tasks waited for an engine or the channel, in ps; None if no ops were recorded."""
    if summary["blame"] is None:
        return None
    matrix = summary["blame"][resource]["by_kind"]
    return sum(map(sum, matrix["wait_ps"])) + sum(matrix["alone_ps"])


def digest(log: EventLog) -> str:
    """SHA-256 of the columns of a log, whatever integer types they have."""
    total = hashlib.sha256()
    for table, columns in COLUMNS.items():
        for column in columns:
            values = np.asarray(getattr(getattr(log, table), column), dtype="<i8")
            if column not in OFTEN_ZERO or values.any():
                total.update(f"{table}.{column}".encode())
                total.update(values.tobytes())
    return total.hexdigest()


def differences(before: Mapping[str, Number], now: Mapping[str, Number]) -> Iterator[str]:
    """Each number that differs, with both values and the relative change."""
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old != new:
            both = isinstance(old, int | float) and isinstance(new, int | float) and old
            yield f"{name}: {old} stored, {new} now" + (f" ({new / old - 1:+.3g})" if both else "")


def write_sample(path: Path) -> None:
    """Write the trace that is kept in the repository."""
    write_trace(run("two_tokens_4_engines"), path)
