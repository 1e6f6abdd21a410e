"""The rate of a study: `python -m benchmarks.study [POINTS] [PROCESSES]`, and a section of `python -m benchmarks`.

Points of `two_tokens_4_engines` on 1 to 16 engines and with contexts from 1 on, and of a whole decode step of Llama-3.2-1B on 1
to 16 engines and with bandwidths from 50 GB/s on. Rates are of wall-clock time, which other programs on the machine lengthen,
and of CPU time of all processes together, beside a loop of `sim.run` in one process. Each measurement is in a new process, and
counts the start of those beside it. Memory is that of all processes together, where pages
that several of them share count once (PSS of Linux).
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from compileall import compile_dir
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import chain
from multiprocessing import forkserver, get_context
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple, TypeVar

from benchmarks.memory import Peak
from sim.base.cores import cores
from sim.runs.run import read, run
from sim.study.batches import Batch
from sim.study.cluster import local
from sim.study.points import Study, over, spread
from sim.study.pool import Here, Pool, Processes, pool, work
from sim.study.store import Store
from sim.study.sweep import sweep

R = TypeVar("R")

SCENARIOS = Path(__file__).parents[1] / "scenarios"
LOOP = 20  # runs of `sim.run`
DASK = 4  # worker processes of the cluster
FORKS = 20  # processes of which the time to start is a mean
HEAD = ("study", "runs", "executor", "runs/s", "per CPU s", "over `sim.run`", "of the above", "by the clock", "memory")
TARGETS = {"two tokens of a block": 500, "a whole decode step": 200}  # runs a second on two cores


def studies(points: int) -> dict[str, Callable[[], Study]]:
    """The studies that are measured, made anew at each call; the second has a tenth of the points."""
    short = read(SCENARIOS / "two_tokens_4_engines.yaml")
    whole = read(SCENARIOS / "llama_1b_context_2048.yaml")
    each = max(1, points // 16)
    bandwidths = f"hardware.memory.bandwidth=50..500 GB/s x{max(2, each // 10)}"
    return {
        "two tokens of a block": partial(
            over, short, ["hardware.engines.count=1..16", f"workload.sequences.0.context=1..{each}"]
        ),
        "a whole decode step": partial(over, whole, ["hardware.engines.count=1..16", bandwidths]),
    }


def spent() -> float:
    """CPU seconds of this process and of those beside it that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


class Measured(NamedTuple):
    """wall, cpu: runs per second of wall-clock time and of CPU time. megabytes: most memory of all processes together."""

    wall: float
    cpu: float
    megabytes: float


def measured(study: Study, make: Callable[[], Pool]) -> Measured:
    """Rates of a study, from the start of processes to the last row, and its memory."""
    with tempfile.TemporaryDirectory() as folder:
        began, before = time.perf_counter(), spent()
        with Peak() as peak, Store(Path(folder) / "rows", study).opened() as store:
            sweep(study, store, make())
        wall = time.perf_counter() - began
        forkserver._forkserver._stop()  # only then the system tells how long it and its forks ran
        cpu = spent() - before - peak.seconds
    return Measured(study.runs / wall, study.runs / cpu, peak.megabytes)


def apart(work: Callable[..., R], *given: object) -> R:
    """The result of work in a new process, which has no threads, caches or processes that earlier work has left."""
    with ProcessPoolExecutor(1, get_context("spawn")) as one:
        return one.submit(work, *given).result()


def once(make_study: Callable[[], Study], make: Callable[[], Pool]) -> Measured:
    """As `measured`, after all that writes rows was imported."""
    measured(next(iter(studies(1).values()))(), Here)
    return measured(make_study(), make)


def twice(make_study: Callable[[], Study], make: Callable[[], Pool]) -> Measured:
    """Rates of two processes that share nothing, each with the whole study: what two cores leave of the rate of one."""
    with ProcessPoolExecutor(2, get_context("spawn")) as both:
        each = [made.result() for made in [both.submit(once, make_study, make) for _ in range(2)]]
    return Measured(sum(one.wall for one in each), sum(one.cpu for one in each) / 2, sum(one.megabytes for one in each))


