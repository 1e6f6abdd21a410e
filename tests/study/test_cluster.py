"""Studies on a real Dask cluster: the same rows, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sim.base.errors import InputError
from sim.base.processes import Work
from sim.study import cluster as clusters
from sim.study import pool as pools
from sim.study.batches import Batch, Job
from sim.study.cluster import LOCAL, Cluster, local
from sim.study.points import Study, load
from sim.study.pool import Here, work
from tests.study.conftest import Written, swept
from tests.study.test_sweep import MANY, rows
from tests.tools.command import call

distributed = pytest.importorskip("distributed")


def test_rows_are_those_of_one_process(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker in this process, to which batches are sent as bytes over TCP."""
    monkeypatch.setenv("DECODE_SIM_THREADS", "1")  # which workers set
    swept(study, tmp_path / "here")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=None,
                                  host="127.0.0.1", memory_limit=None) as local:  # fmt: skip
        pool = Cluster(local.scheduler_address)
        assert pool.width == 2
        assert swept(study, tmp_path / "dask", pool).done == 6
        other = Cluster(local.scheduler_address)
        monkeypatch.setattr(clusters, "__version__", "0.0.0")
        future = other.submit(work, Batch([]))
        monkeypatch.undo()
        with pytest.raises(InputError, match=r"expected 0\.0\.0"):
            future.result(timeout=60)
        other.close(now=True)
    assert rows(tmp_path / "dask") == rows(tmp_path / "here")


def test_without_a_scheduler_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "WAIT", "0.2 s")
    with pytest.raises(InputError, match=r"--cluster tcp://127\.0\.0\.1:1: "):
        Cluster("tcp://127.0.0.1:1")
    words = ["sweep", "two_tokens_4_engines", "--over", "seed=1..2", "-j", "2", "--cluster", "tcp://127.0.0.1:1"]
    done = call(words, together=True)
    assert done.status == 2
    assert "--jobs: expected only without --cluster ADDRESS" in done.stdout


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers, each a process of its own. Yields its address and the processes."""
    file = folder / "scheduler.json"
    words = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    scheduler = subprocess.Popen([sys.executable, *words, "--scheduler-file", str(file)], **quiet)
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1"]
    worker += ["--no-dashboard", "--no-nanny"]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        while not file.exists():
            assert scheduler.poll() is None
            time.sleep(0.1)
        workers += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
            address = client.scheduler.address
        yield address, scheduler, workers
    finally:
        for process in (*workers, scheduler):
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


class Killing(Cluster):
    """A cluster of which a process is killed after some batches have been sent."""

    def __init__(self, address: str, after: int, victim: int) -> None:
        super().__init__(address)
        self.left, self.victim = after, victim

    def submit(self, work: Work[Any, Any], item: Any) -> Future[Any]:
        future = super().submit(work, item)
        self.left -= 1
        if self.left == 0:
            time.sleep(0.05)
            os.kill(self.victim, signal.SIGKILL)
        return future


@pytest.mark.slow
def test_a_killed_worker_loses_no_point(written: Written, tmp_path: Path) -> None:
    study = load(written(MANY.replace("x250", "x20")))
    with running(tmp_path) as (address, _, workers):
        pool = Killing(address, 4, workers[0].pid)
        counts = swept(study, tmp_path / "out", pool)
        assert pool.left <= 0, "no worker was killed"
        assert workers[0].wait(timeout=10) == -signal.SIGKILL
    assert (counts.done, counts.failed) == (160, 0)
    swept(study, tmp_path / "whole", Here())
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_scheduler_leaves_rows_to_go_on_with(written: Written, tmp_path: Path) -> None:
    study = load(written(MANY.replace("x250", "x20")))
    with running(tmp_path) as (address, scheduler, _):
        with pytest.raises(InputError, match="the scheduler is gone; the runs that have ended are kept"):
            swept(study, tmp_path / "out", Killing(address, 6, scheduler.pid))
        before = len(rows(tmp_path / "out"))
        assert 0 < before < 160
    counts = swept(study, tmp_path / "out")
    assert (counts.before, counts.done) == (before, 160 - before)
    swept(study, tmp_path / "whole", Here())
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_worker_processes_of_a_local_cluster_need_no_files(study: Study, tmp_path: Path) -> None:
    pool = Cluster(LOCAL, 2)
    swept(study, tmp_path / "here")
    for name in ("base.yaml", "study.yaml"):
        (tmp_path / name).unlink()
    assert swept(study, tmp_path / "dask", pool).done == 6
    assert rows(tmp_path / "dask") == rows(tmp_path / "here")


@pytest.mark.slow
def test_a_local_cluster_begins_beside_runs(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs are over before; of more, the first ones are in this process, with the same rows."""
    few, many = load(written()), load(written(MANY, name="many.yaml"))
    pool = local(2)
    swept(few, tmp_path / "few", pool)
    assert pool.alone
    monkeypatch.setattr(pools, "PAYS", 0.0)
    monkeypatch.setattr(pools, "ENOUGH", 0.0)
    swept(many, tmp_path / "many", begun := local(2))
    assert not begun.alone
    swept(many, tmp_path / "here", Here())
    assert rows(tmp_path / "many") == rows(tmp_path / "here")


def test_a_cluster_that_cannot_begin_is_an_error(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise InputError("no port is free")

    monkeypatch.setattr(clusters, "Cluster", broken)
    monkeypatch.setattr(pools, "ENOUGH", 0.0)
    monkeypatch.setattr(pools, "PAYS", 0.0)
    pool, job = local(2), Job.of(study.plan(next(study.points())))
    for _ in range(2):
        pool.submit(work, Batch([job]))
    for _ in range(2):
        with pytest.raises(InputError, match="no port is free"):
            pool.expect(1000)
    pool.close()
