"""Parallel work in forked processes: Python code runs in parallel in them, while threads would take turns.

They are forks, which begin in milliseconds with all that is in memory: modules, compiled code, graphs, and the work itself,
which need not be pickled; results must be. A process that starts anew would import and load for over a second, and run the
user's script again if it lacks `if __name__ == "__main__"`.

Forks are safe where this thread is the only one of Python's (another may hold a lock at that moment, which is never released in
the fork), and not on macOS, whose frameworks keep threads of their own. A notebook has other threads. Wherever forks are not
safe, callers go on with threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from sim.base.cores import CORES
from sim.base.errors import SimError

T = TypeVar("T")
R = TypeVar("R")

#: Work on one item.
Work = Callable[[T], R]


def can_fork() -> bool:
    """Whether this process may be forked now."""
    return sys.platform == "linux" and threading.active_count() == 1 and not multiprocessing.current_process().daemon


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C, which is for this process: those that begin in this context inherit that it is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def forking() -> Iterator[None]:
    """Fork this process in this context, where `can_fork` holds."""
    with uninterrupted(), warnings.catch_warnings():
        # Python 3.12 warns of any other thread: those left are of BLAS, which looks after itself in a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def forked(work: Work[T, R], items: Sequence[T], count: int) -> Iterator[R]:
    """The results of work on each item in order, by so many processes, which begin now. `can_fork` must hold.

    They end when the iterator does, at once if it is closed early or interrupted. Raises what the work raises, SimError if a
    process was killed.
    """
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=_begin, initargs=(work, items))
    with forking():
        under_way = deque(pool.submit(_do, number) for number in range(min(2 * count, len(items))))
    started = set(multiprocessing.active_children()) - before
    return _results(pool, started, under_way, len(items))


def _results(pool: ProcessPoolExecutor, started: set[Any], under_way: deque[Future[Any]], count: int) -> Iterator[Any]:
    """Results in order. A few more than there are processes are asked for, so that none waits for this one."""
    done = False
    try:
        for number in range(len(under_way), count):
            yield under_way.popleft().result()
            under_way.append(pool.submit(_do, number))
        while under_way:
            yield under_way.popleft().result()
        done = True
    except BrokenProcessPool:
        raise SimError("a process that ran beside this one was killed: it may have lacked memory") from None
    finally:
        if not done:
            for process in started:
                process.terminate()
        pool.shutdown(cancel_futures=not done)


class _Fork:
    """The work of a forked process, set when it begins."""

    work: Callable[[Any], Any]
    items: Sequence[Any]


def _begin(work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    """Set up a fork: Ctrl-C goes to the process that waits for it, and it has one core, so that it starts no threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ[CORES] = "1"
    _Fork.work, _Fork.items = staticmethod(work), items


def _do(number: int) -> Any:
    return _Fork.work(_Fork.items[number])
