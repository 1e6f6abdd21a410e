"""Executor of a study on a Dask cluster: a scheduler that runs, or workers on this machine.

Batches need no files of this machine, so workers need the same version of this program and nothing else. Where a worker is
lost, Dask runs its batch again on another one; a batch that has lost several is taken apart, as in a pool of processes. The
number of batches that are handed out follows the number of workers, which may change.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from logging import CRITICAL
from time import monotonic
from typing import Any, TypeVar

from sim import __version__
from sim.base.cores import CORES
from sim.base.errors import InputError
from sim.base.processes import Work, can_fork
from sim.study.pool import Growing, Pool
from sim.study.server import context, without_main

T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"
NEEDED = "--cluster needs Dask: pip install 'decode-sim[cluster]'"
WAIT = "10 s"  # for a scheduler
RETRIES = 2  # runs of a batch again after an error of its worker
FRESH = 1.0  # seconds for which a number of workers is used

#: Settings that turn off measurements which take a twentieth of the time: samples of the line that a worker runs (100 a
#: second), ticks that show how late an event loop is (50), and records of the use of the system (2).
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}


class Cluster:
    """A Dask cluster as a pool.

    address: of a scheduler, such as `tcp://host:8786`, or `local` for worker processes on this machine. count: of these.
    Raises InputError if Dask is not installed or there is no scheduler.
    """

    def __init__(self, address: str, count: int = 1) -> None:
        self._address = address
        self._end: list[Callable[[], None]] = []
        self._futures: set[Any] = set()
        self._counted, self._threads = float("-inf"), 1
        if address == LOCAL:
            if can_fork():
                dask("distributed")  # the server of processes is a fork of this one, and has it, too
            context("distributed")  # else the server imports it while this process does
        distributed = dask("distributed")
        if address == LOCAL:
            cluster = self._started(distributed, count)
        try:
            self._client = distributed.Client(cluster if address == LOCAL else address, timeout=WAIT, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"--cluster {address}: {str(error).splitlines()[0]}") from None

    #: A batch takes scheduler, client and worker some 5 ms of CPU time.
    alone, least = False, 0.1

    def _started(self, distributed: Any, count: int) -> Any:
        """Worker processes on this machine, which begin as those of a pool do."""
        settings = {**QUIET, "distributed.worker.multiprocessing-method": context("distributed").get_start_method()}
        set_while = dask("dask").config.set(settings)  # for all that it starts later, too, in place of lost ones
        with without_main():
            cluster = distributed.LocalCluster(
                n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1",
                memory_limit=None, silence_logs=CRITICAL,
            )  # fmt: skip
        self._end += [cluster.close, partial(set_while.__exit__, None, None, None)]
        return cluster

    def expect(self, left: int) -> None:
        """It does not matter."""

    @property
    def width(self) -> int:
        """Threads of all workers; 1 while there is none."""
        if monotonic() - self._counted > FRESH:
            with suppress(Exception):  # the scheduler may be gone, which futures report
                self._threads = max(1, sum(self._client.nthreads().values()))
            self._counted = monotonic()
        return self._threads

    def submit(self, work: Work[T, R], item: T) -> Future[R]:
        """Send an item, such as a batch. The future raises what the work raises, BrokenExecutor if it lost several workers, and
        InputError if the scheduler is gone.
        """
        made: Future[R] = Future()
        try:
            sent = self._client.submit(work_there, pickle.dumps((work, item)), __version__, pure=False, retries=RETRIES)
        except Exception as error:  # the client is closed
            raise self._gone() from error
        self._futures.add(sent)
        sent.add_done_callback(lambda future: self._ended(future, made))
        return made

    def _ended(self, sent: Any, made: Future[Any]) -> None:
        """Pass on the result of an item."""
        self._futures.discard(sent)
        try:
            if sent.status == "finished":
                made.set_result(sent.result())
            elif sent.status == "error":
                made.set_exception(self._error(sent.exception()))
            else:
                made.set_exception(self._gone())
        except Exception as error:  # it cannot be fetched
            made.set_exception(self._gone() if self._client.status != "running" else self._error(error))

    def _error(self, error: BaseException) -> BaseException:
        if type(error).__name__ in ("KilledWorker", "NoValidWorkerError"):
            return BrokenExecutor(str(error))
        return error if isinstance(error, InputError) else InputError(f"--cluster {self._address}: a worker failed: {error}")

    def _gone(self) -> InputError:
        return InputError(
            f"--cluster {self._address}: the scheduler is gone; the runs that have ended are kept, the same command goes on"
        )

    def renew(self) -> None:
        """Cancel what runs; Dask itself replaces workers."""
        with suppress(Exception):
            self._client.cancel(list(self._futures), force=True)
        self._futures.clear()

    def close(self, *, now: bool = False) -> None:
        """Leave the cluster; end one that was started here. now: cancel what runs."""
        if now:
            self.renew()
        for end in (self._client.close, *self._end):
            with suppress(Exception):
                end()


def work_there(task: bytes, version: str) -> Any:
    """Do work on an item on a worker, with one core. Raises InputError if it has another version of the program.

    task: both, pickled, so that the scheduler passes them on as they are.
    """
    if version != __version__:
        raise InputError(f"a worker has version {__version__} of the program, expected {version}")
    os.environ[CORES] = "1"
    work, item = pickle.loads(task)
    return work(item)


def local(count: int) -> Pool:
    """This process, and a cluster of so many worker processes on this machine once that pays: it takes seconds to start.

    Raises InputError if Dask is not installed.
    """
    if find_spec("distributed") is None:
        raise InputError(NEEDED)
    return Growing(count, partial(Cluster, LOCAL, count))


def dask(module: str) -> Any:
    """A module of Dask. Raises InputError if it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise InputError(NEEDED) from None
