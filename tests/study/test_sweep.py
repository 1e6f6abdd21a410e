"""Sweeps: the same rows whatever runs them, and none lost, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.base.errors import InputError
from sim.base.processes import Work
from sim.study import pool, server
from sim.study import store as storage
from sim.study.batches import Batch, Job, Outcome
from sim.study.points import Study, load
from sim.study.pool import Foreign, Growing, Here, Processes, work
from sim.study.server import without_main
from sim.study.store import FAILED, Store, column, parts, read_part
from sim.study.sweep import Counts, _Runner, estimate
from tests.study.conftest import BASE, STUDY, Written, swept
from tests.tools.command import call
from tests.tools.full_disk import fill_disk

MANY = """\
extends: base.yaml
axes:
  hardware.engines.count: 1..8
  hardware.memory.bandwidth: 40..400 GB/s x250
"""


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows, in order of points and seeds."""
    found = [row for part in parts(folder) for row in read_part(part).to_pylist()]
    return sorted(found, key=lambda row: (row["point"], row["seed"]))


def test_each_point_is_a_row(study: Study, tmp_path: Path) -> None:
    counts = swept(study, tmp_path / "out")
    assert (counts.done, counts.failed) == (6, 0)
    found = rows(tmp_path / "out")
    assert [row["hardware.engines.count"] for row in found] == [1, 1, 2, 2, 4, 4]
    assert [row["hardware.memory.bandwidth"] for row in found] == [50 * 10**9, 100 * 10**9] * 3
    assert [row["area"] for row in found] == [4 * n + bandwidth for n in (1, 2, 4) for bandwidth in (5, 10)]
    assert len({row["plan"] for row in found}) == 6
    assert all(row["status"] == "ok" and row["error"] is None and row["feasible"] for row in found)
    assert all(0 < row["lower_ps"] <= row["makespan_ps"] <= row["upper_ps"] for row in found)


def test_an_axis_over_seeds_goes_on_where_it_was(written: Written, tmp_path: Path) -> None:
    """The seed of a row is that of its axis, by which a second run finds it."""
    study = load(written("extends: base.yaml\naxes: {hardware.engines.count: [1, 2], seed: [7, 0, 3]}\n"))
    swept(study, tmp_path / "out")
    assert [(row["point"], row["seed"]) for row in rows(tmp_path / "out")] == [*enumerate([7, 0, 3, 7, 0, 3])]
    again = swept(study, tmp_path / "out")
    assert (again.before, again.done) == (6, 0)
    assert next(study.points()).overrides == ("hardware.engines.count=1", "seed=7")


def test_rows_do_not_depend_on_the_executor(study: Study, tmp_path: Path) -> None:
    swept(study, tmp_path / "here")
    swept(study, tmp_path / "processes", Processes(2))
    swept(study, tmp_path / "threads", Foreign(ThreadPoolExecutor(3), 3))
    assert rows(tmp_path / "here") == rows(tmp_path / "processes") == rows(tmp_path / "threads")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server of processes is no fork of this process, as where this one has other threads."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    monkeypatch.setattr(server, "can_fork", lambda: False)
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("anew")
def test_a_process_of_a_study_imports_neither_torch_nor_the_command_line(study: Study) -> None:
    one = Processes(1)
    try:
        one.submit(work, Batch([Job.of(study.plan(next(study.points())))])).result()
        loaded = one._pool.submit(eval, "sorted(__import__('sys').modules)").result()
    finally:
        one.close(now=True)
    assert "sim.study.metrics" in loaded
    assert not {"torch", "transformers", "sim.cli", "click", "pytest"} & set(loaded)


def test_a_batch_is_small_and_shares_graphs(study: Study) -> None:
    import pickle

    jobs = [Job.of(study.plan(point)) for point in study.points()]
    one, all_of_two = len(pickle.dumps(Batch(jobs[:1]))), len(pickle.dumps(Batch(jobs[:2])))
    assert all_of_two - one < 0.3 * one  # points that differ in delays alone share their graph
    again = pickle.loads(pickle.dumps(Batch(jobs)))
    assert again.jobs[0].setup.graph is again.jobs[1].setup.graph
    assert pickle.loads(pickle.dumps(Batch(jobs))).jobs[0].setup.graph is again.jobs[0].setup.graph  # in a later batch, too
    assert [each.values for each in work(again)] == [each.values for each in work(Batch(jobs))]


