"""Occupancy of SRAM: as plain data for the JSON, and as text for the terminal."""

from __future__ import annotations

from typing import Any

from sim.analysis.occupancy import Held, Occupancy
from sim.base.units import format_bytes
from sim.machine.machine import Machine
from sim.runs.result import Result

NAMED = 4  # kinds of operands that the line of the summary names

#: Space that loads waited for, where their own device held no operand meanwhile.
ELSEWHERE = "space on other devices, while their own held nothing"


def data(result: Result) -> dict[str, Any]:
    """The key `sram` of a summary, None if ops were not recorded; empty if SRAM is unbounded."""
    if result.plan.rules.sram is None:
        return {}
    found = result.occupancy if result.log.has_rows else None
    if found is None:
        return {"sram": None}

    def rows(held: tuple[Held, ...], of: str) -> list[dict[str, Any]]:
        return [
            {"operand": h.operand, of: h.of, "byte_ps": h.byte_ps, "wait_ps": h.wait, "wait_sram_ps": h.wait_sram} for h in held
        ]

    fullest, several = found.fullest, len(found.devices) > 1
    return {
        "sram": {
            "bytes": fullest.capacity, "most_bytes": fullest.most, "wait_ps": found.wait, "wait_sram_ps": found.wait_sram,
            "by_kind": rows(found.by_kind, "kind"), "by_layer": rows(found.by_layer, "layer"),
            **({"devices": _devices(result, found)} if several else {}),
        }
    }  # fmt: skip


def _devices(result: Result, found: Occupancy) -> list[dict[str, Any]]:
    return [
        {"name": device.name, "bytes": space.capacity, "most_bytes": space.most, "wait_ps": space.wait,
         "wait_sram_ps": space.wait_sram}
        for device, space in zip(result.log.machine.devices, found.devices, strict=True)
    ]  # fmt: skip


def line(result: Result) -> str | None:
    """Line of the summary; None if SRAM is unbounded, or if ops were not recorded."""
    found = result.occupancy if result.log.has_rows else None
    if found is None:
        return None
    most = fullest(found, result.log.machine)
    if not found.wait:
        return f"{most}; no load waited for space"
    if not found.by_kind:
        return f"{most}; loads waited for {ELSEWHERE}"
    named = ", ".join(f"{title(each)} {share(each, found)}" for each in found.by_kind[:NAMED])
    return f"{most}; while loads waited for space, {'SRAM' if len(found.devices) > 1 else 'it'} held {named}"


def fullest(found: Occupancy, machine: Machine) -> str:
    """How much was in use at most; of several devices, of the one with the largest share."""
    space = found.fullest
    where = f", on {machine.devices[found.devices.index(space)].name}" if len(found.devices) > 1 else ""
    return f"{format_bytes(space.most)} of {format_bytes(space.capacity)} in use at most{where}"


def title(held: Held) -> str:
    """Name of a kind of operands: `gate_proj weights`, `kv_load` for the KV cache."""
    return f"{held.of} {held.operand}" if held.operand == "weights" else held.operand


def share(held: Held, of: Occupancy) -> str:
    """Share of the wait for space."""
    return f"{held.wait / of.wait:.0%}"
