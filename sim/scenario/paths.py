"""Paths in a scenario: the folder that they are relative to, and their absolute form."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.config import names
from sim.base.documents import Document
from sim.base.files import in_home, kind_of
from sim.machine.presets import is_path

#: Keys whose values are always paths, relative to the folder of the scenario.
PATHS: tuple[tuple[str, ...], ...] = (
    ("hardware", "from_profile"), ("cost", "profile"), ("workload", "trace", "file"), ("workload", "routing", "file"),
)  # fmt: skip

#: Keys whose values may be paths: a preset by its file, and a trace in its short form.
PRESET_PATH, TRACE_PATH = ("hardware", "preset"), ("workload", "trace")


def folder_of(document: Document) -> Path:
    """The folder of the file that a document was read from, the working directory if it was read from none."""
    return _parent(document.source) if document.text else Path()


@lru_cache(64)
def _parent(source: str) -> Path:
    """The folder of a file, the working directory for a name that is none."""
    path = Path(source)
    return path.parent if path.suffix else Path()


def with_absolute_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A whole scenario as plain data, with paths that depend neither on its folder nor on the working directory."""
    made = deepcopy(data)
    for *way, key in PATHS:
        section: Any = made
        for name in way:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(key) is not None:
            section[key] = str((folder / section[key]).absolute())
    hardware, model = made["hardware"], made["model"]
    if hardware["preset"] is not None and is_path(hardware["preset"]):
        hardware["preset"] = str((folder / hardware["preset"]).absolute())
    if model["config"] is not None and model["config"] not in names():
        config = folder / in_home(model["config"])
        model["config"] = str(config.absolute()) if kind_of(config) is not None else model["config"]  # else a Hugging Face id
    return made
