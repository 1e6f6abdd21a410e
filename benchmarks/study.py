"""The rate of a study: `python -m benchmarks.study [POINTS] [PROCESSES]`, and a section of `python -m benchmarks`.

Points of `two_tokens_4_engines` on 1 to 16 engines and with contexts from 1 on, and of a whole decode step of Llama-3.2-1B on 1
to 16 engines and with bandwidths from 50 GB/s on. Rates are of wall-clock time, which other programs on the machine lengthen,
and of CPU time of all processes together, beside a loop of `sim.run` in one process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

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


def measured(study: Study, make: Callable[[], Pool]) -> tuple[float, float]:
    """Runs per second of wall-clock time, and of CPU time, from the start of processes to the last row."""
    with tempfile.TemporaryDirectory() as folder:
        began, before = time.perf_counter(), spent()
        with Store(Path(folder) / "rows", study).opened() as store:
            sweep(study, store, make())
        return study.runs / (time.perf_counter() - began), study.runs / (spent() - before)


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
    """Cells of a table: study, runs, executor, runs per second and per CPU second, and the latter over a loop of `sim.run`."""
    executors: dict[str, Callable[[], Pool]] = {"this process": Here, f"{count} processes": partial(Processes, count)}
    if find_spec("distributed") is not None:
        executors[f"Dask, {DASK} workers"] = partial(Cluster, LOCAL, DASK)
    for name, study in studies(points).items():
        for title, make in executors.items():
            wall, of_cpu = measured(study, make)
            loop = in_a_loop(study)
            yield name, f"{study.runs:,}", title, f"{wall:,.0f}", f"{of_cpu:,.0f}", f"{of_cpu / loop:.2g}"


def memory() -> str:
    """Peak memory of this process and of the largest one beside it."""
    here, largest = (resource.getrusage(who).ru_maxrss / 1000 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{here:,.0f} MB in this process, {largest:,.0f} MB in the largest beside it"


def section(options: argparse.Namespace) -> Iterator[str]:
    """The section of the page of benchmarks."""
    yield f"""## Studies

`sim sweep` of small points, with the start of processes and all rows on disk; the last column is against a loop of `sim.run` in
one process, per CPU second. Targets on two idle cores: {" and ".join(f"{n} runs/s of {name}" for name, n in TARGETS.items())}.
"""
    yield "| study | runs | executor | runs/s | runs per CPU s | times as many as `sim.run` |\n|" + " --- |" * 6
    for cells in rows(64 if options.quick else 10_000, 2):
        yield f"| {' | '.join(cells)} |"
    yield f"\nA process starts in {start():.2f} s of CPU time (target 1 s). Memory: {memory()}."


def main() -> None:
    """Measure and print a table."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    count = int(sys.argv[2]) if len(sys.argv) > 2 else cores()
    head = ("study", "runs", "executor", "runs/s", "per CPU s", "over sim.run")
    for cells in chain([head], rows(points, count)):
        print("{:24} {:>7} {:18} {:>8} {:>10} {:>14}".format(*cells), flush=True)
    print(f"start of a process: {start():.2f} s of CPU time; memory: {memory()}")


if __name__ == "__main__":
    main()
