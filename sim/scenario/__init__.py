"""Scenario files: read, checked and frozen, with the place of every key kept for later errors.

`load("scenarios/two_tokens_4_engines.yaml", ["hardware.memory.bandwidth=50 GB/s"])` gives a `Scenario` whose
`hardware.memory.bandwidth` is 50_000_000_000 (bytes per second). Errors that only a later stage finds are raised with
their place: `raise scenario.error("model.layers", "expected 1 to 16, found 40")`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.formats import Formats
from sim.base.documents import Assignment, Document, assignment, from_plain, read
from sim.base.documents import parse as parse_document
from sim.base.errors import InputError
from sim.base.problems import raise_first, translate
from sim.base.section import NAME, Choice
from sim.cost.settings import Cost
from sim.machine.settings import Arbiter, Engines, Hardware, Memory, Scheduler
from sim.mapping.settings import Fuse, ModelMapping
from sim.scenario.completion import Completed, completed
from sim.scenario.extends import KEY as EXTENDS
from sim.scenario.extends import extended, moved
from sim.scenario.graph_op import GraphOp
from sim.scenario.problems import WORDING, unknown_names
from sim.scenario.sections import Model, Report, Scenario, SequenceGroup, Trace, Window, Workload
from sim.scenario.shipped import a_study
from sim.workload.settings import Arrivals, Columns, Concurrency, Generate, Lengths, RequestTrace

__all__ = [
    "Arbiter",
    "Arrivals",
    "Choice",
    "Columns",
    "Concurrency",
    "Cost",
    "Engines",
    "Formats",
    "Fuse",
    "Generate",
    "GraphOp",
    "Hardware",
    "Known",
    "Lengths",
    "Memory",
    "Model",
    "ModelMapping",
    "Report",
    "RequestTrace",
    "Scenario",
    "Scheduler",
    "SequenceGroup",
    "Trace",
    "Window",
    "Workload",
    "as_written",
    "assigned",
    "from_dict",
    "from_document",
    "json_schema",
    "load",
    "override",
    "parse",
]

#: Keys that only the file of a study has.
STUDY_KEYS = ("scenario", "axes", "zip", "cases", "sample", "find", "optimize", "objectives", "constraints")

#: The names that `arbiter`, `scheduler` and `cost` may have; kinds that are not listed are not checked here.
Known = Mapping[str, Collection[str]]


def load(path: str | Path, overrides: Sequence[str] = (), known: Known | None = None) -> Scenario:
    """Read a scenario file.

    overrides: assignments such as `hardware.memory.bandwidth=50 GB/s`, applied in order before the check.
    known: valid names of policies by what they are (`arbiter`, `scheduler`, `cost`).
    Raises InputError in one line, `file:line:column: key: expected ..., found ...`, for anything that is wrong.
    """
    document = read(path)
    if any(document.root.child(key) is not None for key in STUDY_KEYS):
        raise InputError(a_study(str(path)))
    return _validate(_changed(document, overrides), known, Path(path).stem)


def parse(text: str, source: str = "<string>", overrides: Sequence[str] = (), known: Known | None = None) -> Scenario:
    """Read a scenario from YAML text, as `load` does. source: name of the text in errors."""
    return _validate(_changed(parse_document(text, source), overrides), known)


def from_dict(
    data: Mapping[str, Any], source: str = "<dict>", overrides: Sequence[str] = (), known: Known | None = None,
    *, complete: bool = False,
) -> Scenario:  # fmt: skip
    """Read a scenario from plain data with quantities as text (`100 GB/s`), as `load` does.

    complete: it has all figures of its preset or profile, as `Scenario.to_dict` writes them, so that no file is opened.
    """
    return _validate(_changed(from_plain(data, source), overrides), known, complete=complete)


def override(scenario: Scenario, assignments: Sequence[str], known: Known | None = None) -> Scenario:
    """The same scenario with some values changed, checked again. Raises InputError that names the assignment."""
    return _validate(scenario._document.override(assignments), known, scenario.name)


def assigned(
    scenario: Scenario, assignments: Iterable[Assignment], known: Known | None = None, *, like: Scenario | None = None
) -> Scenario:
    """The same scenario with values that were read before, checked again: `override` without its parsing.

    like: an earlier result; sections that are written as there are taken from it.
    """
    return _validate(scenario._document.assigned(assignments), known, scenario.name, like=like or scenario)


def from_document(document: Document, known: Known | None = None, name: str = "scenario") -> Scenario:
    """Read a scenario from a document, as `load` does. name: its name if it writes none."""
    return _validate(document, known, name)


def as_written(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """The keys of a scenario that are written, its bases' included, as plain data; paths are relative to a folder."""
    data: dict[str, Any] = moved(scenario._document, folder).plain()
    return {"name": scenario.name, **data}


#: Sections that presets complete, of a device or of a link, so that none of their keys need be written.
COMPLETED = ("Energy", "Host", "Link")


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of scenario files, for editors.

    It accepts every valid scenario. Rules that it cannot express (whole numbers of bytes, sums over sections, names of
    policies) are checked only when a scenario is read.
    """
    schema = Scenario.model_json_schema(mode="validation")
    del schema["required"]
    schema["anyOf"] = [{"required": ["model"]}, {"required": ["extends"]}]
    for section in COMPLETED:
        del schema["$defs"][section]["required"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _changed(document: Document, overrides: Sequence[str]) -> Document:
    """The document with assignments applied to the keys of its bases, too: `sequences.0` may be an item of a base.

    Assignments of `extends` itself come first, because they choose the bases.
    """
    read_ones = [assignment(text) for text in overrides]
    bases = [each for each in read_ones if each.keys == (EXTENDS,)]
    rest = [each for each in read_ones if each.keys != (EXTENDS,)]
    return extended(document.assigned(bases)).assigned(rest) if rest else document.assigned(bases)


def _validate(
    document: Document, known: Known | None, name: str = "scenario", *, complete: bool = False, like: Scenario | None = None
) -> Scenario:
    document = extended(document)
    data = document.plain()
    if isinstance(data, dict) and "name" not in data and re.match(NAME, name):
        data["name"] = name
    data, brought, incomplete = Completed(data, [], []) if complete else completed(data, document)
    problems = [*unknown_names(document, known or {}), *incomplete]
    written = {} if like is None else {key: repr(value) for key, value in data.items()}  # unlike values, texts have a type
    try:
        scenario = _as_like(data, written, like) or Scenario.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        if incomplete:  # rules of the section as a whole cannot be checked while figures are missing
            details = [detail for detail in details if detail["loc"] != ("hardware",) or detail["type"] != "value_error"]
        problems += translate(details, document, WORDING)
        raise_first(problems)
        raise  # unreachable: every detail is a problem
    raise_first(problems)
    scenario._document, scenario._from_preset, scenario._written = document, tuple(brought), written
    return scenario


def _as_like(data: Any, written: Mapping[str, str], like: Scenario | None) -> Scenario | None:
    """The scenario with sections of another one where these are written the same; None if there are none, or it is not valid.

    A section that has been validated passes as it is; what is checked of several together is checked again.
    """
    before = {} if like is None else like._written
    same = {key: getattr(like, key) for key, text in written.items() if before.get(key) == text}
    try:
        return Scenario.model_validate({**data, **same}) if same else None
    except ValidationError:
        return None  # its errors are those of the data