def test_points_are_planned_where_they_run(written: Written) -> None:
    """A batch of them is their base, which is kept, and a few words for each; errors are those of plans made here."""
    import pickle

    study = load(written("extends: base.yaml\naxes: {model.layers: [1, 99], hardware.engines.count: 1..8}\n"))
    points = list(study.points())
    assert not study.needs_files
    sent = [pickle.dumps(Batch([study.unplanned(point) for point in points[:count]])) for count in (1, 8, 16)]
    assert len(sent[1]) - len(sent[0]) < 7 * 200
    assert len(sent[2]) < 8000
    first, second = pickle.loads(sent[1]), pickle.loads(sent[2])
    assert first.jobs[0].planner is second.jobs[0].planner
    found = work(second)
    assert found[:8] == work(Batch([Job.of(study.plan(point)) for point in points[:8]]))
    for point, outcome in zip(points[8:], found[8:], strict=True):
        with pytest.raises(InputError) as refused:
            study.plan(point)
        assert outcome == Outcome(None, str(refused.value))


def test_a_fork_has_the_planner_of_a_sweep_as_it_is(study: Study, tmp_path: Path) -> None:
    import pickle

    swept(study, tmp_path / "out")
    again = pickle.loads(pickle.dumps(Batch([study.unplanned(next(study.points()))])))
    assert again.jobs[0].planner is study.planner


def test_a_point_that_fails_is_a_row_with_its_error(written: Written, tmp_path: Path) -> None:
    study = load(written("extends: base.yaml\naxes: {model.layers: [1, 99]}\n"))
    counts = swept(study, tmp_path / "out")
    assert (counts.done, counts.failed) == (2, 1)
    good, bad = rows(tmp_path / "out")
    assert good["status"] == "ok"
    assert (bad["status"], bad["makespan_ps"], bad["feasible"]) == ("failed", None, None)
    message = "study.yaml:2:26: model.layers: expected 1 to 16, all layers of llama-3.2-1b, found 99"
    assert bad["error"] == f"{tmp_path}/{message}"
    assert swept(study, tmp_path / "out").done == 0
    assert swept(study, tmp_path / "out", again=[FAILED]).done == 1
    assert rows(tmp_path / "out") == [good, bad]


def test_a_misspelled_axis_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(["sweep", "parallel", "--over", "hardware.engines.cont=1,2"])
    assert done.status == 2
    assert done.stderr == (
        "error: --set hardware.engines.cont=1: hardware.engines: unknown key 'cont' (did you mean 'count'?); valid: "
        + done.stderr.partition("valid: ")[2]
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda base, study: (base.replace("count: 4", "count: 5"), study), "the base scenario changed"),
        (lambda base, study: (base, study.replace("[1, 2, 4]", "[1, 2, 3]")), "axes changed"),
        (lambda base, study: (base, study.replace("4 *", "5 *")), "columns changed"),
    ],
)
def test_a_study_that_changed_is_refused(written: Written, tmp_path: Path, change: Any, named: str) -> None:
    swept(load(written()), tmp_path / "out")
    base, text = change(BASE, STUDY)
    with pytest.raises(InputError, match=f"{named} since; choose another folder with --out"):
        swept(load(written(text, base)), tmp_path / "out")
    swept(load(written(text, base)), tmp_path / "other")
    assert swept(load(written(STUDY.replace("area: min", "area: max"))), tmp_path / "out").done == 0  # it changes no row


def test_a_folder_with_other_files_is_refused(study: Study, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="expected an empty folder or one of a study"):
        swept(study, tmp_path / "out")


def test_one_process_at_a_time_runs_a_study(study: Study, tmp_path: Path) -> None:
    with Store(tmp_path / "out", study).opened(), pytest.raises(InputError, match="another process runs this study now"):
        swept(study, tmp_path / "out")
    swept(study, tmp_path / "out")


def test_a_process_does_not_hold_the_lock_of_a_study(study: Study, tmp_path: Path) -> None:
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # one that begins now could have it
    one = Processes(1)
    try:
        with Store(tmp_path / "out", study).opened():
            one.submit(work, Batch([])).result()
        swept(study, tmp_path / "out")
    finally:
        one.close(now=True)


