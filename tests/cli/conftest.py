"""The installed `sim` command, as a subprocess in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIM = str(Path(sys.executable).with_name("sim"))

Sim = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def sim(tmp_path: Path) -> Sim:
    """Runs `sim` with arguments. Environment variables that ask for colours or a width are not passed on."""

    def run(*arguments: str | Path, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        unset = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")
        environment = {key: value for key, value in os.environ.items() if key not in unset}
        environment |= {"DECODE_SIM_CACHE": str(tmp_path / "cache"), **options.pop("env", {})}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path, **options}
        done = subprocess.run([SIM, *map(str, arguments)], text=True, env=environment, check=False, timeout=120, **options)
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture
def fails(sim: Sim) -> Callable[..., str]:
    """Runs `sim` where it must fail, and returns its one line on stderr, after `error: `."""

    def run(*arguments: str | Path, status: int = 2, **options: Any) -> str:
        done = sim(*arguments, status=status, **options)
        assert not done.stdout, "what fails says nothing on stdout"
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith("\n")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr.removeprefix("error: ").rstrip("\n")

    return run
