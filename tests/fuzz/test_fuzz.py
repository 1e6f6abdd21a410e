"""Damaged files are read or refused in one line: some of each kind in every run, more than 10,000 in the slow one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import KINDS, attempt, read_sound

FEW = 15

#: Inputs of all kinds together in the slow suite, at least; and seconds that a kind may go on for when it has made its part.
IN_ALL, SECONDS = 10_000, 15

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
    least = -(-IN_ALL // len(KINDS))
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--least", str(least)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-3000:])
    assert done.returncode == 0
    made = re.search(r"(\d+) inputs, \d+ refused, 0 failures", done.stdout)
    assert made is not None
    assert int(made[1]) >= least
