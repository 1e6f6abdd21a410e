"""Executors of a study: this process, or processes beside it. Any `concurrent.futures.Executor` does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from threading import Thread
from types import ModuleType
from typing import Any, Protocol

from sim.base.cores import CORES
from sim.study.batches import Batch, Outcome, run
from sim.study.metrics import measure


class Pool(Protocol):
    """Runs batches, `width` at a time."""

    @property
    def width(self) -> int:
        """Batches that run at a time; it may change."""
        ...

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        """Run a batch. The future raises BrokenExecutor if its process was killed."""
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
    """Runs batches in this process, one after the other."""

    width = 1

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        future: Future[list[Outcome]] = Future()
        future.set_result(work(batch))
        return future

    def renew(self) -> None:
        """There is nothing to start."""

    def close(self, *, now: bool = False) -> None:
        """There is nothing to end."""


class Processes:
    """Processes on this machine, each with one core.

    They start anew (`spawn`), so they hold nothing of this one but the modules that simulate: not the command line, not torch,
    not the script of a user, which is kept from running again in them.
    """

    def __init__(self, count: int) -> None:
        self.width = count
        self._start()

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(self.width, multiprocessing.get_context("spawn"), initializer=_begin)

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        with without_main():
            return self._pool.submit(work, batch)

    def renew(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._start()

    def close(self, *, now: bool = False) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=not now, cancel_futures=True)
        if now:
            for process in processes:
                process.terminate()


class Foreign:
    """Any executor, such as that of a Dask client. width: batches that it runs at a time."""

    def __init__(self, executor: Executor, width: int, close: Callable[[], None] = lambda: None) -> None:
        self._executor, self.width, self._close = executor, width, close

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        return self._executor.submit(work, batch)

    def renew(self) -> None:
        """The executor itself replaces processes."""

    def close(self, *, now: bool = False) -> None:
        with suppress(Exception):
            self._executor.shutdown(wait=not now, cancel_futures=now)
        self._close()


def pool(count: int) -> Pool:
    """As many processes; this one alone if one is enough."""
    return Processes(count) if count > 1 else Here()


def _begin() -> None:
    """Set up a process: Ctrl-C goes to the one that waits for it, and it has one core, so that it starts no threads."""
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


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the main module while processes start: they would import it, and with it the command line or a user's script."""
    main: Any = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
