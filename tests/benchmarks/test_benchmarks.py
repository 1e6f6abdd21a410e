"""The benchmarks run, and what they compare with does the same work."""

from __future__ import annotations

import subprocess
import sys
from heapq import heappop
from pathlib import Path
from typing import Any

import pytest

from benchmarks import baseline, measure
from sim.hardware import instant
from sim.simulation import simulate

ROOT = Path(__file__).parents[2]


def test_the_idiomatic_program_simulates_the_same_steps():
    setup = measure.setup_of(2)
    assert baseline.simulate(setup) == simulate(setup).makespan


@pytest.mark.parametrize("execution", ["blocking", "stream", "prefetch"])
@pytest.mark.parametrize("arbiter", ["fifo", "processor_sharing"])
def test_a_task_takes_at_most_two_events(monkeypatch: pytest.MonkeyPatch, execution: str, arbiter: str):
    events = 0

    def counted(queue: list[Any]) -> Any:
        nonlocal events
        events += 1
        return heappop(queue)

    monkeypatch.setattr(instant, "heappop", counted)
    setup = measure.setup_of(1, f"mapping.execution={execution}", f"hardware.memory.arbiter={arbiter}")
    tasks = len(simulate(setup).tasks)
    assert tasks < events <= 2 * tasks


@pytest.mark.slow
def test_the_benchmarks_run(tmp_path: Path):
    target = tmp_path / "page.md"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--write", str(target)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    text = target.read_text()
    for heading in ("## Simulation", "## Trace writer", "## Start-up", "## Growth"):
        assert heading in text
