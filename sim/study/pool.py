"""Executors of a study: this process, or processes beside it. Any `concurrent.futures.Executor` does."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures import process as futures
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import wait
from threading import Thread
from time import process_time, sleep
from typing import Protocol, Self, TypeVar

from sim.base.cores import CORES
from sim.base.errors import SimError
from sim.base.processes import Work
from sim.study.batches import Batch, Job, Outcome, Unplanned, run
from sim.study.metrics import measure
from sim.study.server import begins_at_once, context, without_main

T = TypeVar("T")
R = TypeVar("R")

#: CPU seconds that runs must take this process for others to be started, and after which that is judged.
PAYS, ENOUGH = 3.0, 0.1

#: The same where they begin at once, which takes some 10 ms for each.
SOON = 0.3

SMALL = 100_000  # tasks of a run that takes some ten milliseconds, and as many megabytes


class Pool(Protocol):
    """Does work on items that can be pickled, such as batches of runs, `width` at a time."""

    @property
    def width(self) -> int:
        """Items at a time; it may change."""
        ...

    @property
    def alone(self) -> bool:
        """Whether the work is done in this process, while it submits it; it may change."""
        ...

    @property
    def least(self) -> float:
        """Seconds that an item should take or more, since to send it has a cost."""
        ...

    def expect(self, left: int) -> None:
        """Take note of how many runs are left, at most."""
        ...

    def submit(self, work: Work[T, R], item: T, /) -> Future[R]:
        """Do work on an item. The future raises what it raises, and BrokenExecutor if its process was killed."""
        ...

    def renew(self) -> None:
        """Start again after a process was killed."""
        ...

    def close(self, *, now: bool = False) -> None:
        """End all processes. now: even while they run."""
        ...


def work(batch: Batch) -> list[Outcome]:
    """Run the jobs of a batch: the task that executors are given."""
    return run(batch, measure)


class Here:
    """Does all in this process, one after the other."""

    width, alone, least = 1, True, 0.0

    def expect(self, left: int) -> None:
        """It does not matter."""

    def submit(self, work: Work[T, R], item: T) -> Future[R]:
        future: Future[R] = Future()
        future.set_result(work(item))
        return future

    def renew(self) -> None:
        """There is nothing to start."""

    def close(self, *, now: bool = False) -> None:
        """There is nothing to end."""


class Processes:
    """Processes on this machine, each with one core.

    On Linux they are forks of a server (`sim.study.server`), so that they begin in milliseconds and share its memory; elsewhere
    each starts anew (`spawn`). They do not run the script of a user again.
    """

    alone, least = False, 0.02

    def __init__(self, count: int) -> None:
        self.width = count
        self._start()

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(self.width, context(), initializer=_begin)

    def expect(self, left: int) -> None:
        """It does not matter."""

    def submit(self, work: Work[T, R], item: T) -> Future[R]:
        try:
            with without_main():
                return self._pool.submit(work, item)
        except (OSError, EOFError) as error:  # the server was killed just now, before or after it was asked for a process
            sleep(ENOUGH)
            raise BrokenExecutor(str(error)) from error

    def renew(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._start()

    def close(self, *, now: bool = False) -> None:
        if now:  # first, so that the wait for them is short; a thread that is left may fail when this process ends
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(cancel_futures=True)


class Growing:
    """This process, and a pool beside it once that pays.

    Few small runs end here before the pool has begun. What may take long, or much memory, runs in the pool from the start,
    and so does all that follows: if it is killed, this process is not.

    width: of the pool. make: makes it; processes by default. They begin at once where that takes milliseconds, else beside
    further runs; no runs are here while another pool begins, since they would take turns with threads of this process.
    """

    def __init__(self, width: int, make: Callable[[], Pool] | None = None) -> None:
        self.width, self._made = width, make
        self._here = Here()
        self._beside: Pool | None = None
        self._starts: Thread | None = None  # runs until a pool that begins beside runs has done something
        self._since, self._runs = 0.0, 0

    @property
    def alone(self) -> bool:
        """Until the pool has begun."""
        return self._starts.is_alive() if self._starts is not None else self._beside is None

    @property
    def least(self) -> float:
        """As that of the pool, once it has begun."""
        return 0.0 if self.alone or self._beside is None else self._beside.least

    def expect(self, left: int) -> None:
        """Start the pool if runs that are left take this process much longer than it takes to start."""
        if not self.alone or self._starts is not None or not self._runs:
            return
        spent, at_once = process_time() - self._since, self._made is None and begins_at_once()
        if spent < ENOUGH or left * spent / self._runs < (SOON if at_once else PAYS):
            return
        if at_once or self._made is not None:
            self._started()
        else:
            self._starts = Thread(target=self._start, daemon=True)
            self._starts.start()

    def _start(self) -> None:
        with suppress(Exception):  # the next batch that is submitted raises it, too
            self._beside = self._make()
            self._beside.submit(work, Batch([])).result()

    def _make(self) -> Pool:
        return Processes(self.width) if self._made is None else self._made()

    def submit(self, work: Work[T, R], item: T) -> Future[R]:
        if not self.alone or not (isinstance(item, Batch) and all(map(_is_small, item.jobs))):
            return self._started().submit(work, item)
        if self._since:
            self._runs += len(item)
        done = self._here.submit(work, item)
        self._since = self._since or process_time()  # the first batch also loads compiled code
        return done

    def _started(self) -> Pool:
        """The pool, in which all runs are from now on."""
        if self._starts is not None:
            self._starts.join()
            self._starts = None
        if self._beside is None:
            self._beside = self._make()
        return self._beside

    def renew(self) -> None:
        self._started().renew()

    def close(self, *, now: bool = False) -> None:
        if self._starts is not None:
            self._starts.join()
        if self._beside is not None:
            self._beside.close(now=now)


def _is_small(job: Job | Unplanned) -> bool:
    """Whether a run takes milliseconds, which is known before it once it is planned."""
    if isinstance(job, Unplanned):
        return False
    setup = job.setup
    return setup.batching is None and len(setup.graph) * sum(request.tokens for request in setup.sequences) < SMALL


class Foreign:
    """Any executor, such as that of a Dask client. width: items at a time."""

    alone, least = False, 0.0

    def __init__(self, executor: Executor, width: int, close: Callable[[], None] = lambda: None) -> None:
        self._executor, self.width, self._close = executor, width, close

    def expect(self, left: int) -> None:
        """It does not matter."""

    def submit(self, work: Work[T, R], item: T) -> Future[R]:
        return self._executor.submit(work, item)

    def renew(self) -> None:
        """The executor itself replaces processes."""

    def close(self, *, now: bool = False) -> None:
        with suppress(Exception):
            self._executor.shutdown(wait=not now, cancel_futures=now)
        self._close()


def pool(count: int) -> Pool:
    """As many processes; this one alone if one is enough."""
    return Growing(count) if count > 1 else Here()


class InOrder:
    """Does work beside this process by a pool, which is made at the first use: results come in the order of items.

    Raises what the work raises, SimError if a process was killed.
    """

    def __init__(self, make: Callable[[], Pool]) -> None:
        self._make = make
        self._pool: Pool | None = None

    def __call__(self, work: Work[T, R], items: Iterable[T]) -> Iterator[R]:
        self._pool = self._pool or self._make()
        left, under_way = iter(items), deque[Future[R]]()
        try:
            while True:
                under_way.extend(self._pool.submit(work, item) for item in islice(left, 2 * self._pool.width - len(under_way)))
                if not under_way:
                    return
                yield under_way.popleft().result()
        except BrokenExecutor:
            raise SimError("a process that ran beside this one was killed: it may have lacked memory") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.close(now=kind is not None)


def _begin() -> None:
    """Set up a process: Ctrl-C goes to the one that waits for it, and it has one core, so that it starts no threads."""
    wakeups = vars(futures)["_threads_wakeups"]
    wakeups.clear()  # of pools of the process that this is a fork of: it would write to their pipes at its end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ[CORES] = "1"
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has: it holds both ends of the pipe on which it waits for work, so it would wait on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
