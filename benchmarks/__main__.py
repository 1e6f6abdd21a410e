"""Speed of the simulator and of its peers, measured side by side in one run.

    python -m benchmarks [--quick] [--rounds 5] [--only SECTION ...] [--largest 100000000] [--write FILE.md]

Rounds are interleaved, so that a disturbance of the machine disturbs all alike, and ratios are taken within a round. Rates are
per second of CPU time, on one core, since other programs may run beside it. Large runs are processes of their own.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import baseline, entry, growth, mooncake, peers, starting, study, trace_writer
from benchmarks.measure import CORES, Contender, alone, ratios, rounds, spread
from benchmarks.plot import plot
from benchmarks.workloads import COMPARED, DEVICES, SERVING, SIDE_BY_SIDE, Compared, Serving
from sim.executors import Executor
from sim.executors.setup import Setup
from sim.scenario import Scenario

Lines = Iterator[str]


def machine() -> str:
    """The processor, and the versions that matter."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    processor = names[0] if names else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"


def title(options: argparse.Namespace) -> Lines:
    yield f"""# Benchmarks

Made by `make bench` on {time.strftime("%Y-%m-%d")}: {machine()}. Median (least to most) of {options.rounds} interleaved rounds;
rates are per second of CPU time on one core, ratios are taken within each round. [Speed](../background/speed.md) says what is
behind them."""


def table(*columns: str) -> str:
    """The head of a table."""
    return f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def verdict(found: float, target: float, *, least: bool) -> str:
    """The target, and whether it is met. least: larger is better."""
    return "met" if (found >= target if least else found <= target) else "missed"


class Idiomatic:
    """The idiomatic program on a few tokens of a workload, and how its makespan compares with the reference executor's."""

    def __init__(self, workload: Compared) -> None:
        scenario = entry.scenario(workload.scenario, *workload.scaled(workload.few))
        self.setup, self.arbiter = entry.setup_of(scenario), scenario.hardware.memory.arbiter
        self.tasks = len(self.setup.graph) * sum(request.tokens for request in self.setup.sequences)

    def run(self, _: object = None) -> int:
        self.makespan = baseline.simulate(self.setup, self.arbiter.name, self.arbiter.options)
        return self.tasks

    def deviation(self) -> float:
        self.run()
        return self.makespan / entry.simulate(self.setup, "simpy").makespan - 1


def _simulate(setup: Setup, executor: Executor) -> int:
    return entry.tasks(entry.simulate(setup, executor))


def _run(scenario: Scenario, executor: Executor) -> int:
    return entry.tasks(entry.run(scenario, executor).log)


def compared(options: argparse.Namespace) -> Lines:
    """Simulator against idiomatic program."""
    yield """## Against idiomatic SimPy

The base of each row is the program of `benchmarks/baseline.py` (a process for each task, `Resource.request`) on the first
tokens of the same workload, in the same round; in brackets the difference of its makespan from ours. Unless stated otherwise, a
workload is a whole Llama-3.2-1B on a machine of 4 engines, 1,024 tokens from context 256 with prefetch. `simulate` is from a
setup to an event log with every column; `sim.run` is from a scenario to a result, with all checks and the breakdown.
"""
    yield table(
        "workload", "tasks", "idiomatic, tasks/s", "`simulate`, tasks/s", "times", "target", "`sim.run`, tasks/s", "times",
        "target",
    )  # fmt: skip
    simulate, run = (partial(work, executor=options.executor) for work in (_simulate, _run))
    for each in COMPARED.values():
        workload = each.tiny() if options.quick else each
        base = Idiomatic(workload)
        overrides = workload.scaled(workload.many)
        scenario = entry.scenario(workload.scenario, *overrides)
        tasks = len(base.setup.graph) * entry.tokens(scenario)
        rates = rounds(
            {
                "idiomatic": Contender(lambda: None, base.run),
                "simulate": Contender(partial(entry.setup_of, scenario), simulate),
                "run": Contender(partial(entry.scenario, workload.scenario, *overrides), run),
            },
            options.rounds,
            options.shortest,
        )  # fmt: skip
        cells = [workload.title, f"{tasks:,}", f"{spread(rates['idiomatic'])} ({base.deviation():+.4%})"]
        for name, target in (("simulate", workload.simulate), ("run", workload.run)):
            times = ratios(rates[name], rates["idiomatic"])
            cells += [spread(rates[name]), spread(times), f"{target}: {verdict(median(times), target, least=True)}"]
        yield row(*cells)


