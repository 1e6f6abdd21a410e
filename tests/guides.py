"""Guides that add a package: their files, installed as far as Python can tell."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[1] / "docs/guides"


def files(guide: str) -> dict[str, str]:
    """The files that a guide shows: blocks of code whose first line is a comment with the name."""
    text = (GUIDES / guide).read_text(encoding="utf-8")
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, flags=re.DOTALL))


def install(guide: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the files of a guide to a folder, with the metadata that an installer would make of its entry points."""
    for name, text in files(guide).items():
        (folder / name).write_text(text, encoding="utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = ["\n".join([f"[{g}]", *(f"{k} = {v}" for k, v in e.items())]) for g, e in project["entry-points"].items()]
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    monkeypatch.syspath_prepend(folder)
    return folder
