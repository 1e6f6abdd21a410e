"""`sim sweep`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from sim.base.cores import cores
from sim.base.errors import InputError
from sim.cli.console import status
from sim.cli.options import complete_scenario
from sim.runs.run import read
from sim.scenario.shipped import find_scenario
from sim.study.cluster import LOCAL, Cluster, local
from sim.study.points import Study, check, load, over
from sim.study.pool import Pool, pool
from sim.study.shipped import find_study
from sim.study.store import FAILED, Store
from sim.study.sweep import Counts, OnSweep, estimate, sweep

REFRESH = 0.1  # seconds between two drawings of the line of progress


@click.command("sweep")
@click.argument("name", metavar="STUDY|SCENARIO", shell_complete=complete_scenario)
@click.option("--over", "axes", multiple=True, metavar="KEY=VALUES",
              help="Without a study: an axis over a key of a scenario, such as 1..16, 50,100,200GB/s or "
              "'50..400 GB/s x8 log'. Can be repeated.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="With --over: change a value of the scenario.")
@click.option(
    "--repeats",
    type=click.IntRange(1, 1000),
    default=1,
    metavar="N",
    help="With --over: run each point N times, with consecutive seeds.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 1024), metavar="N", help="Number of processes.  [default: one for each core]"
)
@click.option("--cluster", metavar="ADDRESS|local", help="Run on a Dask cluster: the address of its scheduler, or local for "
              "worker processes on this machine.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of rows.  [default: studies/NAME]")
@click.option(
    "--dry-run", is_flag=True, help="Check the study, print how many runs there are and about how long they take, and stop."
)
@click.option("--exhaustive", is_flag=True, help="Also run points that lower bounds prove to be of no use.")
@click.option("--retry-failed", is_flag=True, help="Run points that ended with an error again.")
def command(
    name: str, axes: tuple[str, ...], overrides: tuple[str, ...], repeats: int, jobs: int | None, cluster: str | None,
    out: Path | None, dry_run: bool, exhaustive: bool, retry_failed: bool,
) -> None:  # fmt: skip
    """Run all points of a study on all cores. After an interruption the same command goes on."""
    study = _study(name, axes, overrides, repeats)
    check(study)
    count = jobs or cores()
    folder = out or Path("studies") / study.name
    if dry_run:
        _dry_run(study, count)
        return
    if cluster not in (None, LOCAL) and jobs is not None:
        raise InputError("--jobs: expected only without --cluster ADDRESS, whose workers are those of the cluster")
    store = Store(folder, study)
    again = [FAILED] if retry_failed else []
    try:
        with store.opened(), _progress(study) as on_progress:
            counts = sweep(
                study, store, _pool(cluster, min(count, study.runs)), on_progress, again=again, exhaustive=exhaustive
            )
    except KeyboardInterrupt:
        click.echo(f"{folder}: the runs that have ended are kept; the same command goes on", err=True)
        raise
    click.echo(summary_line(folder, counts))


def _pool(cluster: str | None, count: int) -> Pool:
    if cluster is None:
        return pool(count)
    return local(count) if cluster == LOCAL else Cluster(cluster)


def summary_line(folder: Path, counts: Counts) -> str:
    """One line: the runs that ended, and the command that shows them."""
    words = [f"{counts.before + counts.done:,} of {counts.runs:,} runs"]
    if counts.before:
        words.append(f"{counts.before:,} from before")
    if counts.skipped:
        words.append(f"{counts.skipped:,} skipped by proof")
    if counts.failed:
        words.append(f"{counts.failed:,} failed")
    return f"{folder}: {', '.join(words)}; `sim study {folder}` shows them"


def _study(name: str, axes: tuple[str, ...], overrides: tuple[str, ...], repeats: int) -> Study:
    if axes:
        return over(read(find_scenario(name), list(overrides)), axes, repeats=repeats)
    for option, given in (("--set", overrides), ("--repeats", repeats > 1)):
        if given:
            raise InputError(f"{option}: expected only with --over; a study says it in its file")
    return load(find_study(name))


def _dry_run(study: Study, jobs: int) -> None:
    """Print the size of a study."""
    ranges = {} if study.optimize is None else study.optimize.spans
    axes = ", ".join(f"{key} ({'a range' if key in ranges else len(axis.values)})" for key, axis in study.keys.items())
    seeds = f" x {study.repeats} seeds = {study.runs:,} runs" if study.repeats > 1 else ""
    with status("running a few points"):
        found = estimate(study)
    jobs = min(jobs, study.runs)
    many = f"{len(study):,} {'point' if study.optimize is None else 'trial'}{'s' * (len(study) != 1)}"
    click.echo(f"{study.name}: {many}{seeds} of {axes}")
    seconds = found.seconds * study.runs * (1 - (found.saved or 0)) / jobs
    takes = "less than a second" if seconds < 1 else f"about {_time(seconds)}"
    click.echo(f"{takes} with {jobs} process{'es' * (jobs > 1)} ({found.seconds * 1000:.1f} ms a run)")
    if found.saved is not None:
        click.echo(f"proofs will save about {found.saved:.0%} of the runs or more, by the results of a few points")
    if found.error:
        click.echo(f"some points cannot run: {found.error}")


def _time(seconds: float) -> str:
    return (
        f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
    )


@contextmanager
def _progress(study: Study) -> Iterator[OnSweep | None]:
    """Show a line on stderr of a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), _Runs(), console=console, transient=True,
        auto_refresh=False,  # by a thread, beside which no process can be forked
    ) as shown:  # fmt: skip
        line, drawn = shown.add_task(study.name, total=None, failed=0), monotonic()

        def on_progress(counts: Counts) -> None:
            left = counts.runs - counts.before
            shown.update(line, total=left, completed=counts.done, failed=counts.failed)
            nonlocal drawn
            if monotonic() - drawn >= REFRESH:
                shown.refresh()
                drawn = monotonic()

        yield on_progress


class _Runs(ProgressColumn):
    """Runs done, rate, time left, failures."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("starting")
        text = Text(f"{int(task.completed):,} of {int(task.total):,}", no_wrap=True)
        if task.speed and task.time_remaining is not None:
            text.append(f", {task.speed:,.0f}/s, {_time(task.time_remaining)} left")
        if task.fields["failed"]:
            text.append(f", {task.fields['failed']:,} failed", style="red")
        return text
