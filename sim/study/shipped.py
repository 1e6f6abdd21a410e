"""The studies that ship with the program."""

from __future__ import annotations

from pathlib import Path

from sim.base.errors import InputError, nearest
from sim.base.files import kind_of, shown
from sim.scenario.shipped import SCENARIOS

STUDIES = SCENARIOS / "studies"


def studies() -> dict[str, Path]:
    """Shipped studies by name."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}


def find_study(name: str) -> Path:
    """A path as it is, or a shipped study by its name. Raises InputError with the nearest name."""
    path = Path(name)
    if kind_of(path) is not None or path.suffix in {".yaml", ".yml"}:
        return path
    shipped = studies()
    if name in shipped:
        return shipped[name]
    raise InputError(
        f"{shown(name)}: no such file, and no shipped study of that name{nearest(name, shipped)}; a scenario needs --over"
    )
