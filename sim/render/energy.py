"""Energy of a run: as plain data for the JSON, and as text for the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.analysis.energy import BUSY, COMPUTE, IDLE, LINK, MEMORY, STATIC, Energy
from sim.base.units import FJ_PER_J, format_energy, format_number
from sim.render import breakdown
from sim.render.rows import Index, Rows
from sim.runs.result import Result


def data(result: Result) -> dict[str, Any]:
    """The key `energy` of a summary, in integers of femtojoules, with `Rows` of tokens; empty if energy is not known."""
    energy, power = result.energy, result.power
    if energy is None or power is None:
        return {}
    machine, width = result.log.machine, result.series.width
    linked = bool(energy.link_parts or energy.unknown)

    def tokens(rows: Index) -> list[dict[str, int]]:
        return [
            {"compute_fj": row[COMPUTE], "memory_fj": row[MEMORY], **_link(row, linked), "static_fj": row[STATIC]}
            for row in energy.by_step[rows].tolist()
        ]

    def sequences(rows: Index) -> list[dict[str, int]]:
        numbers, found = np.array(energy.sequences)[rows].tolist(), energy.by_sequence[rows].tolist()
        return [{"sequence": sequence, "fj": fj} for sequence, fj in zip(numbers, found, strict=True)]

    return {
        "energy": {
            "total_fj": energy.total,
            "compute_fj": energy.compute,
            "memory_fj": energy.memory,
            "memory_by_part_fj": dict(energy.memory_parts),
            **(_links(energy) if linked else {}),
            "static_fj": energy.static,
            "static_by_part_fj": {
                **breakdown.parts(energy.static_by_part),
                "idle": energy.idle,
            },
            "waiting_fj": energy.waiting,
            "waiting_by_cause_fj": energy.causes(result.blame) if result.log.has_rows else None,
            "joules_per_token": energy.per_token / FJ_PER_J,
            "tokens_per_joule": _tokens_per_joule(energy),
            "watts": round(energy.watts, 6),
            "by_kind": [
                {"kind": kind, "compute_fj": row[COMPUTE], "memory_fj": row[MEMORY], **_link(row, linked)}
                for kind, row in sorted(zip(energy.kinds, energy.by_kind.tolist(), strict=True), key=lambda item: -sum(item[1]))
            ],
            "by_token": Rows(len(energy.by_step), tokens),
            "by_sequence": Rows(len(energy.sequences), sequences),
            "engines": [
                {"name": name, "compute_fj": row[COMPUTE], "static_busy_fj": row[BUSY], "static_idle_fj": row[IDLE]}
                for name, row in zip(machine.engine_names, energy.engines.tolist(), strict=True)
            ],
            "channels": [
                {"name": channel.name, "memory_fj" if channel.kind == "memory" else "link_fj": fj}
                for channel, fj in zip(machine.channels, energy.channels, strict=True)
            ],
            "device_static_fj": energy.device,
            "power": {"width_ps": width, "watts": power.means(width).tolist()},
        }
    }


def _links(energy: Energy) -> dict[str, Any]:
    """Keys about links that bytes went over."""
    return {"link_fj": energy.link, "link_by_part_fj": dict(energy.link_parts), "link_unknown": list(energy.unknown)}


def _link(row: list[int], linked: bool) -> dict[str, int]:
    return {"link_fj": row[LINK]} if linked else {}


def lines(result: Result) -> list[str]:
    """Lines for the terminal; none if energy is not known."""
    energy = result.energy
    if energy is None:
        return []
    shares = [("compute", energy.compute), ("memory", energy.memory), ("static", energy.static)]
    if energy.link_parts:
        shares.insert(2, ("links", energy.link))
    text = {
        "memory": _parts(energy.memory_parts, energy),
        "links": _parts(energy.link_parts, energy),
        "static": _static(energy),
    }
    unknown = [f"without that of bytes over the {' and the '.join(energy.unknown)}: not known"] if energy.unknown else []
    per_token = f", {format_energy(energy.per_token)}/token, {_tokens_per_joule(energy):.4g} tokens/J" if energy.tokens else ""
    return [
        f"{format_energy(energy.total)}, {format_number(energy.watts)} W on average{per_token}",
        ", ".join(f"{name} {_share(part, energy)}{text.get(name, '')}" for name, part in shares),
        *unknown,
    ]


def _parts(parts: dict[str, int], energy: Energy) -> str:
    """Shares of what takes the energy of bytes, where several parts do."""
    found = ", ".join(f"{name} {_share(part, energy)}" for name, part in parts.items())
    return f" ({found})" if len(parts) > 1 else ""


def _static(energy: Energy) -> str:
    """Shares of static energy that went into waiting, and into idling."""
    words = [f"{name} {_share(part, energy)}" for name, part in (("waiting", energy.waiting), ("idle", energy.idle)) if part]
    return f" (of it {', '.join(words)})" if words else ""


def _tokens_per_joule(energy: Energy) -> float:
    return energy.tokens * FJ_PER_J / energy.total if energy.total else 0.0


def _share(part: int, energy: Energy) -> str:
    return f"{part / energy.total:.1%}" if energy.total else "0%"
