"""Files of presets, and the `hardware` section of a scenario completed by one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.base.registry import Registry
from sim.machine.presets.preset import Preset, read_preset

FOLDER = Path(__file__).parent

#: Paths of the files of presets, by name.
PRESETS: Registry[str | Path] = Registry("hardware preset", {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))})

#: Keys that a scenario replaces as a whole: points of two curves, or options of two arbiters, cannot be mixed.
WHOLE = frozenset(("efficiency", "arbiter"))


def find(name: str, folder: Path = Path()) -> Preset:
    """The preset of that name, or in the file of that path, from a folder. Raises InputError with the nearest name."""
    if is_path(name):
        path = folder / name
        return read_preset(path, path.stem)
    return _shipped(name)


def is_path(name: str) -> bool:
    """Whether a preset is named by the path of its file."""
    return Path(name).suffix in (".yaml", ".yml")


@lru_cache(maxsize=64)
def _shipped(name: str) -> Preset:
    return read_preset(PRESETS.get(name), name)


def complete(preset: Preset, written: Mapping[str, Any]) -> dict[str, Any]:
    """The `hardware` section as written, completed by a preset: keys that are written win.

    Raises ValueError if the preset does not know the bandwidth and the scenario does not say it.
    """
    memory = written.get("memory")
    memory = memory if isinstance(memory, Mapping) else {}
    if preset.unpublished and "bandwidth" not in memory:
        raise ValueError(
            f"the bandwidth of preset {preset.name!r} is not published ({preset.unpublished}): "
            "expected the key hardware.memory.bandwidth"
        )
    return over(preset.hardware(achievable=memory.get("achievable") is True), written)


def over(base: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """A `hardware` section, overridden by the keys that are written."""
    result = {**base, **written}
    for key in base.keys() & written.keys() - WHOLE:
        below, above = base[key], written[key]
        if isinstance(below, Mapping) and isinstance(above, Mapping):
            result[key] = over(below, above)
    return result
