"""The rate of a study: `python -m benchmarks.study [POINTS] [PROCESSES]`, and a section of `python -m benchmarks`.

Points of `two_tokens_4_engines` on 1 to 16 engines and with contexts from 1 on, and of a whole decode step of Llama-3.2-1B on 1
to 16 engines and with bandwidths from 50 GB/s on. Rates are of wall-clock time, which other programs on the machine lengthen,
and of CPU time of all processes together, beside a loop of `sim.run` in one process. Memory is that of all processes together,
where pages that several of them share count once (PSS of Linux).
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from sim.base.cores import cores
from sim.runs.run import read, run
from sim.study.batches import Batch
from sim.study.cluster import LOCAL, Cluster
from sim.study.points import Study, over, spread
from sim.study.pool import Here, Pool, Processes
from sim.study.store import Store
from sim.study.sweep import sweep

SCENARIOS = Path(__file__).parents[1] / "scenarios"
LOOP = 20  # runs of `sim.run`
DASK = 4  # worker processes of the cluster
HEAD = ("study", "runs", "executor", "runs/s", "per CPU s", "over `sim.run`", "of the above", "memory")
TARGETS = {"two tokens of a block": 500, "a whole decode step": 200}  # runs a second on two cores


def studies(points: int) -> dict[str, Study]:
    """The studies that are measured; the second has a tenth of the points."""
    short = read(SCENARIOS / "two_tokens_4_engines.yaml")
    whole = read(SCENARIOS / "llama_1b_context_2048.yaml")
    each = max(1, points // 16)
    return {
        "two tokens of a block": over(short, ["hardware.engines.count=1..16", f"workload.sequences.0.context=1..{each}"]),
        "a whole decode step": over(
            whole, ["hardware.engines.count=1..16", f"hardware.memory.bandwidth=50..500 GB/s x{max(2, each // 10)}"]
        ),
    }


def spent() -> float:
    """CPU seconds of this process and of those beside it that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def family(process: int) -> Iterator[int]:
    """A process and all that it has started, as far as the system tells."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def held(process: int) -> int:
    """Kilobytes of memory of a process, its share of shared pages; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Peak:
    """Largest memory of this process and those beside it, looked at every second while the context lasts. megabytes: of all."""

    def __init__(self) -> None:
        self.megabytes, self._over = 0.0, Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            try:
                now = sum(map(held, family(os.getpid()))) * 1024 / 1e6
            except OSError:  # a process ended meanwhile
                continue
            self.megabytes = max(self.megabytes, now)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Measured(NamedTuple):
    """wall, cpu: runs per second of wall-clock time and of CPU time. megabytes: most memory of all processes together."""

    wall: float
    cpu: float
    megabytes: float


def measured(study: Study, make: Callable[[], Pool]) -> Measured:
    """Rates of a study, from the start of processes to the last row, and its memory."""
    with tempfile.TemporaryDirectory() as folder, Peak() as peak:
        began, before = time.perf_counter(), spent()
        with Store(Path(folder) / "rows", study).opened() as store:
            sweep(study, store, make())
        wall, cpu = time.perf_counter() - began, spent() - before
    return Measured(study.runs / wall, study.runs / cpu, peak.megabytes)


def in_a_loop(study: Study) -> float:
    """Runs per second of CPU time of `sim.run`."""
    points = spread(study, LOOP)
    run(study.scenario(points[0]))
    began = time.process_time()
    for point in points:
        run(study.scenario(point))
    return len(points) / (time.process_time() - began)


def start() -> float:
    """CPU seconds from nothing to the first answer of a process: its start, its imports, an empty batch."""
    before, pool = spent(), Processes(1)
    pool.submit(Batch([])).result()
    pool.close()
    return spent() - before


def rows(points: int, count: int) -> Iterator[tuple[str, ...]]:
    """Cells of a table, as `HEAD`."""
    executors: dict[str, Callable[[], Pool]] = {"this process": Here, f"{count} processes": partial(Processes, count)}
    if find_spec("distributed") is not None:
        executors[f"Dask, {DASK} workers"] = partial(Cluster, LOCAL, DASK)
    for name, study in studies(points).items():
        loop, before = in_a_loop(study), None
        for title, make in executors.items():
            found = measured(study, make)
            kept = "" if before is None else f"{found.cpu / before:.0%}"
            before = found.cpu
            yield (
                name, f"{study.runs:,}", title, f"{found.wall:,.0f}", f"{found.cpu:,.0f}", f"{found.cpu / loop:.2g}", kept,
                f"{found.megabytes:,.0f} MB",
            )  # fmt: skip


def section(options: argparse.Namespace) -> Iterator[str]:
    """The section of the page of benchmarks."""
    yield f"""## Studies

`sim sweep` of small points, with the start of processes and all rows on disk. Rates per CPU second are compared with a loop of
`sim.run` in one process, and with the executor in the row above: two processes with one, workers of Dask with two processes.
Memory is that of all processes, with shared pages counted once. Targets on two idle cores:
{" and ".join(f"{n} runs/s of {name}" for name, n in TARGETS.items())}, 500 MB, 90 % of one process, and 80 % of two with Dask.
"""
    yield f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}"
    for cells in rows(64 if options.quick else 10_000, 2):
        yield f"| {' | '.join(cells)} |"
    yield f"\nA process starts in {start():.2f} s of CPU time (target 1 s)."


def main() -> None:
    """Measure and print a table."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    count = int(sys.argv[2]) if len(sys.argv) > 2 else cores()
    for cells in chain([HEAD], rows(points, count)):
        print("{:24} {:>7} {:18} {:>8} {:>10} {:>14} {:>12} {:>10}".format(*cells), flush=True)
    print(f"start of a process: {start():.2f} s of CPU time")


if __name__ == "__main__":
    main()
