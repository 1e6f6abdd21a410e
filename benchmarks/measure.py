"""Time and memory: rates in interleaved rounds, and runs in processes of their own. Imports nothing of the simulator."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
SHORTEST = 0.1  # CPU seconds: what takes less is repeated
CORES = "DECODE_SIM_THREADS"
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Contender(Generic[T]):
    """A program to measure. prepare: makes its input, anew each time and not timed. work: returns the amount of work done."""

    prepare: Callable[[], T]
    work: Callable[[T], int]

    def rate(self, shortest: float = SHORTEST) -> float:
        """Units of work per second of CPU time."""
        done, spent = 0, 0.0
        while not done or spent < shortest:
            given = self.prepare()
            gc.collect()
            began = time.process_time()
            done += self.work(given)
            spent += time.process_time() - began
        return done / spent


def rounds(contenders: Mapping[str, Contender[Any]], count: int, shortest: float = SHORTEST) -> dict[str, list[float]]:
    """Rates of each contender in interleaved rounds, after one that warms up. shortest: 0 for a try, without it."""
    if shortest:
        for contender in contenders.values():
            contender.rate(0)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, contender in contenders.items():
            rates[name].append(contender.rate(shortest))
    return rates


def ratios(rates: Sequence[float], base: Sequence[float]) -> list[float]:
    """Ratios within each round."""
    return [rate / reference for rate, reference in zip(rates, base, strict=True)]


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, minimum and maximum, as text."""
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def alone(module: str, request: Mapping[str, Any], *, cores: int = 1, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """JSON output of a module of the benchmarks for a JSON request, in a separate process that may use `cores` cores."""
    found: dict[str, Any] = json.loads(
        subprocess.run(
            [sys.executable, "-m", module, json.dumps(request)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, CORES: str(cores), **(env or {})},
        ).stdout
    )  # fmt: skip
    return found


def keep_to(cores: int) -> None:
    """Use no more than so many cores from now on, whatever a program asks for. Linux only."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


class Meter:
    """CPU seconds, wall-clock seconds, and bytes of peak memory, of the whole process and above its start.

    system: the CPU seconds of the operating system alone, nearly all of them for memory that is touched for the first time. On
    a virtual machine they depend on whether its host has to find that memory first.
    """

    def __init__(self) -> None:
        gc.collect()
        clear = Path("/proc/self/clear_refs")
        if clear.exists():
            clear.write_text("5")  # the peak is that from now on
        self.memory = _memory("VmRSS")
        self.cpu, self.system, self.wall = time.process_time(), os.times().system, time.perf_counter()

    def read(self) -> dict[str, float]:
        cpu, wall, peak = time.process_time() - self.cpu, time.perf_counter() - self.wall, _memory("VmHWM")
        system = os.times().system - self.system
        return {"cpu": cpu, "system": system, "wall": wall, "peak": peak, "added": peak - self.memory}


def _memory(name: str) -> int:
    """Peak memory in bytes. Linux only: `ru_maxrss` would include the memory of the parent when it started this process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
