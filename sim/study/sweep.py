"""Run the points of a study by a pool, and keep a row of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from fractions import Fraction
from time import perf_counter
from typing import Any

from sim import __version__
from sim.base.errors import SimError
from sim.study.batches import Batch, Job, Outcome, Unplanned, keep
from sim.study.optimize import TRIALS, Optimize, Told, Trials, means, worst
from sim.study.points import CASE, Choice, Point, Study, spread
from sim.study.pool import Here, Pool, work
from sim.study.proofs import Proofs, generations
from sim.study.search import Find, exact
from sim.study.store import FAILED, OK, SKIPPED, Store, cell

#: Seconds that a batch is to take, and the most jobs in one.
SECONDS, MOST = 0.5, 512

JUDGED = 200  # points of which an estimate says how many proofs skip

KILLED = "a process was killed while it ran this point: it may have lacked memory"


@dataclass(slots=True)
class Counts:
    """Runs of a sweep: in all, those that have a row from before, and those that ended now, some of them with an error."""

    runs: int = 0
    before: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0


OnSweep = Callable[[Counts], None]


@dataclass(slots=True)
class _Task:
    """A batch and its points. killed: how often its process was killed."""

    points: list[Point]
    batch: Batch
    killed: int = 0
    began: float = field(default_factory=perf_counter)


def sweep(
    study: Study, store: Store, pool: Pool, on_progress: OnSweep | None = None, *, again: Sequence[str] = (),
    exhaustive: bool = False,
) -> Counts:  # fmt: skip
    """Run all points that have no row yet, but those that lower bounds prove to be of no use.

    again: statuses whose runs are repeated. exhaustive: run those, too.

    Rows do not depend on the pool. If it is interrupted, all that has ended is on disk. Raises OSError if the disk is full.
    """
    done = store.done(again=[*again, *([SKIPPED] if exhaustive else [])])
    counts = Counts(runs=study.runs, before=len(done))
    runner = _Runner(study, store, pool, counts, on_progress)
    proofs = Proofs(study)
    try:
        if study.find is not None:
            runner.run_searches(study.find)
        elif study.optimize is not None:
            runner.run_trials(study.optimize)
        elif exhaustive or not proofs.applies:
            todo = (point for point in study.points() if (point.number, point.seed) not in done)
            runner.run(todo, study.runs - len(done))
        else:
            runner.run_generations(proofs, done)
    except BaseException:
        pool.close(now=True)
        store.flush()
        raise
    store.flush()
    pool.close()
    return counts


class _Runner:
    """Plans points while earlier ones are simulated, and turns outcomes into rows."""

    def __init__(self, study: Study, store: Store, pool: Pool, counts: Counts, on_progress: OnSweep | None) -> None:
        self.study, self.store, self.pool, self.counts, self.on_progress = study, store, pool, counts, on_progress
        self.running: dict[Future[list[Outcome]], _Task] = {}
        self.suspects: deque[_Task] = deque()  # a process was killed while they ran: they are run again one at a time
        self.size, self.least = 2, 1  # jobs of the next batch, and the fewest that it should have
        self.left = 0  # points that no batch has yet
        self.proofs: Proofs | None = None
        self.found: list[dict[str, Any]] | None = None  # rows of a generation, if later ones depend on them
        if not study.needs_files:
            keep(study.planner)

    def run_searches(self, find: Find) -> None:
        """Run all searches side by side: in each round the next value of each."""
        searches = {(point.number, point.seed): point for point in self.study.points()}
        known: dict[tuple[int, int], dict[Fraction, bool]] = {each: {} for each in searches}
        before = self.store.rows(["point", "seed", "feasible", find.key])
        self.counts.before = len(before)
        rows = before
        while True:
            for row in rows:
                known[row["point"], row["seed"]][exact(row[find.key])] = bool(row["feasible"])
            asked = ((point, find.next(known[each])) for each, point in searches.items())
            todo = [self.study.at(point, value) for point, value in asked if value is not None]
            if not todo:
                break
            self.found = rows = []
            self.run(iter(todo), len(todo))
        self.counts.runs = self.counts.before + self.counts.done
        self._report()

    def run_trials(self, asked: Optimize) -> None:
        """Run all trials, a batch at a time; settings that have rows are not run again."""
        signs = [1 if sense == "min" else -1 for sense in self.study.objectives.values()]
        trials = Trials(asked, self.study.space, signs, self.store.folder / TRIALS)
        known: dict[str, Mapping[str, Any]] = {row["plan"]: row for row in self.store.rows(self.store.columns)}
        self.counts.before = len(known)
        self._run_unknown(trials.finished(), known)  # rows that were lost, or are to be run again
        while batch := trials.ask():
            self._run_unknown(batch, known)
            self.store.flush()
            trials.tell([(number, self._told(number, settings, known)) for number, settings in batch])
        self.counts.runs = self.counts.before + self.counts.done
        self._report()

    def _run_unknown(self, batch: Sequence[tuple[int, Choice]], known: dict[str, Mapping[str, Any]]) -> None:
        """Run the points of trials that have no rows, each setting once, and add their rows by the hashes of their plans."""
        points = [point for number, settings in batch for point in self.study.seeded(number, settings)]
        todo = {self.study.plan_hash(point): point for point in reversed(points)}
        todo = {plan: point for plan, point in reversed(todo.items()) if plan not in known}
        self.found = []
        self.run(iter(todo.values()), len(todo))
        known.update((row["plan"], row) for row in self.found)

    def _told(self, number: int, settings: Choice, known: Mapping[str, Mapping[str, Any]]) -> Told:
        """The result of a trial: means over its seeds, and the most that each constraint is missed by."""
        rows = [known[self.study.plan_hash(point)] for point in self.study.seeded(number, settings)]
        values: list[list[Any]] = [[row.get(name) for name in self.study.objectives] for row in rows]
        if any(value is None or isinstance(value, str) for row in values for value in row):
            return Told(None)
        missed = [{each.text: each.missed(row) for each in self.study.constraints} for row in rows]
        return Told(means(values), worst(missed))

    def run_generations(self, proofs: Proofs, done: set[tuple[int, int]]) -> None:
        """Run all points but those that results of earlier generations refute."""
        self.proofs = proofs
        before = self.store.rows(["point", "seed", "status", "feasible", *self.study.objectives])
        for generation in generations(self.study):
            wanted = {(point.number, point.seed) for point in generation}
            self.found = [row for row in before if (row["point"], row["seed"]) in wanted]
            todo = [point for point in generation if (point.number, point.seed) not in done]
            self.run(iter(todo), len(todo))
            proofs.take(row for row in self.found if row["status"] == OK)

    def run(self, todo: Iterator[Point], count: int) -> None:
        """Run all points. count: of them, so that the last batches are small, and all processes end together."""
        self.left = count
        ahead = self._tasks(todo)
        more = True
        while more or self.running or self.suspects:
            if self.suspects:
                if not self.running:
                    self._submit(self.suspects.popleft())
            else:
                while more and len(self.running) < self._ahead():
                    task = next(ahead, None)
                    more = task is not None
                    if task is not None:
                        self._submit(task)
                    if any(future.done() for future in self.running):
                        break
            self._collect()

    def _ahead(self) -> int:
        """Batches to hand out at a time: one waits for each process, so that none is idle."""
        return 1 if self.pool.alone else 2 * self.pool.width

    def _tasks(self, todo: Iterator[Point]) -> Iterator[_Task]:
        """Batches of points."""
        points, jobs = list[Point](), list[Job | Unplanned]()
        for point in todo:
            job = self._job(point)
            if job is None:
                continue
            jobs.append(job)
            points.append(point)
            if len(jobs) >= min(self.size, max(self.least, self.left // (2 * self.pool.width))):
                self.left -= len(jobs)
                yield _Task(points, Batch(jobs))
                points, jobs = [], []
        if jobs:
            yield _Task(points, Batch(jobs))

    def _job(self, point: Point) -> Job | Unplanned | None:
        """A point as it is run; None if it needs no run and has its row. Here it is planned only if no other process can."""
        if self.proofs is None and not self.pool.alone and not self.study.needs_files:
            return self.study.unplanned(point)
        try:
            job = Job.of(self.study.plan(point))
            refuted = None if self.proofs is None else self.proofs.refute(point, job)
        except SimError as error:
            self._finish([point], [Outcome(None, str(error))])
            return None
        if refuted is not None:
            self._skip(point, *refuted)
        return job if refuted is None else None

    def _submit(self, task: _Task) -> None:
        task.began = perf_counter()
        try:
            self.running[self.pool.submit(work, task.batch)] = task
        except BrokenExecutor:
            self._killed([task])

    def _collect(self) -> None:
        """Take in batches that have ended; wait for one if none has."""
        if not self.running:
            return
        ended, _ = wait(self.running, return_when=FIRST_COMPLETED)
        lost: list[_Task] = []
        for future in ended:
            task = self.running.pop(future)
            try:
                outcomes = future.result()
            except BrokenExecutor:
                lost.append(task)
                continue
            self._adapt(len(task.points), perf_counter() - task.began)
            self.pool.expect(self.counts.runs - self.counts.before - self.counts.done)
            self._finish(task.points, outcomes)
        if lost:
            self._killed(lost)

    def _adapt(self, jobs: int, seconds: float) -> None:
        """Choose the size of batches so that one takes about `SECONDS`, of which it waits for half in a pool."""
        waits = 1 if self.pool.alone else 2
        rate = jobs * waits / max(seconds, 1e-6)
        self.size = max(1, min(int(rate * SECONDS), 2 * self.size, MOST))
        self.least = max(1, int(rate * self.pool.least))

    def _killed(self, lost: list[_Task]) -> None:
        """Start processes again. A batch that was lost alone is taken apart; a point gets a row with an error."""
        lost += self.running.values()
        self.running.clear()
        self.pool.renew()
        for task in lost:
            task.killed += 1
            alone = len(lost) == 1
            if alone and len(task.points) == 1 and task.killed > 2:
                self._finish(task.points, [Outcome(None, KILLED)])
            elif alone and task.killed > 1:
                self.suspects.extendleft(
                    _Task([point], Batch([job]), task.killed)
                    for point, job in reversed(list(zip(task.points, task.batch.jobs, strict=True)))
                )
            else:
                self.suspects.append(task)

    def _finish(self, points: Sequence[Point], outcomes: Sequence[Outcome]) -> None:
        """Keep the rows of points, and report."""
        rows = [row(self.study, *each) for each in zip(points, outcomes, strict=True)]
        if self.found is not None:
            self.found += rows
        self.store.add(rows)
        self.counts.done += len(points)
        self.counts.failed += sum(outcome.values is None for outcome in outcomes)
        self._report()

    def _skip(self, point: Point, why: str, low: int) -> None:
        """Keep the row of a point that need not be run."""
        self.store.add([{**row(self.study, point, Outcome(None, why)), "status": SKIPPED, "lower_ps": low}])
        self.counts.done += 1
        self.counts.skipped += 1
        self._report()

    def _report(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.counts)


def row(study: Study, point: Point, outcome: Outcome) -> dict[str, Any]:
    """The row of a run."""
    found: dict[str, Any] = {"point": point.number}
    found |= {axis.key: cell(axis, value.column, value.text) for axis, value in point.settings}
    found |= {"seed": point.seed, "plan": study.plan_hash(point), "version": __version__}
    if outcome.values is None:
        return {**found, "status": FAILED, "error": outcome.error, "feasible": None}
    found |= {"status": OK, "error": None, **outcome.values}
    return derived(study, found)


def derived(study: Study, found: dict[str, Any]) -> dict[str, Any]:
    """A row with derived columns and whether it meets all constraints."""
    for name, expression in study.columns.items():
        value = expression(found)
        found[name] = None if value is None or isinstance(value, str) else float(value)
    met = [expression(found) for expression in study.constraints]
    found["feasible"] = all(bool(each) for each in met)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Estimate of a study. seconds: of a run. error: of a run that fails, empty if none does. saved: the share of runs that
    proofs skip, as far as results of a few runs show it; None where proofs do not apply.
    """

    seconds: float
    error: str
    saved: float | None


