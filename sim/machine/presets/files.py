"""Files of presets, and the `hardware` section of a scenario completed by one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.base.registry import Registry
from sim.machine.presets.defaults import compatible
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


#: Keys of `cost` that are constants of kernels: alone they are those of the cost model that a preset brings.
CONSTANTS = frozenset({"t0", "peak_share", "unpack"})


def is_path(name: str) -> bool:
    """Whether a preset is named by the path of its file."""
    return Path(name).suffix in (".yaml", ".yml")


@lru_cache(maxsize=64)
def _shipped(name: str) -> Preset:
    return read_preset(PRESETS.get(name), name)


def complete(preset: Preset, data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A scenario as written, completed by a preset, and the settings beside figures of the device that it brought.

    Keys that are written win. Raises ValueError if the preset does not know the bandwidth and the scenario does not say it.
    """
    written, use = _section(data, "hardware"), preset.use
    engines, memory = _section(written, "engines"), _section(written, "memory")
    if preset.unpublished and "bandwidth" not in memory:
        raise ValueError(
            f"the bandwidth of preset {preset.name!r} is not published ({preset.unpublished}): "
            "expected the key hardware.memory.bandwidth"
        )
    made, brought = dict(data), list[str]()
    whole = use.engines == "one" and "count" not in engines
    if whole:
        brought.append("hardware.engines.count: 1")
    cost = _cost(preset, data, engines=1 if whole else preset.engines.value)
    if cost is not data.get("cost"):
        made["cost"] = cost
        brought += _constants(preset, _as_mapping(data.get("cost")))
    by_kernel = _as_mapping(cost).get("model") == "kernel"
    achievable = memory.get("achievable", by_kernel and preset.achievable is not None and "efficiency" not in memory)
    one = whole or engines.get("count") == 1  # which stands for the device, or has no other to share the bandwidth with
    figures = preset.hardware(whole=whole, port=not one, achievable=achievable is True)
    if preset.energy is not None and (preset.energy.whole or isinstance(written.get("energy"), Mapping)):
        figures["energy"] = preset.energy.section()
    if preset.link is not None and isinstance(written.get("devices"), Mapping):
        figures["devices"] = {"link": preset.link.section()}
    if preset.host is not None:
        figures["host"] = {"link": preset.host.section()}
    made["hardware"] = over(figures, written)
    if achievable is True and "achievable" not in memory and isinstance(written.get("memory", {}), Mapping):
        made["hardware"]["memory"]["achievable"] = True
        brought.append("hardware.memory.achievable: true")
    mapping = data.get("mapping", {})
    if use.mapping and isinstance(mapping, Mapping):
        model = _section(data, "model")
        defaults = compatible(use.mapping, mapping, captured="graph" not in model)
        made["mapping"] = over(defaults, mapping)
        brought += _brought("mapping", defaults, mapping)
    return made, brought


def _section(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section as written; empty if there is none, or it is of a wrong type, which validation reports."""
    found = data.get(key)
    return found if isinstance(found, Mapping) else {}


def _as_mapping(cost: Any) -> Mapping[str, Any]:
    """The section `cost`, also where it is the name of a model alone."""
    return {"model": cost} if isinstance(cost, str) else cost if isinstance(cost, Mapping) else {}


def _cost(preset: Preset, data: Mapping[str, Any], *, engines: int) -> Any:
    """The section `cost`: as written, or that of the preset; for `kernel` completed by its constants of one of `engines`."""
    cost = data.get("cost", preset.use.cost if preset.kernel is not None else None)
    as_mapping = _as_mapping(cost)
    if as_mapping and as_mapping.keys() <= CONSTANTS:
        as_mapping = {**preset.use.cost, **as_mapping}
    if preset.kernel is None or "kernel" not in (as_mapping.get("model"), as_mapping.get("otherwise")):
        return data.get("cost")
    constants = over(preset.use.cost, preset.kernel.options(engines))
    return over(constants, as_mapping)


def _constants(preset: Preset, written: Mapping[str, Any]) -> list[str]:
    """Return the parts of `cost` that are those of the preset: the cost model, or constants of the one that is written."""
    if not written:
        return ["cost: kernel"]
    known = ("t0", "peak_share", *(["unpack"] if preset.kernel is not None and preset.kernel.unpack else []))
    return [f"cost.{key}" for key in known if not isinstance(written.get(key), (str, float, int))]


def _brought(section: str, defaults: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Lines `section.key: value` of defaults that are not overridden."""
    lines = []
    for key, value in defaults.items():
        if isinstance(value, Mapping):
            lines += _brought(f"{section}.{key}", value, written[key] if isinstance(written.get(key), Mapping) else {})
        elif key not in written:
            lines.append(f"{section}.{key}: {str(value).lower() if isinstance(value, bool) else value}")
    return lines


def over(base: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """A `hardware` section, overridden by the keys that are written."""
    result = {**base, **written}
    for key in base.keys() & written.keys() - WHOLE:
        below, above = base[key], written[key]
        if isinstance(below, Mapping) and isinstance(above, Mapping):
            result[key] = over(below, above)
    return result