def test_a_full_disk_leaves_whole_rows_and_a_folder_to_go_on_with(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LONG", 0.0)  # every batch is a file
    folder = tmp_path / "out"
    with monkeypatch.context() as full:
        fill_disk(full, "part-000001")
        with pytest.raises(OSError, match="No space left"):
            swept(study, folder)
    done = rows(folder)
    assert done  # at the end the rows that waited were written once more, which a disk that stays full prevents
    counts = swept(study, folder)
    assert counts.before == len(done)
    swept(study, tmp_path / "whole")
    assert rows(folder) == rows(tmp_path / "whole")


SMALL_DISK = """
mount -t tmpfs -o size=$SIZE none "$0" || exit 77
"$@"
status=$?
cp -r "$0" "$KEPT"
exit $status
"""


@pytest.mark.slow
def test_a_disk_that_is_full_indeed_leaves_a_folder_to_go_on_with(written: Written, tmp_path: Path) -> None:
    """A file system of 48 KiB, in a name space of its own: all rows together take some 55 KiB, in more files more."""
    path, folder, kept = written(MANY.replace("x250", "x100")), tmp_path / "small", tmp_path / "kept"
    folder.mkdir()
    sweeps = [sys.executable, "-m", "sim", "sweep", str(path), "-j", "2", "-o", str(folder / "out")]
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, str(folder), *sweeps]
    settings = {**os.environ, "SIZE": "48k", "KEPT": str(kept)}
    done = subprocess.run(alone, capture_output=True, text=True, env=settings, timeout=600, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file systems may be mounted here")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    before = len(rows(kept / "out"))
    assert before < 800
    assert not [each for each in (kept / "out").rglob("*") if each.suffix == ".part"]
    again = subprocess.run([*sweeps[:-1], str(kept / "out")], capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stderr
    assert not before or f"{before:,} from before" in again.stdout
    swept(load(path), tmp_path / "whole", Here())
    assert rows(kept / "out") == rows(tmp_path / "whole")


def test_an_estimate_is_of_a_few_runs(study: Study, written: Written) -> None:
    found = estimate(study, 2)
    assert 0 < found.seconds < 60
    assert found.error == ""
    assert "expected 1 to 16" in estimate(load(written("extends: base.yaml\naxes: {model.layers: [1, 99]}\n")), 2).error


def test_an_estimate_says_what_proofs_save(written: Written) -> None:
    bound = "extends: base.yaml\naxes: {hardware.memory.bandwidth: '1,2,4,1000 GB/s'}\n"
    assert estimate(load(written(bound)), 4).saved is None  # without objectives all points are of interest
    assert estimate(load(written(f"{bound}objectives: {{makespan: min}}\n")), 4).saved == 0  # all have run
    assert estimate(load(written(f"{bound}constraints: [makespan < 1 ps]\nobjectives: {{makespan: min}}\n")), 1).saved == 0.75
    more = "axes: {hardware.memory.bandwidth: '1000,1,2,4 GB/s'}"
    fast_first = f"extends: base.yaml\n{more}\nobjectives: {{makespan: min}}\n"
    assert estimate(load(written(fast_first)), 1).saved == 0.75  # bytes alone take the others longer than the first


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=20), st.lists(st.none() | st.floats(), max_size=20),
    st.lists(st.none() | st.text(max_size=5).filter(lambda text: text.isprintable()), max_size=20),
    st.lists(st.none() | st.booleans(), max_size=20),
)  # fmt: skip
def test_columns_are_those_of_pyarrow(whole: list[Any], real: list[Any], texts: list[Any], flags: list[Any]) -> None:
    import pyarrow

    for values, kind in ((whole, "int64"), (real, "float64"), (texts, "string"), (flags, "bool")):
        made = column(values, pyarrow.type_for_alias(kind))
        made.validate(full=True)
        assert made.null_count == values.count(None)
        assert str(made.to_pylist()) == str(values)  # as text, because a NaN equals nothing
    for value, error in ((2**63, OverflowError), (0.5, TypeError)):
        with pytest.raises(error):
            column([value], pyarrow.int64())


@pytest.mark.slow
def test_a_sweep_imports_pandas_no_more_than_torch(written: Written, tmp_path: Path) -> None:
    command = f"""
import sys
from sim.cli import main
try:
    main(["sweep", {str(written())!r}, "-j", "1", "-o", {str(tmp_path / "out")!r}])
except SystemExit as end:
    assert not end.code
assert not {{"pandas", "torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "out")) == 6


class Killing(Processes):
    """Processes of which one is killed with SIGKILL after some batches."""

    def __init__(self, count: int, after: int, times: int = 1) -> None:
        super().__init__(count)
        self.left, self.times, self.kills = after, times, 0

    def submit(self, work: Work[Any, Any], item: Any) -> Any:
        self.left -= 1
        if self.left > 0 or self.kills >= self.times:
            return super().submit(work, item)
        self.kills += 1
        with without_main():
            lost = self._pool.submit(time.sleep, 60)  # in place of the batch, which could end before the signal comes
        os.kill(next(iter(self._pool._processes)), signal.SIGKILL)
        return lost


def test_the_last_batches_are_small_but_worth_sending(written: Written, tmp_path: Path) -> None:
    """A quarter of the runs that are left for two processes, or as many as take 100 ms: 20 of 5 ms."""
    study = load(written(MANY.replace("x250", "x12")))
    sent = Foreign(ThreadPoolExecutor(1), 2)
    for least, expected in ((0.0, [24, 18, 13, 10, 7, 6, 4, 3, 2, 2] + 7 * [1]), (0.1, [24, 20, 20, 20, 12])):
        sent.least = least
        runner = _Runner(study, Store(tmp_path, study), sent, Counts(), None)
        runner.left, runner.size = 96, 96
        runner._adapt(48, 0.48)  # half of it in a queue
        assert [len(task.points) for task in runner._tasks(study.points())] == expected
    sent.close()


def test_processes_begin_once_they_pay(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few small runs are in this process. Where more are left, or one may be large, others run them, with the same rows."""
    monkeypatch.setattr(pool, "Processes", lambda count: Foreign(ThreadPoolExecutor(count), count))  # they begin at once
    few, many = load(written()), load(written(MANY.replace("x250", "x4"), name="many.yaml"))
    swept(few, tmp_path / "here", growing := Growing(2))
    assert growing._beside is None
    with monkeypatch.context() as large:
        large.setattr(pool, "SMALL", 0)
        swept(few, tmp_path / "large", growing := Growing(2))
    assert growing._beside is not None
    assert growing._runs == 0
    monkeypatch.setattr(pool, "SOON", 0.0)
    monkeypatch.setattr(pool, "ENOUGH", 0.0)
    swept(many, tmp_path / "both", growing := Growing(2))
    assert growing._beside is not None
    assert 0 < growing._runs < many.runs
    swept(many, tmp_path / "all")
    assert rows(tmp_path / "here") == rows(tmp_path / "large")
    assert rows(tmp_path / "both") == rows(tmp_path / "all")