def estimate(study: Study, count: int = 6) -> Estimate:
    """Run a few points, and look how many others these results refute."""
    points, spent, error, here = spread(study, count), list[float](), "", Here()
    rows = []
    for i, point in enumerate([points[0], *points]):
        began = perf_counter()
        try:
            outcome = here.submit(work, Batch([Job.of(study.plan(point))])).result()[0]
        except SimError as refused:
            outcome = Outcome(None, str(refused))
        error = error or outcome.error
        if i:  # the first one also loads the model and compiled code
            spent.append(perf_counter() - began)
            rows.append(row(study, point, outcome))
    return Estimate(seconds=sum(spent) / len(spent), error=error, saved=_saved(study, rows))


def _saved(study: Study, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of a sample of points that some results refute."""
    proofs = Proofs(study)
    if study.find is not None or study.optimize is not None or not proofs.applies:
        return None
    proofs.take(row for row in rows if row["status"] == OK)
    ran, refuted, tried = {row["point"] for row in rows}, 0, 0
    for point in spread(study, JUDGED):
        try:
            job = Job.of(study.plan(point))
        except SimError:
            continue
        tried += 1
        refuted += point.number not in ran and proofs.refute(point, job) is not None
    return refuted / tried if tried else 0.0


def settings(point: Point) -> Mapping[str, str]:
    """The settings of a point as text."""
    return {axis.key: value.text for axis, value in point.settings if axis.key != CASE}
