"""Executors, which run a simulation: two of them, one log.

`reference` is SimPy, written to be read: the specification. `compiled` is the same state machine over arrays, compiled by
Numba; its log is equal bit by bit. `auto` takes the compiled one for runs so large that it pays, unless a third party's policy
in Python, or an installation without Numba, leaves only the reference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

from sim.base.cores import cores
from sim.base.errors import InputError, unknown
from sim.base.kernel import MANY_TASKS, unavailable
from sim.base.processes import can_fork, forked
from sim.executors.setup import Progress, Setup
from sim.executors.size import expected_tasks, tasks_in_all
from sim.log.tables import EventLog, ServiceTable, TaskTable

Executor = Literal["auto", "simpy", "compiled"]
T = TypeVar("T")
R = TypeVar("R")

#: Takes a part of a log.
Sink = Callable[[EventLog], None]


@dataclass(frozen=True, slots=True)
class Executed:
    """Which executor ran, and why it was not the other one; `why` is empty where it was asked for.

    barred: the other one could not run it.
    """

    executor: Literal["simpy", "compiled"]
    why: str = ""
    barred: bool = False


def simulate(
    setup: Setup, executor: Executor = "auto", progress: Progress | None = None, sink: Sink | None = None, *,
    many: int = MANY_TASKS,
) -> tuple[EventLog, Executed]:  # fmt: skip
    """Run a setup. Raises InputError if operands cannot fit SRAM or the executor cannot run it, SimulationError.

    many: tasks from which `auto` takes compiled code.
    sink: takes the log in parts, consecutive steps whose rows begin at 0; the log that is returned then has no rows. Parts
    end at instants at which no step is in progress: of one loop about a quarter of a million tasks are in memory at a time, of
    several those of a time without such an instant; several batched loops are taken at the end.
    """
    chosen = choose(setup, executor, many)
    if chosen.executor == "compiled":
        from sim.executors import compiled  # noqa: PLC0415  # it imports modules that only it needs

        log = compiled.simulate(setup, progress, sink)
        if log is not None:
            return log, chosen
        chosen = Executed("simpy", "its numbers exceed 62 bits", barred=True)
    from sim.executors import reference  # noqa: PLC0415  # SimPy, likewise

    log = reference.simulate(setup, progress)
    if sink is None:
        return log, chosen
    sink(log)
    return replace(log, tasks=TaskTable.empty(), services=ServiceTable.empty()), chosen


#: Tasks of batched runs from which processes beside this one pay: half a second of simulation.
MANY_BATCHED = 1 << 19


def side_by_side(work: Callable[[T], R], items: Sequence[T], setup: Setup | None = None) -> Iterator[R]:
    """The results of independent runs in their order, as many at a time as there are cores; only some are waiting.

    They run in threads: compiled code in parallel, while Python code takes turns. setup: of one of the runs,
    where results are small and can be pickled. Steps of batches are made up in Python, so long runs of them get processes,
    which begin now, if this process may have any (see `sim.base.processes`).
    """
    count = min(cores(), len(items))
    if count > 1 and setup is not None and setup.batching is not None and can_fork():
        tasks = tasks_in_all(setup)[0] * len(items)
        if tasks >= MANY_BATCHED:
            return forked(work, items, count)
    return _in_threads(work, items)


def _in_threads(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    with ThreadPoolExecutor(cores()) as pool:
        under_way = deque(pool.submit(work, item) for item in items[: cores()])
        for item in items[cores() :]:
            yield under_way.popleft().result()
            under_way.append(pool.submit(work, item))
        while under_way:
            yield under_way.popleft().result()


def choose(setup: Setup, executor: Executor, many: int = MANY_TASKS) -> Executed:
    """The executor of a run. Raises InputError if the one that is asked for cannot run it."""
    if executor not in get_args(Executor):
        raise unknown("executor", executor, get_args(Executor))
    if executor == "simpy":
        return Executed("simpy")
    if executor == "auto" and many and (tasks := expected_tasks(setup)) < many:
        return Executed("simpy", f"about {tasks:,} tasks, fewer than {many:,}")
    why = obstacle(setup)
    if not why:
        return Executed("compiled")
    if executor == "compiled":
        raise InputError(f"--executor compiled: {why}; expected auto or simpy")
    return Executed("simpy", why, barred=True)


def obstacle(setup: Setup) -> str:
    """Why the compiled executor cannot run a setup; empty if it can."""
    from sim.executors.compiled import rules  # noqa: PLC0415

    return rules.obstacle(setup) or unavailable() or rules.cannot_compile(setup)
