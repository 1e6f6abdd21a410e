"""Origins of the values of a scenario: its file, a `--set`, the preset, the profile of a device, or a default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sim.base.documents import Document, KeyPath, dotted
from sim.scenario.completion import completed
from sim.scenario.sections import Scenario


class Origin(NamedTuple):
    """A value of a resolved scenario. key: as `--set` takes it. source: `line 3`, `--set`, `preset h100-sxm`, `default`."""

    key: str
    value: Any
    source: str


def origins(scenario: Scenario) -> list[Origin]:
    """Every value of a scenario but its description and nulls that are not written, in the order of its sections."""
    document = scenario._document
    whole = completed(document.plain(), document).data
    hardware = scenario.hardware
    bringer = f"preset {hardware.preset}" if hardware.preset else "profile"
    return [
        Origin(dotted(path), value, source)
        for path, value in _leaves(scenario.to_dict())
        if path != ("description",) and ((source := _source(document, whole, path, bringer)) != "default" or value is not None)
    ]


def _source(document: Document, whole: Any, path: KeyPath, bringer: str) -> str:
    """Origin of the value at a path. whole: the data with figures of the preset or profile, which `bringer` names."""
    return _written(document, path) or (_of_link(document, path) or bringer if _is_in(whole, path) else "default")


def _of_link(document: Document, path: KeyPath) -> str:
    """The preset of a link that brings a value beside its name; empty if none is written there."""
    name, reached = document.find((*path[:-1], "preset"))
    return f"preset {name.value}" if reached == (*path[:-1], "preset") and len(path) > len(("hardware", "preset")) else ""


def _leaves(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Paths and values of plain data; a list of scalars is one value."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(data, list) and any(isinstance(item, Mapping | list) for item in data):
        for i, item in enumerate(data):
            yield from _leaves(item, (*path, i))
    else:
        yield path, data


def _written(document: Document, path: KeyPath) -> str:
    """Where a value is written; empty if it is not. A short form, such as the name of an arbiter, stands for its section."""
    node, reached = document.find(path)
    if reached != path and isinstance(node.value, Mapping | list):
        return ""
    place = node.place
    return f"line {place.line}" if place.line else "--set" if place.source.startswith("--set") else "data"


def _is_in(data: Any, path: KeyPath) -> bool:
    """Whether plain data have a value there, or a short form of it."""
    for key in path:
        if isinstance(data, Mapping):
            if key not in data:
                return False
            data = data[key]
        elif isinstance(data, list):
            if not isinstance(key, int) or key >= len(data):
                return False
            data = data[key]
        else:
            return True
    return True