def in_a_loop(make_study: Callable[[], Study]) -> float:
    """Runs per second of CPU time of `sim.run`."""
    study = make_study()
    points = spread(study, LOOP)
    run(study.scenario(points[0]))
    began = time.process_time()
    for point in points:
        run(study.scenario(point))
    return len(points) / (time.process_time() - began)


def start(count: int) -> float:
    """CPU seconds from nothing to the first answers of processes, with the start of the server that they are forks of."""
    before = spent()
    for _ in range(count):
        one = Processes(1)
        one.submit(work, Batch([])).result()
        one.close()
    forkserver._forkserver._stop()
    return spent() - before


def starts() -> str:
    """A line on the start of processes."""
    one, more = start(1), start(1 + FORKS)
    further = max(0.0, more - one) / FORKS
    over = Event()
    (other := Thread(target=over.wait)).start()
    anew = start(1)
    over.set()
    other.join()
    return (
        f"A process starts in {one:.2f} s of CPU time, each further one in {further:.2f} s; beside other threads, where its "
        f"server is no fork of the command, in {anew:.2f} s (target 1 s)."
    )


def keep_bytecode() -> None:
    """Write the bytecode of modules, which processes find wherever the program is installed: here it may never be written."""
    for package in ("sim", "models"):
        compile_dir(str(SCENARIOS.parent / package), quiet=1)


def rows(points: int, count: int) -> Iterator[tuple[str, ...]]:
    """Cells of a table, as `HEAD`."""
    keep_bytecode()
    executors: dict[str, Callable[[], Pool]] = {"this process": Here, f"{count} processes": partial(pool, count)}
    if find_spec("distributed") is not None:
        executors[f"Dask, {DASK} workers"] = partial(local, DASK)
    for name, made in studies(points).items():
        runs, loop, before = made().runs, apart(in_a_loop, made), None
        for title, make in executors.items():
            found = apart(once, made, make)
            yield _cells(name, runs, title, found, loop, before)
            if make is Here:
                yield _cells(name, 2 * runs, "two of these at once", twice(made, Here), loop, found)
            before = found


def _cells(name: str, runs: int, title: str, found: Measured, loop: float, before: Measured | None) -> tuple[str, ...]:
    kept = ("", "") if before is None else (f"{found.cpu / before.cpu:.0%}", f"{found.wall / before.wall:.0%}")
    figures = f"{found.wall:,.0f}", f"{found.cpu:,.0f}", f"{found.cpu / loop:.2g}", *kept, f"{found.megabytes:,.0f} MB"
    return (name, f"{runs:,}", title, *figures)


def section(options: argparse.Namespace) -> Iterator[str]:
    """The section of the page of benchmarks."""
    yield f"""## Studies

`sim sweep` of small points, with the start of processes, or of a Dask cluster, and all rows on disk. Processes begin where they
pay: until then, and where few runs are left, runs are in this process. Rates per CPU second are compared with a loop of
`sim.run` in one process, and with the executor above: two processes with one, workers of Dask with two processes. Two commands
at once, which share nothing, show how much of the rate of one the machine leaves to each. Memory is that of all processes, with
shared pages counted once. Targets on two idle cores:
{" and ".join(f"{n} runs/s of {name}" for name, n in TARGETS.items())}, 500 MB, 90 % of one process, and 80 % of two with Dask.
"""
    yield f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}"
    for cells in rows(64 if options.quick else 10_000, 2):
        yield f"| {' | '.join(cells)} |"
    yield f"\n{starts()}"


def main() -> None:
    """Measure and print a table."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    count = int(sys.argv[2]) if len(sys.argv) > 2 else cores()
    for cells in chain([HEAD], rows(points, count)):
        print("{:24} {:>7} {:20} {:>7} {:>10} {:>14} {:>12} {:>12} {:>8}".format(*cells), flush=True)
    print(starts())


if __name__ == "__main__":
    main()
