"""Completion: before validation, presets and device profiles fill in what a scenario lacks. No later check opens files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sim.base.documents import Document, KeyPath
from sim.base.errors import InputError
from sim.base.problems import Problem
from sim.cost.profile import hardware, read_profile
from sim.machine.links import find as find_link
from sim.machine.presets import complete, find, over
from sim.scenario.paths import folder_of

PRESET, FROM_PROFILE = ("hardware", "preset"), ("hardware", "from_profile")
PROFILE = ("cost", "profile")

#: Links, whose figures may be those of a name.
LINKS = (("hardware", "devices", "link"), ("hardware", "devices", "islands", "link"), ("hardware", "host", "link"))

#: Tiers, each of which has a link.
TIERS = ("hardware", "tiers")


class Completed(NamedTuple):
    """The plain data of a scenario with figures and defaults of its preset or profile.

    brought: settings that the preset brought beside figures, as `key: value`. problems: one for each file that cannot be used.
    """

    data: Any
    brought: list[str]
    problems: list[Problem]


def completed(data: Any, document: Document) -> Completed:
    """Complete a scenario. Values of a wrong type are left to validation."""
    data, unknown_links = _links(data, document)
    made = _hardware(data, document)
    made.problems.extend(unknown_links)
    profile = _text(data, PROFILE)
    if profile:
        try:
            read_profile(folder_of(document) / profile)
        except InputError as error:
            made.problems.append(_problem(document, PROFILE, error))
    return made


def _hardware(data: Any, document: Document) -> Completed:
    """A scenario with its hardware completed."""
    folder, problems, made, brought = folder_of(document), list[Problem](), data, list[str]()
    written = data.get("hardware") if isinstance(data, Mapping) else {}
    written = written if isinstance(written, Mapping) else {}
    if name := _text(data, PRESET):
        try:
            preset = find(name, folder)
        except InputError as error:
            problems.append(_problem(document, PRESET, error))
        else:
            try:
                made, brought = complete(preset, data)
            except ValueError as error:  # without these figures, the rest of the section cannot be validated
                others = {key: value for key, value in data.items() if key != "hardware"}
                return Completed(others, [], [_problem(document, ("hardware",), error)])
    if name := _text(data, FROM_PROFILE):
        try:
            profile = read_profile(folder / name)
        except InputError as error:
            problems.append(_problem(document, FROM_PROFILE, error))
        else:
            if written.get("preset") is None:
                made = {**data, "hardware": over(hardware(profile), written)}
    return Completed(made, brought, problems)


def _links(data: Any, document: Document) -> tuple[Any, list[Problem]]:
    """A scenario with the figures of the links that it names, and a problem for each name that there is not."""
    problems = list[Problem]()
    hardware = data.get("hardware") if isinstance(data, Mapping) else None
    tiers = hardware.get("tiers") if isinstance(hardware, Mapping) else None
    of_tiers = [(*TIERS, number, "link") for number in range(len(tiers))] if isinstance(tiers, list | tuple) else []
    for path in (*LINKS, *of_tiers):
        if name := _text(data, (*path, "preset")):
            try:
                figures = find_link(name).section()
            except InputError as error:
                problems.append(_problem(document, (*path, "preset"), error))
            else:
                data = _completed_at(data, path, figures)
    return data, problems


def _completed_at(data: Any, path: KeyPath, figures: Mapping[str, Any]) -> Any:
    """Plain data, with figures that what is written at a path lacks."""
    key, *rest = path
    below = data[key]
    made = _completed_at(below, tuple(rest), figures) if rest else {**figures, **below}
    if isinstance(data, Mapping):
        return {**data, key: made}
    return [made if number == key else each for number, each in enumerate(data)]


def _text(data: Any, path: KeyPath) -> str:
    """The text at a path of plain data; empty if there is none."""
    for key in path:
        if isinstance(data, Mapping):
            data = data.get(key)
        else:
            data = data[key] if isinstance(data, list | tuple) and isinstance(key, int) else None
    return data if isinstance(data, str) else ""


def _problem(document: Document, path: KeyPath, error: Exception) -> Problem:
    return Problem(document.place(path), document.find(path)[1], str(error))
