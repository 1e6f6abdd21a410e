"""What is measured, each as a function of no arguments that returns how many tasks (or slices, or timeouts) it did."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from benchmarks import baseline
from sim.cli.run import write_trace
from sim.eventlog import EventLog
from sim.replay import run as replay
from sim.report.summary import summary
from sim.requests import Request
from sim.result import Result
from sim.runner import op_graphs, prepare, read, run
from sim.shipped import scenarios
from sim.simulation import Setup, simulate

SCENARIO = "llama_1b_context_256"
STEPS = 1024
FEW = 4  # steps simulated one by one


def setup_of(steps: int, *overrides: str) -> Setup:
    scenario = read(scenarios()[SCENARIO], list(overrides))
    setup = prepare(scenario, *op_graphs(scenario))
    return replace(setup, sequences=[Request(context=256, tokens=steps, arrival=0)])


def read_all(log: EventLog) -> int:
    """Have every column made."""
    for column in fields(log.tasks):
        getattr(log.tasks, column.name)
    return len(log.tasks)


class Decode:
    """The contenders on decode steps of a whole Llama-3.2-1B, and their makespans on the same few steps."""

    def __init__(self, steps: int) -> None:
        self.few, self.all = setup_of(FEW), setup_of(steps)
        self.scenario = read(scenarios()[SCENARIO], [f"workload.sequences=[{{context: 256, tokens: {steps}}}]"])
        self.size = len(self.few.graph)
        expected = simulate(self.few).makespan
        self.deviation = baseline.simulate(self.few) / expected - 1
        self.result: Result | None = None

    def idiomatic(self) -> int:
        baseline.simulate(self.few)
        return FEW * self.size

    def timeouts(self) -> int:
        return baseline.timeouts(100_000)

    def plain(self) -> int:
        return len(simulate(self.few).tasks)

    def replayed(self) -> int:
        return len(replay(self.all)[0].tasks)

    def columns(self) -> int:
        return read_all(replay(self.all)[0])

    def accounted(self) -> int:
        self.result = run(self.scenario)
        return self.result.metrics.tasks

    def summarised(self) -> int:
        result = run(self.scenario)
        json.dumps(summary(result))
        return result.metrics.tasks


def rounds(contenders: dict[str, Callable[[], int]], count: int) -> dict[str, list[float]]:
    """Rates (things a CPU second) of each contender in interleaved rounds, after one that warms up."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(count + 1):
        for name, work in contenders.items():
            began = time.process_time()
            done = work()
            if number:
                rates[name].append(done / (time.process_time() - began))
    return rates


def trace(result: Result) -> tuple[int, float, int]:
    """Tasks, CPU seconds and bytes of a whole trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.pftrace"
        began = time.process_time()
        write_trace(result, path)
        return result.metrics.tasks, time.process_time() - began, path.stat().st_size


def start_up() -> float:
    """CPU seconds of `sim run` of a small scenario, trace included, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        path = scenarios()["two_tokens_4_engines"]
        subprocess.run([sys.executable, "-m", "sim", "run", path, "--out", folder], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def growth(tasks: int, *, plain: bool) -> dict[str, Any]:
    """A run of about so many tasks in a process of its own: tasks, CPU seconds, bytes of memory it added at the peak."""
    return _alone("plain" if plain else "replay", tasks)


def many(what: str, count: int) -> dict[str, Any]:
    """A run with so many sequences or engines at once, in a process of its own: tasks, grants, CPU seconds, bytes of memory."""
    return _alone(what, count)


def _alone(what: str, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.measure", what, str(count)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def _grow(what: str, count: int) -> dict[str, Any]:
    replay(setup_of(1))  # what is loaded once does not count
    setup = _setup(what, count)
    before = _peak()
    began = time.process_time()
    log = replay(setup)[0] if what == "replay" else simulate(setup)
    simulated = time.process_time() - began
    done = read_all(log)
    whole = time.process_time() - began
    return {"tasks": done, "grants": len(log.grants), "simulated": simulated, "whole": whole, "peak": _peak() - before}


def _setup(what: str, count: int) -> Setup:
    """So many tasks of `plain` or `replay`, or so many sequences or engines."""
    if what in {"plain", "replay"}:
        return setup_of(max(1, round(count / len(setup_of(1).graph))))
    arbiter = "processor_sharing" if "fair" in what else "fifo"
    engines, sequences = (count, 1) if what == "engines" else (16, count)
    scenario = read(scenarios()[SCENARIO], [
        "model.layers=1", "model.scope=block", f"hardware.memory.arbiter={arbiter}", f"hardware.engines.count={engines}",
        f"mapping.tiles={64 if what == 'engines' else 1}",
    ])  # fmt: skip
    setup = prepare(scenario, *op_graphs(scenario))
    tokens = 100 if what == "engines" else 1
    return replace(setup, sequences=[Request(context=256, tokens=tokens, arrival=0)] * sequences)


def _peak() -> int:
    """Bytes of memory at the peak. Linux only: `ru_maxrss` would count what the parent had when it started this process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def spread(values: list[float], digits: int = 0) -> str:
    """Median, and least to most."""
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    print(json.dumps(_grow(sys.argv[1], int(sys.argv[2]))))
