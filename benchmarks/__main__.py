"""How fast it is: everything side by side, in one run.

    python -m benchmarks [--quick] [--rounds 5] [--largest 30000000] [--write FILE.md]

Rounds are interleaved, so that what disturbs the machine disturbs all alike, and ratios are taken within a round. Rates are per
second of CPU time, since other programs may run beside it. Growth and start-up are measured in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import FEW, SCENARIO, STEPS, Decode, growth, many, rounds, spread, start_up, trace
from benchmarks.plot import plot
from benchmarks.trace_writer import bare, columnar, plain, rate

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
MANY = {"sequences, fifo": (500, 4_000), "sequences, fair shares": (500, 4_000), "engines": (4, 4_096)}


def page(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the Markdown page."""
    yield f"""# Benchmarks

Made by `make bench` on {time.strftime("%Y-%m-%d")}: {machine()}. Median (least to most) of {options.rounds} interleaved rounds;
rates are per second of CPU time, ratios are taken within each round. [Speed](../background/speed.md) says what is behind them.
"""
    decode = Decode(24 if options.quick else STEPS)
    yield from simulation(decode, options)
    yield from writer(decode, options)
    yield from starting(options)
    yield from growing(options)


def machine() -> str:
    """The processor, and the versions that matter."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    processor = names[0] if names else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"


def simulation(decode: Decode, options: argparse.Namespace) -> Iterator[str]:
    """Simulators on the same decode steps."""
    steps = decode.all.sequences[0].tokens
    contenders = {
        "SimPy, idiomatic: a process a task, `Resource.request`": decode.idiomatic,
        "SimPy, a loop of timeouts (timeouts/s): its ceiling": decode.timeouts,
        "plain path (`--no-replay`)": decode.plain,
        "replay, to a log whose columns are made when read": decode.replayed,
        "replay, every column made": decode.columns,
        "`sim.run`: replay and account": decode.accounted,
        "`sim.run` and the summary of `--json`": decode.summarised,
    }
    rates = rounds(contenders, options.rounds)
    base = next(iter(rates.values()))
    yield f"""## Simulation

`{SCENARIO}`: {decode.size:,} tasks a step. The first three simulate {FEW} steps, the others {steps:,} steps of growing context,
{decode.size * steps:,} tasks. The makespan of the idiomatic program differs from ours by {decode.deviation:.4%}.

| | tasks/s | times idiomatic | seconds |
| --- | --- | --- | --- |"""
    for number, (name, found) in enumerate(rates.items()):
        ratios = [rate / reference for rate, reference in zip(found, base, strict=True)]
        seconds = "" if number < 3 else spread([decode.size * steps / rate for rate in found], 2)
        yield f"| {name} | {spread(found)} | {spread(ratios, 1)} | {seconds} |"
    yield ""


def writer(decode: Decode, options: argparse.Namespace) -> Iterator[str]:
    """The trace writer; `python -m benchmarks.trace_writer` says more."""
    count = 20_000 if options.quick else 1_000_000
    few, many = bare(count // 20), bare(count)
    yield """## Trace writer

| | slices/s of wall-clock time | bytes a slice |
| --- | --- | --- |"""
    for name, encoder, slices in (("one record at a time", plain, few), ("columnar", columnar, many)):
        speed, _, size = rate(encoder, slices, options.rounds)
        yield f"| bare slices, {name} | {speed:,.0f} | {size / len(slices):.1f} |"
    assert decode.result is not None
    tasks, seconds, size = trace(decode.result)
    yield f"\nThe trace of the {tasks:,} tasks at `detail: full`: {seconds:.1f} s of CPU time, {size / 1e6:,.0f} MB.\n"


def starting(options: argparse.Namespace) -> Iterator[str]:
    """`sim run` from the shell."""
    seconds = [start_up() for _ in range(options.rounds)]
    yield f"## Start-up\n\n`sim run scenarios/two_tokens_4_engines.yaml`, trace included: {spread(seconds, 2)} s of CPU time.\n"


def growing(options: argparse.Namespace) -> Iterator[str]:
    """Time and memory by size."""
    yield """## Growth

Each row is a process of its own. Memory is what the run added at its peak, every column made; 8 thousand tasks fit into what
was there before.
"""
    if options.write:
        picture = options.write.with_suffix(".svg")
        yield f"![Time and memory per task against the number of tasks]({picture.name})\n"
    yield """| tasks | path | us a task, simulated | us a task, every column made | bytes a task |
| --- | --- | --- | --- | --- |"""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, largest in (("plain", options.largest_plain), ("replay", options.largest)):
        for size in SIZES:
            if size <= largest:
                row = growth(size, plain=path == "plain")
                found.setdefault(path, []).append(row)
                each = [1e6 * row[key] / row["tasks"] for key in ("simulated", "whole")]
                yield f"| {row['tasks']:,} | {path} | {each[0]:.3f} | {each[1]:.3f} | {row['peak'] / row['tasks']:,.0f} |"
    yield """
Many at once, on the plain path: a step of one layer for each of so many sequences, all at the same time, and one sequence on so
many engines. Grants are rows of the log: one for each transfer in each interval of service, which fair sharing has many of.

| | tasks | us a task | grants a task | bytes a task |
| --- | --- | --- | --- | --- |"""
    for what, counts in MANY.items():
        for count in counts[:1] if options.quick else counts:
            row = many(what, count)
            each, grants, memory = (row[key] / row["tasks"] for key in ("whole", "grants", "peak"))
            yield f"| {count:,} {what} | {row['tasks']:,} | {1e6 * each:.2f} | {grants:.1f} | {memory:,.0f} |"
    if options.write:
        plot(found, picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute's worth turned into seconds: that it runs, no more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest", type=int, default=30_000_000, help="tasks of the largest run")
    parser.add_argument("--largest-plain", type=int, default=1_000_000, help="the same on the plain path, 100 times slower")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write the page there as well")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.largest, options.largest_plain = 1, 10_000, 10_000
    lines = []
    for line in page(options):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        options.write.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
