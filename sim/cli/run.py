"""`sim run`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import get_args

import click
from rich.console import Console

from sim.base.cores import cores
from sim.base.errors import InputError
from sim.base.files import check_output, kind_of
from sim.base.units import format_bytes, format_time
from sim.cli.console import output, print_json, status
from sim.cli.options import check_folder, needs_all_ops, scenario_arguments
from sim.cli.progress import simulating
from sim.executors import Executor
from sim.render import terminal
from sim.render.repeats import render as render_repeats
from sim.render.summary import summary_rows
from sim.render.trace.of_result import traceable, write_trace
from sim.runs import saved as storage
from sim.runs.apart import MANY, NEVER, Apart, together
from sim.runs.plan import plan
from sim.runs.repeats import estimates, measure, numbers, to_json
from sim.runs.result import Result
from sim.runs.run import read, run
from sim.scenario import Scenario
from sim.scenario.shipped import find_scenario
from sim.study.cluster import LOCAL, Cluster
from sim.study.pool import InOrder, Processes

TRACE_FORMATS = ("pftrace", "pftrace.gz", "json")
LARGE = 10**8  # bytes; a trace above this size is better compressed


@click.command("run")
@scenario_arguments
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("traces"), show_default=True, metavar="PATH",
              help="Folder for traces, or the trace to write: a name that ends in its format.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object per scenario, one per line.")
@click.option("--trace/--no-trace", "with_trace", default=True, help="Write a trace.")
@click.option("--executor", type=click.Choice(get_args(Executor)), default="auto", show_default=True,
              help="SimPy, or compiled code, which is faster for large runs. Results are identical.")  # fmt: skip
@click.option("--trace-format", type=click.Choice(TRACE_FORMATS),
              help="Perfetto's native format, the same compressed, or Chrome JSON.  [default: pftrace]")  # fmt: skip
@click.option(
    "--repeats",
    type=int,
    metavar="N",
    help="Run N times, with consecutive seeds from the scenario's: means and 95 % confidence intervals, no trace.",
)
@click.option("-j", "--jobs", type=click.IntRange(1, 1024), metavar="N", help="Number of processes, for repeats and "
              "for replicas that can be simulated side by side.  [default: one for each core, if that pays]")  # fmt: skip
@click.option("--cluster", metavar="ADDRESS|local", help="Run repeats and replicas on a Dask cluster: the "
              "address of its scheduler, or local for worker processes on this machine.")  # fmt: skip
@click.option("--save-log", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.parquet",
              help="Save the event log together with the scenario; needs pyarrow.")  # fmt: skip
@click.option("--log-only", is_flag=True,
              help="With --save-log: skip analysis and trace, so that a run can be larger than memory.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Also show which executor ran, and the invariants that were checked.")
def command(
    names: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    with_trace: bool,
    trace_format: str | None,
    executor: Executor,
    save_log: Path | None,
    log_only: bool,
    repeats: int | None,
    jobs: int | None,
    cluster: str | None,
    verbose: bool,
) -> None:
    """Run scenarios: files, or names of shipped scenarios (`sim list scenarios`)."""
    paths = [find_scenario(name) for name in names]
    scenarios = [read(path, list(overrides)) for path in paths]  # all are checked before any runs
    if save_log is not None:
        _check_log(save_log, len(paths))
    if log_only:
        _only_log(scenarios[0], save_log, executor, "--json" if as_json else "--repeats" if repeats is not None else None)
    elif repeats is not None:
        if save_log is not None:
            raise InputError("--repeats: expected no --save-log, which holds one run")
        with _beside(jobs, cluster) as apart:
            for scenario in scenarios:
                _repeated(scenario, repeats, as_json, executor, apart)
    else:
        if jobs is not None or cluster is not None:
            _check_apart(scenarios, "--jobs" if cluster is None else "--cluster")
        if save_log is not None:
            needs_all_ops(scenarios[0], "an event log in a file")
        targets = _targets(out, paths, trace_format)
        if with_trace and len(set(targets)) < len(targets):
            twice = next(target for i, target in enumerate(targets) if target in targets[:i])
            raise InputError(f"{twice}: two scenarios would write this file; run them separately with --out")
        for target in targets if with_trace else ():
            check_output(target)
        with _beside(jobs, cluster) as apart:
            for scenario, target in zip(scenarios, targets, strict=True):
                with simulating(scenario.name) as on_progress:
                    result = run(scenario, executor=executor, on_progress=on_progress, apart=apart)
                if save_log is not None:
                    storage.save(result.log, scenario, save_log)
                _show(result, target if with_trace else None, as_json, verbose=verbose)


@contextmanager
def _beside(jobs: int | None, cluster: str | None) -> Iterator[Apart]:
    """How runs that need nothing of each other run side by side while the block runs; processes start when they are needed."""
    if cluster not in (None, LOCAL) and jobs is not None:
        raise InputError("--jobs: expected only without --cluster ADDRESS, whose workers are those of the cluster")
    count = jobs or cores()
    if cluster is None and count == 1:
        yield Apart(least=MANY if jobs is None else NEVER)
        return
    with InOrder(lambda: Processes(count) if cluster is None else Cluster(cluster, count)) as beside:
        yield Apart(beside, least=MANY if jobs is None and cluster is None else 0)


def _check_apart(scenarios: Sequence[Scenario], option: str) -> None:
    """Say which scenarios are one run, whatever the option asks for. Raises InputError if none has replicas."""
    found = {scenario.name: together(plan(scenario).setup) for scenario in scenarios}
    if all(why is None for why in found.values()):
        raise InputError(f"{option}: expected --repeats, or a scenario with replicas (mapping.parallel.data)")
    for name, why in found.items():
        if why:
            click.echo(f"{name}: replicas are simulated together: {why}", err=True)


def _targets(out: Path, paths: Sequence[Path], trace_format: str | None) -> list[Path]:
    """The trace of each scenario: in the folder `out`, or `out` itself if its name is that of a trace."""
    named = next((name for name in TRACE_FORMATS if out.name.endswith(f".{name}")), None)
    found = kind_of(out)
    if named is None or found == "folder":
        check_folder(out, f"a name that ends in .{', .'.join(TRACE_FORMATS)}")
        return [out / f"{path.stem}.{trace_format or TRACE_FORMATS[0]}" for path in paths]
    if trace_format not in (None, named):
        raise InputError(f"--out: {out}: expected a name that ends in .{trace_format}, as --trace-format says")
    return [out] * len(paths)


def _only_log(scenario: Scenario, path: Path | None, executor: Executor, other: str | None) -> None:
    """Simulate and write the event log as the run goes. other: an option that cannot be combined with this."""
    if path is None:
        raise InputError("--log-only: expected --save-log FILE.parquet as well")
    if other is not None:
        raise InputError(f"--log-only: expected no {other}, which needs the analysis that it skips")
    with simulating(scenario.name, then="writing") as on_progress:
        makespan, executed = storage.run_to_file(scenario, path, executor=executor, on_progress=on_progress)
    click.echo(f"{path}: {format_time(makespan)}, executor {executed.executor}")


def _show(result: Result, target: Path | None, as_json: bool, *, verbose: bool) -> None:
    """Write the trace of a run to `target`, if there is one, and print the summary."""
    began, traced = perf_counter(), target is not None and traceable(result)
    if target is not None and traced:
        with status(f"writing {target}"):
            write_trace(result, target)
    written = perf_counter() - began
    if as_json:
        print_json(summary_rows(result, trace=target if traced else None, write=written))
        return
    console = output()
    terminal.show(result, console, verbose=verbose)
    if target is not None and traced:
        _show_trace(console, target, result.scenario, result.makespan)
    elif target is not None:
        advice = "set trace.window to record ops of a time window, or record: all"
        console.print(f"\ntrace  none: ops were not recorded ({advice})", highlight=False)
    sys.stdout.flush()


def _check_log(path: Path, scenarios: int) -> None:
    """Raise InputError unless a log can be written to the path; called before anything runs."""
    if scenarios > 1:
        raise InputError("--save-log: expected one scenario, because a file holds one log")
    if kind_of(path) == "folder":
        raise InputError(f"--save-log: {path}: expected a file, found a folder")
    if kind_of(path.absolute().parent) != "folder":
        raise InputError(f"--save-log: {path.parent}: no such folder")
    check_output(path)


def _show_trace(console: Console, target: Path, scenario: Scenario, makespan: int) -> None:
    console.print(f"\ntrace  {target}\n       open it with: sim view {target}", highlight=False)
    if (size := target.stat().st_size) > LARGE and target.suffix != ".gz":
        advice = "--trace-format pftrace.gz is smaller, trace.window shows a part"
        console.print(f"       {format_bytes(size)}; {advice}", highlight=False)
    if (window := scenario.trace.window) and window.start >= makespan:
        when = f"trace.window starts at {format_time(window.start)}, after the end of the run"
        console.print(f"       it is empty: {when}", highlight=False)


def _repeated(scenario: Scenario, count: int, as_json: bool, executor: Executor, apart: Apart) -> None:
    """Run a scenario with several seeds and print means and confidence intervals."""
    found: list[dict[str, tuple[str, float]]] = []
    beside = apart.beside if not apart.least else None  # else forks or threads, which pay sooner
    # Before the status, which is a thread: then no forks are safe.
    runs = measure(scenario, count, numbers, executor=executor, beside=beside)
    with status(f"simulating {scenario.name}"):
        found.extend(runs)
    data = to_json(scenario, estimates(found), count)
    if as_json:
        click.echo(json.dumps(data))
    else:
        output(120).print(render_repeats(data), highlight=False)
