"""The benchmarks run, and what they compare with does the same work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import baseline, measure
from sim.simulation import simulate

ROOT = Path(__file__).parents[2]


def test_the_idiomatic_program_simulates_the_same_steps():
    setup = measure.setup_of(2)
    assert baseline.simulate(setup) == simulate(setup).makespan


@pytest.mark.slow
def test_the_benchmarks_run(tmp_path: Path):
    target = tmp_path / "page.md"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--write", str(target)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    text = target.read_text()
    for heading in ("## Simulation", "## Trace writer", "## Start-up", "## Growth"):
        assert heading in text