def test_no_run_is_in_this_process_after_a_kill(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = Growing(2)
    job = Job.of(study.plan(next(study.points())))
    assert growing.submit(work, Batch([job])).done()
    assert growing._beside is None
    growing.renew()
    try:
        monkeypatch.setattr(growing._here, "submit", lambda batch: pytest.fail("in this process"))
        assert not growing.alone
        assert growing.submit(work, Batch([job])).result()[0].values == work(Batch([job]))[0].values
    finally:
        growing.close(now=True)


def test_a_killed_process_loses_no_point(study: Study, tmp_path: Path) -> None:
    killing = Killing(2, after=2)
    counts = swept(study, tmp_path / "killed", killing)
    assert (killing.kills, counts.done, counts.failed) == (1, 6, 0)
    swept(study, tmp_path / "whole")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_a_point_that_always_kills_its_process_is_a_row(study: Study, tmp_path: Path) -> None:
    killing = Killing(1, after=1, times=100)
    counts = swept(load_first(study), tmp_path / "out", killing)
    assert (counts.done, counts.failed) == (1, 1)
    assert "killed" in rows(tmp_path / "out")[0]["error"]


def load_first(study: Study) -> Study:
    """The study's first point alone."""
    from dataclasses import replace

    return replace(study, grid=[dimension[:1] for dimension in study.grid])


def sweeping(path: Path, folder: Path, jobs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sim", "sweep", str(path), "-j", str(jobs), "-o", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_rows(folder: Path, process: subprocess.Popen[str], files: int) -> None:
    """Wait for some files of rows."""
    end = time.monotonic() + 120
    while len(parts(folder)) < files:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="there is no server of forks")
def test_a_killed_server_of_forks_loses_no_point(written: Written, tmp_path: Path) -> None:
    """The next one is no fork of this process, where there may be threads of the pool."""
    killed = list[int]()

    def kill(counts: Counts) -> None:
        if counts.done > 20 and not killed:
            killed.append(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
            os.kill(killed[0], signal.SIGKILL)

    study = load(written(MANY.replace("x250", "x25")))
    counts = swept(study, tmp_path / "killed", Processes(2), on_progress=kill)
    assert killed
    assert (counts.done, counts.failed) == (200, 0)
    swept(study, tmp_path / "whole")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "jobs"), [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
)
def test_a_killed_sweep_goes_on_where_it_was(written: Written, tmp_path: Path, number: int, jobs: int) -> None:
    path, folder = written(MANY.replace("x250", "x800")), tmp_path / "out"
    process = sweeping(path, folder, jobs)
    until_rows(folder, process, 1)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on" in error
    before = rows(folder)
    assert 0 < len(before) < 6400, "it was to be killed in the middle"
    again = sweeping(path, folder, jobs)
    out, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    assert f"{len(before):,} from before" in out
    swept(load(path), tmp_path / "whole", Here())
    assert rows(folder) == rows(tmp_path / "whole")


def family(process: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["", "threading.Thread(target=time.sleep, args=(100,), daemon=True).start();"])
def test_processes_end_with_a_killed_parent(written: Written, tmp_path: Path, threads: str) -> None:
    """A worker, the server that it is a fork of, and the tracker of resources."""
    words = ["sweep", str(written(MANY.replace("x250", "x2500"))), "-j", "2", "-o", str(tmp_path / "out")]
    program = f"import sys, threading, time; from sim.cli import main; {threads} main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(children := list(family(process.pid))[1:]) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end, children
        time.sleep(0.1)
