"""The scenarios that ship with the program."""

from __future__ import annotations

from pathlib import Path

from sim.base.errors import InputError, nearest
from sim.base.files import kind_of, shown

SCENARIOS = Path(__file__).parents[2] / "scenarios"


def scenarios() -> dict[str, Path]:
    """Shipped scenarios by name."""
    return {path.stem: path for path in sorted(SCENARIOS.glob("*.yaml"))}


def a_study(name: str) -> str:
    """The error of a command about scenarios that was given a study."""
    return f"{shown(name)}: expected a scenario, found a study; `sim sweep {shown(name)} --dry-run` checks it"


def find_scenario(name: str) -> Path:
    """A path as it is, or a shipped scenario by its name; raises InputError with the nearest shipped name."""
    if name.endswith((".pftrace", ".pftrace.gz")):
        raise InputError(f"{name}: expected a scenario, found a trace; `sim view {name}` opens it")
    if name.endswith(".parquet"):
        raise InputError(f"{name}: expected a scenario, found an event log; `sim.load_log` reads it, in Python")
    path = Path(name)
    exists = kind_of(path) is not None
    if exists or path.suffix in {".yaml", ".yml"}:
        stem = path.stem.replace("-", "_")
        if not exists and stem in (shipped := scenarios()) and path.parent.name in {"", "scenarios"}:
            return shipped[stem]
        return path
    shipped = scenarios()
    if name.replace("-", "_") in shipped:  # as titles of runs have it
        return shipped[name.replace("-", "_")]
    if (SCENARIOS / "studies" / f"{path.name}.yaml").is_file():
        raise InputError(a_study(name))
    raise InputError(
        f"{shown(name)}: no such file, and no shipped scenario of that name{nearest(name, shipped)}; "
        "`sim list scenarios` has them"
    )
