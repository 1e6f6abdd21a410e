"""Replicas that are simulated as runs of their own, in processes, and joined to the run that they are together.

Replicas share nothing but their router. Where that looks at requests alone, it is known before a run which of them serves which
requests, and none of them waits for another. Each is then simulated and analyzed alone, on its own engines and channels of the
whole machine. Their logs are joined to that of one simulation of all, row by row, and their sums are added; latencies and
percentiles are then those of all requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from sim.analysis.findings import Analysis
from sim.base.cores import cores
from sim.base.processes import Work, can_fork, forked
from sim.executors import Executed, Executor, choose
from sim.executors.setup import Setup
from sim.executors.size import OnProgress, expected_tasks
from sim.log.tables import beside
from sim.runs.analyst import Analyst, Simulated
from sim.runs.plan import Plan
from sim.serving.routed import routed

T = TypeVar("T")
R = TypeVar("R")

#: Tasks from which processes beside this one pay: half a second of simulation.
MANY = 1 << 19

#: More tasks than any run has.
NEVER = 1 << 62


class Beside(Protocol):
    """Does independent work beside this process, such as in a pool of processes. Work, items and results can be pickled."""

    def __call__(self, work: Work[T, R], items: Iterable[T], /) -> Iterator[R]:
        """The results of work on each item, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Apart:
    """How replicas run apart. beside: where; None for forks of this process, if it may have any. least: tasks from which."""

    beside: Beside | None = None
    least: int = MANY


def together(setup: Setup) -> str | None:
    """Why the replicas of a run are simulated together; empty if each can run alone, None if there are not several."""
    batching = setup.batching
    if batching is None or batching.replicas == 1:
        return None
    if batching.homes:
        return "requests are routed to the devices of all of them"
    if batching.prefilling:
        return "some replicas prefill for the others"
    if batching.beside:  # the loops that move caches are numbered after those of all replicas
        return "caches are moved beside their steps"
    if setup.concurrency is not None:
        return "a user's next request depends on when the last one ended"
    if setup.machine.paths:
        return "links between their devices are divided together"
    if routed(batching, setup.sequences) is None:
        return f"the router {batching.router.name} looks at what each of them has to do"
    return ""


def replicas(planned: Plan) -> list[Plan]:
    """A plan for each replica that has requests; none if they must be simulated together."""
    setup = planned.setup
    batching = setup.batching
    if batching is None or together(setup) != "":
        return []
    each = routed(batching, setup.sequences) or []
    return [replace(planned, setup=replace(setup, batching=replace(batching, only=only))) for only in each]


def simulate(
    planned: Plan, executor: Executor, on_progress: OnProgress | None, apart: Apart, many: int
) -> Simulated | None:  # fmt: skip
    """Simulate and analyze a run replica by replica; None if it does not pay, or is not possible.

    In this process it pays where rows need not be kept: then there are only those of one replica at a time.
    """
    if expected_tasks(planned.setup) < apart.least or len(plans := replicas(planned)) < 2:
        return None
    doing = apart.beside or (_forks if min(cores(), len(plans)) > 1 and can_fork() else None)
    if doing is None and planned.record == "all":
        return None
    chosen = choose(planned.setup, executor, many)
    compiled = chosen.executor == "compiled"  # if it can: numbers of a run may prove too large for it
    work = partial(run_replica, executor="auto" if compiled else "simpy", many=0 if compiled else many)
    return _joined(list(_reported((doing or map)(work, plans), plans, on_progress)), chosen)


def run_replica(planned: Plan, executor: Executor, many: int) -> Simulated:
    """Simulate and analyze one replica. many: tasks from which compiled code runs."""
    return Analyst(planned, many, apart=True).simulate(executor)


def _forks(work: Work[T, R], items: Iterable[T]) -> Iterator[R]:
    each = list(items)
    return forked(work, each, min(cores(), len(each)))


def _reported(found: Iterator[Simulated], plans: Sequence[Plan], on_progress: OnProgress | None) -> Iterator[Simulated]:
    """Replicas as they come, each reported with all of its tokens."""
    requests = plans[0].setup.sequences
    in_all, done = sum(request.tokens for request in requests), 0
    for planned, each in zip(plans, found, strict=True):
        batching = planned.setup.batching
        assert batching is not None
        assert batching.only is not None
        done += sum(requests[number].tokens for number in batching.only.requests)
        if on_progress is not None:
            on_progress(done, in_all, each.log.makespan)
        yield each


def _joined(found: Sequence[Simulated], chosen: Executed) -> Simulated:
    log = beside([each.log for each in found])
    windows = [each.window for each in found if each.window is not None]
    return Simulated(
        log=log, analysis=Analysis.beside([each.analysis for each in found], log),
        window=beside(windows) if windows else None,
        executed=next((each.executed for each in found if each.executed.barred), chosen),
    )  # fmt: skip
