"""Damaged files are read or refused in one line: some of each kind in every run, thousands in the slow one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import KINDS, attempt, read_sound

FEW, SECONDS = 15, 25

#: Writing a sound file takes a run of the simulator: these are for the slow suite alone.
MADE = {"log", "trace"}


@pytest.mark.parametrize("name", [name for name in KINDS if name not in MADE])
def test_some_damaged_files(name: str, tmp_path: Path) -> None:
    sound = KINDS[name].sound(tmp_path)
    assert sound
    read_sound(KINDS[name], sound[:3], tmp_path)
    for number in range(FEW):
        attempt(KINDS[name], sound, number, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS)], capture_output=True, text=True, check=False
    )
    print(done.stdout[-6000:], done.stderr[-3000:])
    assert done.returncode == 0
