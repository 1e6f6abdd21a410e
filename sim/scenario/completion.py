"""Completion: before a scenario is validated, presets and device profiles fill in its hardware. No later check opens files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.base.documents import Document, KeyPath
from sim.base.errors import InputError
from sim.base.problems import Problem
from sim.cost.profile import hardware, read_profile
from sim.machine.presets import complete, find, over
from sim.scenario.paths import folder_of

PRESET, FROM_PROFILE = ("hardware", "preset"), ("hardware", "from_profile")
PROFILE = ("cost", "profile")


def completed(data: Any, document: Document) -> tuple[Any, list[Problem]]:
    """The plain data of a scenario with figures of its preset or profile, and a problem for each file that cannot be used.

    Values of a wrong type are left to validation.
    """
    made, problems = _hardware(data, document)
    profile = _text(data, PROFILE)
    if profile:
        try:
            read_profile(folder_of(document) / profile)
        except InputError as error:
            problems.append(_problem(document, PROFILE, error))
    return made, problems


def _hardware(data: Any, document: Document) -> tuple[Any, list[Problem]]:
    """The plain data of a scenario with its hardware completed, and the problems of the files that it names."""
    folder, problems, made = folder_of(document), list[Problem](), data
    written = data.get("hardware") if isinstance(data, Mapping) else {}
    written = written if isinstance(written, Mapping) else {}
    if name := _text(data, PRESET):
        try:
            preset = find(name, folder)
        except InputError as error:
            problems.append(_problem(document, PRESET, error))
        else:
            try:
                made = {**data, "hardware": complete(preset, written)}
            except ValueError as error:  # without these figures, the rest of the section cannot be validated
                others = {key: value for key, value in data.items() if key != "hardware"}
                return others, [_problem(document, ("hardware",), error)]
    if name := _text(data, FROM_PROFILE):
        try:
            profile = read_profile(folder / name)
        except InputError as error:
            problems.append(_problem(document, FROM_PROFILE, error))
        else:
            if written.get("preset") is None:
                made = {**data, "hardware": over(hardware(profile), written)}
    return made, problems


def _text(data: Any, path: KeyPath) -> str:
    """The text at a path of plain data; empty if there is none."""
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, str) else ""


def _problem(document: Document, path: KeyPath, error: Exception) -> Problem:
    return Problem(document.place(path), document.find(path)[1], str(error))
