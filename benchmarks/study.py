"""The rate of a study: `python -m benchmarks.study [POINTS] [PROCESSES]`.

Points of `two_tokens_4_engines` on 1 to 16 engines and with contexts from 1 on, and of a whole decode step of Llama-3.2-1B on 1
to 16 engines and with bandwidths from 50 GB/s on. Prints points per second of wall-clock time, and of CPU time of all processes
together, beside a loop of `sim.run` in one process.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from sim.base.cores import cores
from sim.runs.run import read, run
from sim.study.points import Study, over, spread
from sim.study.pool import pool
from sim.study.store import Store
from sim.study.sweep import sweep

SCENARIOS = Path(__file__).parents[1] / "scenarios"
LOOP = 20  # runs of `sim.run`


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


def measured(study: Study, count: int) -> tuple[float, float]:
    """Runs per second of wall-clock time, and of CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        began, before = time.perf_counter(), spent()
        with Store(Path(folder) / "rows", study).opened() as store:
            sweep(study, store, pool(count))
        return study.runs / (time.perf_counter() - began), study.runs / (spent() - before)


def in_a_loop(study: Study) -> float:
    """Runs per second of CPU time of `sim.run`."""
    points = spread(study, LOOP)
    run(study.scenario(points[0]))
    began = time.process_time()
    for point in points:
        run(study.scenario(point))
    return len(points) / (time.process_time() - began)


def main() -> None:
    """Measure and print a table."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    count = int(sys.argv[2]) if len(sys.argv) > 2 else cores()
    print(f"{'study':24} {'runs':>7} {'processes':>9} {'runs/s':>8} {'per CPU s':>10} {'sim.run, per CPU s':>20}")
    for name, study in studies(points).items():
        for processes in dict.fromkeys((1, count)):
            wall, of_cpu = measured(study, processes)
            loop = in_a_loop(study)
            print(f"{name:24} {study.runs:7,} {processes:9} {wall:8,.0f} {of_cpu:10,.0f} {loop:20,.0f}", flush=True)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"memory: {largest[0] / 1000:,.0f} MB here, {largest[1] / 1000:,.0f} MB in the largest process")


if __name__ == "__main__":
    main()
