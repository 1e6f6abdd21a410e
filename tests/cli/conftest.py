"""The `sim` command in a folder of its own: in this process, or as a process where that is what matters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.tools.command import call

SIM = str(Path(sys.executable).with_name("sim"))

Sim = Callable[..., "CompletedProcess[str]"]

#: Environment variables that ask for colors or a width.
TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")


@pytest.fixture
def sim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sim:
    """Runs `sim` with arguments in this process, with streams that are no terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DECODE_SIM_CACHE", str(tmp_path / "cache"))
    for name in TERMINAL:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path | float, status: int = 0) -> CompletedProcess[str]:
        words = [str(each) for each in arguments]
        done = call(words)
        assert done.status == status, done.stderr
        return CompletedProcess(words, *done)

    return run


@pytest.fixture
def process(tmp_path: Path) -> Sim:
    """Runs the `sim` command as a process; takes options of `subprocess.run`."""

    def run(*arguments: str | Path, status: int = 0, **options: Any) -> CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key not in TERMINAL}
        environment |= {"DECODE_SIM_CACHE": str(tmp_path / "cache"), **options.pop("env", {})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path, **options}
        done = subprocess.run([SIM, *map(str, arguments)], text=True, env=environment, check=False, timeout=120, **options)
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture
def fails(sim: Sim) -> Callable[..., str]:
    """Runs `sim` where it must fail, and returns its one line on stderr, after `error: `."""
    return lambda *arguments, status=2: error_of(sim(*arguments, status=status))


def error_of(done: CompletedProcess[str]) -> str:
    """The one line that a command which failed has written, after `error: `."""
    assert not done.stdout, "what fails says nothing on stdout"
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").rstrip("\n")