def layers(options: argparse.Namespace) -> Lines:
    """Rates of executors, analyses and writers on the first workload."""
    workload = COMPARED["fifo"].tiny() if options.quick else COMPARED["fifo"]
    base, scenario = Idiomatic(workload), entry.scenario(workload.scenario, *workload.scaled(workload.many))
    simulate = partial(_simulate, executor=options.executor)
    last: list[Any] = [None]

    def run(_: object, *, summary: bool) -> int:
        last[0] = entry.run(scenario, options.executor)
        if summary:
            entry.summary(last[0])
        return entry.tasks(last[0].log)

    contenders: dict[str, Contender[Any]] = {
        "idiomatic SimPy": Contender(lambda: None, base.run),
        "SimPy, a loop of timeouts (timeouts/s): its ceiling": Contender(lambda: None, lambda _: baseline.timeouts(100_000)),
        "reference executor": Contender(lambda: base.setup, partial(_simulate, executor="simpy")),
        "compiled executor": Contender(lambda: entry.setup_of(scenario), simulate),
        "`sim.run`: simulate, check, break down": Contender(lambda: None, partial(run, summary=False)),
        "`sim.run` and the summary of `--json`": Contender(lambda: None, partial(run, summary=True)),
    }
    rates = rounds(contenders, options.rounds, options.shortest)
    yield f"""## Executors and analyses

One sequence, fifo, {len(base.setup.graph):,} tasks per step: the first three simulate {workload.few} steps, the others
{workload.many:,}.
"""
    yield table("", "tasks/s", "times idiomatic")
    for name, found in rates.items():
        yield row(name, spread(found), spread(ratios(found, rates["idiomatic SimPy"]), 1))
    tasks, seconds, size = trace_writer.whole(last[0])
    yield f"\nThe trace of the {tasks:,} tasks at `detail: full`: {seconds:.1f} s of CPU time, {size / 1e6:,.0f} MB."


