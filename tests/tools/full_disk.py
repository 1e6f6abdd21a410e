"""A full disk, for files that are written whole: what is written for them goes to a device that has no space."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest

from sim.base import files


def fill_disk(monkeypatch: pytest.MonkeyPatch, part: str = "") -> None:
    """Have no space for files with `part` in their names."""
    real = files._temporary

    def temporary(target: Path, path: files.StrPath, made: list[Path]) -> BinaryIO:
        if part not in target.name:
            return real(target, path, made)
        made[:] = [target.with_name(f".{target.name}.part")]
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(files, "_temporary", temporary)
