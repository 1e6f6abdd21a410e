"""JSON object of a run: every number that the other renderers show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.analysis.parts import LINK, WAIT_LINK
from sim.render import breakdown, energy, requests, sram
from sim.render.rows import Index, Rows, plain
from sim.runs.result import Result, Timing


def summary(
    result: Result, *, trace: Path | None = None, timing: bool = True, write: float = 0.0, causes: bool = True
) -> dict[str, Any]:
    """Plain data of a result, ready for `json.dumps`; the arguments are those of `summary_rows`."""
    made: dict[str, Any] = plain(summary_rows(result, trace=trace, timing=timing, write=write, causes=causes))
    return made


def summary_rows(
    result: Result, *, trace: Path | None = None, timing: bool = True, write: float = 0.0, causes: bool = True
) -> dict[str, Any]:
    """Plain data of a result, in a fixed order, with `Rows` for long lists; times are integers of picoseconds.

    `blame` and `critical_path` are None if no ops were recorded, and without `causes`; `energy` is there if figures of the
    machine are known.

    Args:
        result: The run.
        trace: Path of its trace, if one was written.
        timing: Include `timing`, the only part that differs between runs of one scenario.
        write: Seconds spent writing the trace.
        causes: Include `blame` and `critical_path`, which take most of the time of a summary.

    Returns:
        A dict for `sim.render.rows.as_json`.
    """
    m = result.metrics
    data: dict[str, Any] = {
        "scenario": result.scenario.name,
        "seed": result.scenario.seed,
        "from_preset": list(result.scenario.from_preset),
        "makespan_ps": m.makespan,
        "tasks": m.tasks,
        "tokens": _tokens(result),
        "requests": requests.data(result),
        "engines": [
            {"name": name, "busy_ps": busy, "utilization": _share(busy, m.makespan)}
            for name, busy in zip(result.log.machine.engine_names, m.engine_busy, strict=True)
        ],
        "memory": _memory(result),
        **_links(result),
        "bounds": _bounds(result),
        "by_kind": [
            {"kind": k.kind, "tasks": k.tasks, "compute_ps": k.compute, "transfer_ps": k.transfer, "bytes": k.bytes}
            for k in m.kinds
        ],
        "breakdown_ps": breakdown.totals(result),
        "blame": breakdown.blame(result.blame, result.plan.rules) if causes and result.log.has_rows else None,
        "critical_path": breakdown.critical_path(result) if causes and result.log.has_rows else None,
        **(sram.data(result) if causes else {}),
        **energy.data(result),
        "extrapolations": [{"kind": d.kind, "ops": d.ops, "share": d.share, "why": d.why} for d in result.extrapolations],
        "notes": list(result.plan.notes),
        "ignored_columns": list(result.plan.ignored),
        "checks": list(result.checks),
        "trace": str(trace) if trace else None,
    }
    if timing:
        data["timing"] = _timing(result.timing, write)
    return data


def _tokens(result: Result) -> Rows:
    tokens, parts = result.metrics.tokens, result.breakdown.tokens

    def make(rows: Index) -> list[dict[str, Any]]:
        columns = (tokens.sequence, tokens.token, tokens.start, tokens.end, parts)
        return [
            {"sequence": s, "token": t, "start_ps": start, "end_ps": end, "breakdown_ps": breakdown.parts(row)}
            for s, t, start, end, row in zip(*(column[rows].tolist() for column in columns), strict=True)
        ]

    return Rows(len(tokens), make)


def _memory(result: Result) -> dict[str, Any]:
    m, memories = result.metrics, result.log.machine.memories
    return {
        "bytes_read": m.bytes_read,
        "bytes_written": m.bytes_written,
        "busy_ps": m.channel_busy,
        "utilization": _share(sum(m.delivered[:memories]), m.makespan * memories),
        "channels": _channels(result)[:memories],
    }


def _channels(result: Result) -> list[dict[str, Any]]:
    """Work that each channel delivered, links last."""
    m = result.metrics
    return [
        {"name": channel.name, "delivered_ps": delivered, "utilization": _share(delivered, m.makespan)}
        for channel, delivered in zip(result.log.machine.channels, m.delivered, strict=True)
    ]


def _links(result: Result) -> dict[str, Any]:
    """The key `links`; none where there is one device, and no link to a tier.

    exposed_ps: on the chains of tokens, None if no steps were recorded.
    """
    machine = result.log.machine
    if not machine.links:
        return {}
    tokens = result.breakdown.tokens
    along = tokens.sum(axis=0)
    moved = dict(zip(machine.tiers, result.metrics.bytes_tiers, strict=True))
    tiers: dict[str, Any] = {"bytes_host": moved["host"]} if "host" in moved else {}
    if set(moved) - {"host"}:
        tiers["bytes_tiers"] = moved
    return {
        "links": {
            "devices": machine.like * len(machine.devices),
            "bytes_sent": result.metrics.bytes_sent,
            **tiers,
            "exposed_ps": int(along[LINK] + along[WAIT_LINK]) if len(tokens) else None,
            "channels": _channels(result)[machine.memories :],
        }
    }


def _bounds(result: Result) -> dict[str, Any]:
    b = result.bounds
    return {
        "critical_path_ps": b.critical_path,
        "compute_ps": b.compute,
        "memory_ps": b.memory,
        **({"link_ps": b.link} if result.log.machine.links else {}),
        "arrivals_ps": b.arrivals,
        "lower_ps": b.lower,
        "upper_ps": b.upper,
        "gap": round(b.gap(result.makespan), 6),
    }


def _timing(timing: Timing, write: float) -> dict[str, Any]:
    return {
        "capture_s": round(timing.capture, 4),
        "simulate_s": round(timing.simulate, 4),
        "analysis_s": round(timing.analysis, 4),
        "write_s": round(write, 4),
        "executor": timing.executed.executor,
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