def served(name: str, work: str, file: Path, executor: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """A run of requests in a process of its own, from a scenario to a log or a result."""
    workload = SERVING[name]
    overrides = [*workload.overrides, *([f"workload.trace.file={file}"] if workload.trace else []), *more]
    request = {"scenario": workload.scenario, "overrides": overrides, "work": work, "executor": executor}
    return alone("benchmarks.alone", request)


def serving(options: argparse.Namespace) -> Lines:
    """Batched runs of requests, beside those of peers."""
    yield """## Serving

Llama-3.1-8B in continuous batches of up to 32. Each run is a process of its own, and loading compiled code counts.

- 1,000 requests: a Poisson process of 20/s, each with a prompt of 512 tokens and 128 tokens of output, on an H100 as one
  engine.
- 23,608 requests: an hour that the benchmark makes from a seed in the layout of Mooncake's public trace, with its count and its
  means (7,590 tokens of input, 182 of output), on a B200, whose queue does not grow as that of an H100 would. Prefixes that
  requests share are in the file, and are not used.

Most of the system's CPU time is memory that is touched for the first time: a log of 12 million tasks has 1.4 GB.
"""
    yield table(
        "workload", "work", "steps", "tasks", "output tokens", "CPU s", "of it system", "wall-clock s", "target",
        "memory at the peak", "target", "output tokens/s",
    )  # fmt: skip
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requests.jsonl"
        mooncake.write(file)
        for name, workload in SERVING.items():
            for work in ("simulate", "run"):
                more, rounds = (workload.few, 1) if options.quick else ((), 1 if workload.trace else options.rounds)
                if not options.quick:
                    served(name, work, file, options.executor, workload.warm)  # so that all is compiled
                found = [served(name, work, file, options.executor, more) for _ in range(rounds)]
                rates[name] = [row["tokens"] / row["cpu"] for row in found]
                yield _served_row(workload, work, found, rates[name])
    yield from _peers(rates, options)


def _served_row(workload: Serving, work: str, found: Sequence[dict[str, Any]], rates: Sequence[float]) -> str:
    cpu, peak = ([row[key] for row in found] for key in ("cpu", "peak"))
    limit = f"{workload.seconds:g} s: {verdict(median(cpu), workload.seconds, least=False)}"
    memory = f"{workload.memory / 1e9:g} GB: {verdict(max(peak), workload.memory, least=False)}" if workload.memory else ""
    cells = [
        workload.title, f"`{'sim.run' if work == 'run' else work}`",
        *(f"{found[0][key]:,}" for key in ("steps", "tasks", "tokens")),
        *(spread([row[key] for row in found], 2) for key in ("cpu", "system", "wall")), limit,
        f"{max(peak) / 1e6:,.0f} MB", memory, spread(rates),
    ]  # fmt: skip
    return row(*cells)


def _peers(ours: dict[str, list[float]], options: argparse.Namespace) -> Lines:
    yield f"""
### Others

`{peers.PACKAGE}` {peers.VERSION} in Node, on requests that it draws from the same distributions (those of the hour without the
upper bounds and the lumps), on a device of the same rates; compiling its WebAssembly does not count.
{peers.LACKS}
"""
    if reason := peers.missing():
        yield f"Skipped: {reason}."
        return
    yield table("workload", "output tokens/s", "times as fast as `sim.run`")
    for name in peers.WORKLOADS:
        if name not in ours or (options.quick and name == "mooncake"):
            continue
        found = peers.run(name, 1 if name == "mooncake" else options.rounds)
        rates = [found["tokens"] / seconds for seconds in found["seconds"]]
        yield row(SERVING[name].title, spread(rates), f"{median(rates) / median(ours[name]):.2g}")


def two_cores(options: argparse.Namespace) -> Lines:
    """The same runs on one core and on two."""
    yield """## Two cores

Wall-clock time of work that is side by side, kept to one core and on two; results are the same.
"""
    yield table("work", "one core, s", "two cores, s", "times as fast", "target")
    for each in SIDE_BY_SIDE:
        overrides, warm = ((*each.overrides, *each.few), ()) if options.quick else (each.overrides, each.warm)
        request = {"scenario": each.scenario, "overrides": overrides, "work": each.work, "warm": warm}
        request["executor"] = options.executor
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for cores, seconds in found.items():
                seconds.append(alone("benchmarks.alone", {**request, "cores": cores}, cores=cores)["wall"])
        times = ratios(found[1], found[2])
        target = f"1.6: {verdict(median(times), 1.6, least=True)}"
        yield row(each.title, *(spread(values, 2) for values in (found[1], found[2], times)), target)


def devices(options: argparse.Namespace) -> Lines:
    """Several devices, all simulated, beside one that stands for all."""
    yield """## Several devices

Devices that hold equal parts of each layer do the same, so that one is simulated and stands for all. Here all are
(`mapping.parallel.fold: false`): eight times the tasks, and at the switch between them each transfer is on two links instead of
one. Each run is a process of its own, with `record: steps`, so that the time is not that of memory for the log (of eight
devices 250 MB); what the system takes of it is in brackets.
"""
    yield table("workload", "work", "tasks of one", "one device, CPU s", "all devices, CPU s", "times", "target")
    for each in DEVICES:
        overrides, warm = (each.few, ()) if options.quick else (each.overrides, each.warm)
        for work in ("simulate", "run"):
            request = {"scenario": each.scenario, "work": work, "warm": warm, "executor": options.executor}
            found: dict[str, list[dict[str, Any]]] = {"true": [], "false": []}
            for _ in range(options.rounds):
                for fold, runs in found.items():
                    folded = [*overrides, "record=steps", f"mapping.parallel.fold={fold}"]
                    runs.append(alone("benchmarks.alone", {**request, "overrides": folded}))
            cpu, system = ({fold: [run[key] for run in runs] for fold, runs in found.items()} for key in ("cpu", "system"))
            times = ratios(cpu["false"], cpu["true"])
            yield row(
                each.title, f"`{'sim.run' if work == 'run' else work}`", f"{found['true'][0]['tasks']:,}",
                *(f"{spread(cpu[fold], 2)} ({median(system[fold]):.2f})" for fold in found), spread(times, 1),
                f"{each.most}: {verdict(median(times), each.most, least=False)}",
            )  # fmt: skip


def growing(options: argparse.Namespace) -> Lines:
    """Time and memory by size."""
    yield """## Growth

One sequence, fifo, by `sim.run` with all checks; each row is a process of its own. Memory is what the run added at its peak."""
    if options.write:
        yield f"\n![Time and memory per task against the number of tasks]({options.write.with_suffix('.svg').name})"
    yield "\n" + table("tasks", "record", "us a task", "bytes a task")
    found: dict[str, list[dict[str, Any]]] = {}
    for record, run in growth.rows(options.largest, entry.RECORDS):
        found.setdefault(record, []).append(run)
        each = (1e6 * run["cpu"] / run["tasks"], run["added"] / run["tasks"])
        yield row(f"{run['tasks']:,}", f"`{record}`", f"{each[0]:.3f}", f"{each[1]:,.1f}")
    yield """
Many at once, simulated: a step of one layer for each of so many sequences, all at the same time, and one sequence on so many
engines. Service intervals are rows of the log: one for each transfer in each interval of constant rate.
"""
    yield table("", "tasks", "us a task", "service intervals a task", "bytes a task")
    for name, many in growth.MANY.items():
        for count in (many.few,) if options.quick else many.counts:
            run = growth.many(name, count)
            seconds, intervals, memory = (run[key] / run["tasks"] for key in ("cpu", "intervals", "added"))
            yield row(f"{count:,} {name}", f"{run['tasks']:,}", f"{1e6 * seconds:.2f}", f"{intervals:.1f}", f"{memory:,.0f}")
    if options.write:
        plot(found, options.write.with_suffix(".svg"))


def start(options: argparse.Namespace) -> Lines:
    """Start-up, imports and compiling."""
    seconds = [starting.start_up() for _ in range(options.rounds)]
    yield f"""## Start-up and compiling

`sim run scenarios/two_tokens_4_engines.yaml` from the shell, trace included: {spread(seconds, 2)} s of CPU time.

A process of its own, with an empty cache of compiled code and then with what that left there; CPU s (wall-clock s):
"""
    yield table("stage", "empty cache", "full cache")
    found = starting.compiling(os.cpu_count() or 1)
    small = "does not import Numba" if not found["warm"]["numba"] else "imports Numba"
    names = {
        "import_sim": "import of the simulator", "small": f"`sim.run` of 3 thousand tasks, which {small}",
        "import_numba": "import of Numba", "first": "first `sim.run` of 119 thousand tasks", "second": "the same again",
    }  # fmt: skip
    for stage, name in names.items():
        cells = [f"{found[state][stage]['cpu']:.2f} ({found[state][stage]['wall']:.2f})" for state in found]
        yield row(name, *cells)
    code = {state: found[state]["first"]["wall"] - found[state]["second"]["wall"] for state in found}
    yield f"""
Compiling: {code["cold"]:.1f} s of wall-clock time (target 20 s: {verdict(code["cold"], 20, least=False)}); loading what was
compiled: {code["warm"]:.2f} s (target 1 s: {verdict(code["warm"], 1, least=False)})."""


def writer(options: argparse.Namespace) -> Lines:
    """The trace writer; `python -m benchmarks.trace_writer` has more."""
    count = 20_000 if options.quick else 1_000_000
    few, many = trace_writer.bare(count // 20), trace_writer.bare(count)
    yield "## Trace writer\n\n" + table("", "slices/s of wall-clock time", "bytes a slice")
    for name, encoder, slices in (
        ("one record at a time", trace_writer.plain, few), ("columnar", trace_writer.columnar, many)
    ):  # fmt: skip
        speed, _, size = trace_writer.rate(encoder, slices, options.rounds)
        yield row(f"bare slices, {name}", f"{speed:,.0f}", f"{size / len(slices):.1f}")


SECTIONS: dict[str, Callable[[argparse.Namespace], Lines]] = {
    "compared": compared, "layers": layers, "serving": serving, "cores": two_cores, "devices": devices, "growth": growing,
    "start": start, "writer": writer, "studies": study.section,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: checks that it runs, no more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--largest", type=int, default=100_000_000, help="tasks of the largest run of the section on growth")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write the page there as well")
    options = parser.parse_args()
    options.shortest, options.executor = (0.0, "auto") if options.quick else (0.1, "compiled")
    if options.quick:
        options.rounds, options.largest = 1, 10_000
    os.environ[CORES] = "1"
    lines = []
    for section in (title, *(SECTIONS[name] for name in options.only or SECTIONS)):
        for line in section(options):
            print(line, flush=True)
            lines.append(line)
        print(flush=True)
        lines.append("")
    if options.write:
        options.write.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
