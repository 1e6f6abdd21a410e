"""The columns of a run: one table of metrics, and their values for a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sim.analysis.findings import Analysis, Totals
from sim.analysis.goodput import Goodput, goodput
from sim.analysis.parts import PARTS
from sim.base.units import format_bytes, format_energy, format_number, format_time
from sim.executors import simulate
from sim.study.batches import Job

Unit = Literal["ps", "fJ", "B", "share", "W", "/s", ""]


@dataclass(frozen=True, slots=True)
class Metric:
    """unit: of its values. whole: they are integers."""

    unit: Unit
    title: str
    whole: bool = False


def with_unit(value: float, unit: str) -> str:
    """A value as it is shown, such as `3.1 ms`; unit: as those of metrics, or empty."""
    match unit:
        case "ps":
            return format_time(round(value))
        case "fJ":
            return format_energy(round(value))
        case "B":
            return format_bytes(value)
        case "share":
            return f"{value:.1%}"
        case "W":
            return f"{format_number(value)} W"
    return format_number(value) if abs(value) < 1e6 else f"{value:.4g}"


_LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "end to end", "queued": "queued"}
_STATISTICS = ("mean", "p50", "p90", "p99")

#: Columns of every row, in their order.
METRICS: dict[str, Metric] = {
    "makespan_ps": Metric("ps", "makespan", whole=True),
    "tokens": Metric("", "output tokens", whole=True),
    "time_per_token_ps": Metric("ps", "time per token"),
    "tokens_per_s": Metric("/s", "tokens/s"),
    "tokens_per_s_per_user": Metric("/s", "tokens/s per user"),
    "tokens_per_s_per_device": Metric("/s", "tokens/s per device"),
    "requests_per_s": Metric("/s", "requests/s"),
    **{
        f"{name}_{each}_ps": Metric("ps", f"{title}, {each}", whole=True)
        for name, title in _LATENCIES.items() for each in _STATISTICS
    },
    "goodput_per_s": Metric("/s", "goodput, requests/s within report.slo"),
    "slo_share": Metric("share", "requests within report.slo"),
    "slo_attained": Metric("", "whether report.slo is attained, 1 or 0", whole=True),
    "engine_utilization": Metric("share", "engine utilization"),
    "channel_utilization": Metric("share", "channel utilization"),
    "bytes_read": Metric("B", "bytes read", whole=True),
    "bytes_written": Metric("B", "bytes written", whole=True),
    "bytes_moved": Metric("B", "bytes moved", whole=True),
    "energy_fj": Metric("fJ", "energy"),
    "energy_per_token_fj": Metric("fJ", "energy per token"),
    "watts": Metric("W", "mean power"),
    **{f"{part}_share": Metric("share", f"{part.replace('_', ' ')}, of the time of tokens") for part in PARTS},
    "lower_ps": Metric("ps", "lower bound of the makespan", whole=True),
    "upper_ps": Metric("ps", "upper bound of the makespan", whole=True),
    "gap": Metric("share", "above the lower bound"),
    "tasks": Metric("", "tasks", whole=True),
}  # fmt: skip


def measure(planned: Job) -> dict[str, Any]:
    """Simulate a point and return its metrics; None for those that a run does not have.

    Compiled code runs whatever it can: a process of a study loads it once. Raises InputError, SimulationError.
    """
    setup = planned.setup
    analysis = Analysis(planned.rules, engines=setup.engines, channels=setup.channels, compiled=True)
    sink = None if planned.record == "all" else analysis.add
    log, _ = simulate(setup, "auto", None, sink, many=0)
    if sink is None:
        analysis.add(log)
    found = analysis.totals(log, warmup_time=planned.warmup_time, warmup_requests=planned.warmup_requests, few=True)
    return values(
        found,
        len(setup.machine.devices) * setup.machine.like,
        None if planned.slo is None else goodput(found.requests, planned.slo),
    )


def devices(planned: Job) -> int:
    """Devices of a point, those that are not simulated because they are like others, too."""
    machine = planned.setup.machine
    return len(machine.devices) * machine.like


def values(found: Totals, count: int, within: Goodput | None = None) -> dict[str, Any]:
    """The metrics of a run. count: of devices. within: its goodput, if an objective is written."""
    m, served, energy = found.metrics, found.requests, found.energy
    makespan, times = m.makespan, served.times()
    tokens = int(served.tokens.sum())
    row: dict[str, Any] = dict.fromkeys(METRICS)
    row |= {
        "makespan_ps": makespan,
        "tokens": tokens,
        "time_per_token_ps": makespan / tokens,
        "tokens_per_s": served.tokens_per_second,
        "tokens_per_s_per_device": served.tokens_per_second / count,
        "requests_per_s": served.requests_per_second,
        "engine_utilization": sum(m.engine_busy) / (makespan * len(m.engine_busy)),
        "channel_utilization": sum(m.delivered) / (makespan * len(m.delivered)),
        "bytes_read": m.bytes_read,
        "bytes_written": m.bytes_written,
        "bytes_moved": m.bytes_read + m.bytes_written,
        "lower_ps": found.bounds.lower,
        "upper_ps": found.bounds.upper,
        "gap": found.bounds.gap(makespan),
        "tasks": m.tasks,
    }
    if within is not None:
        row |= {"goodput_per_s": within.per_second, "slo_share": within.share, "slo_attained": int(within.attained)}
    for name, times_of in times.items():
        if times_of is not None:
            row |= {f"{name}_{each}_ps": getattr(times_of, each) for each in _STATISTICS}
    if times["tpot"] is not None:
        if times["tpot"].mean:  # else drafts gave all tokens of each request at once
            row["tokens_per_s_per_user"] = 1e12 / times["tpot"].mean
    elif len(served) == 1:
        row["tokens_per_s_per_user"] = served.tokens_per_second
    spent = found.breakdown.tokens.sum(axis=0, dtype=float).tolist()
    row |= {f"{part}_share": each / (sum(spent) or 1) for part, each in zip(PARTS, spent, strict=True)}
    if energy is not None:
        row |= {"energy_fj": float(energy.total), "energy_per_token_fj": float(energy.total) / tokens, "watts": energy.watts}
    return row
