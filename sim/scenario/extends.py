"""Inheritance: a scenario with `extends: FILE` has all keys of that file, except where it writes its own.

Mappings are joined key by key; any other value replaces the one of the base. Every key keeps its place, so errors name the file
in which it is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sim.base.documents import Document, Node, joined, read, without
from sim.base.errors import InputError
from sim.base.files import kind_of
from sim.machine.presets import is_path
from sim.scenario.paths import PATHS, PRESET_PATH, TRACE_PATH, folder_of
from sim.scenario.shipped import find_scenario

KEY = "extends"

#: Keys that describe one file, which another file does not inherit.
OWN = ("name", "description")


def extended(document: Document, _inside: Sequence[str] = ()) -> Document:
    """The document joined with its bases; itself if it has none.

    A base is a path relative to the folder of the document, or the name of a shipped scenario. Raises InputError, at the key
    `extends`, for a base that cannot be read and for a cycle.
    """
    written = document.root.child(KEY)
    if written is None or written.value is None:
        return document
    place = document.place((KEY,))
    if not isinstance(written.value, str) or not written.value:
        raise place.error(f"{KEY}: expected the path of a scenario, or the name of a shipped one")
    path = _find(document, written.value)
    if os.path.realpath(path) in (here := [*_inside, os.path.realpath(document.source)]):
        raise place.error(f"{KEY}: {path} extends itself")
    base = extended(read(path), here)
    root = without(moved(base, folder_of(document)).root, (*OWN, KEY))
    return Document(joined(root, without(document.root, (KEY,))), document.source, document.text)


def _find(document: Document, name: str) -> Path:
    """The path of a base. Raises InputError at the key."""
    beside = folder_of(document) / name
    try:
        if kind_of(beside) == "file":
            return beside
        found = find_scenario(str(beside) if Path(name).suffix in {".yaml", ".yml"} and Path(name).parent != Path() else name)
        if kind_of(found) is None:
            read(found)  # says what is near
        return found
    except InputError as error:
        raise document.place((KEY,)).error(f"{KEY}: {error}") from None


def moved(document: Document, folder: Path) -> Document:
    """The same document with its relative paths as seen from another folder."""
    here = folder_of(document)
    if os.path.realpath(here) == os.path.realpath(folder):
        return document
    moved = document
    for path in (*PATHS, PRESET_PATH, TRACE_PATH):
        node, reached = document.find(path)
        is_file = isinstance(node.value, str) and reached == path
        if is_file and (path != PRESET_PATH or is_path(str(node.value))) and not Path(str(node.value)).is_absolute():
            moved = moved.replaced(path, Node(_relative(here / str(node.value), folder), node.place))
    return moved


def _relative(path: Path, folder: Path) -> str:
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # on another drive
        return str(path.absolute())
