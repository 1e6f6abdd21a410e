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
    shipped = studies()
    kind = kind_of(path)
    if name in shipped and kind != "file":  # its folder of rows may be here
        return shipped[name]
    if kind is not None or path.suffix in {".yaml", ".yml"}:
        return path
    raise InputError(
        f"{shown(name)}: no such file, and no shipped study of that name{nearest(name, shipped)}; a scenario needs --over"
    )
