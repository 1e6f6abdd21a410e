"""Commands that are ended at random moments leave what they write whole, or not there, and nothing else for long."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from sim.cost.profile import read_profile
from tests.tools import tiny_profile
from tests.tools.command import call

SIM = (sys.executable, "-m", "sim")

#: Writes the rounds of a profile, one after the other, as `sim profile` does, and removes them at the end.
ROUNDS = """
import sys
from pathlib import Path
from sim.cost.profile import Samples
from sim.measure.partial import Partial
partial = Partial(Path(sys.argv[1]), {"device": "d"})
for number in range(partial.done(), 60):
    partial.add(number, Samples({"kind": ["q"] * 3, "duration": [1, 2, 3], "step": [0, 0, 1], "round": [number] * 3}))
samples = partial.samples()
assert sorted(set(samples.round.tolist())) == list(range(60)), samples
partial.remove()
Path(sys.argv[1]).write_text(str(len(samples)))
"""

COMMANDS = {
    "run": ((*SIM, "run", "two_sequences_fifo", "--json", "--out", "out.pftrace.gz"), "out.pftrace.gz"),
    "report": ((*SIM, "report", "two_sequences_fifo", "--no-what-if", "--out", "out.html"), "out.html"),
    "rounds": ((sys.executable, "-c", ROUNDS, "out.yaml"), "out.yaml"),
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def killed(name: str, times: int, folder: Path) -> None:
    command, out = COMMANDS[name]
    rng, began = random.Random(name), time.monotonic()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    took, whole = time.monotonic() - began, (folder / out).read_bytes()
    for _ in range(times):
        (folder / out).unlink(missing_ok=True)
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        number = rng.choice(SIGNALS)
        try:
            process.wait(took * rng.uniform(0, 1.1))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
        if number == signal.SIGTERM:  # Python itself may not have begun, or the program not have installed what hears of it
            assert "Error:" not in said
        assert not (folder / out).exists() or (folder / out).read_bytes() == whole
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert (folder / out).read_bytes() == whole
    assert [path.name for path in folder.iterdir()] == [out]


def swept(times: int, folder: Path) -> None:
    """End sweeps at random moments; each goes on where it was, and has the rows of one that was left alone."""
    command = (*SIM, "sweep", "parallel", "--over", "hardware.engines.count=1..12", "--jobs", "2", "--out")
    rng, began = random.Random("sweep"), time.monotonic()
    subprocess.run([*command, "whole"], cwd=folder, check=True, capture_output=True)
    took, whole = time.monotonic() - began, study_of(folder / "whole")
    for number in range(times):
        out = folder / str(number)
        process = subprocess.Popen([*command, out.name], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with suppress(subprocess.TimeoutExpired):
            process.wait(took * rng.uniform(0, 1.1))
            assert process.returncode == 0
        if process.poll() is None:
            process.send_signal(rng.choice(SIGNALS))
        process.communicate(timeout=60)
        until = time.monotonic() + 30
        while left := inside(folder):
            assert time.monotonic() < until, f"processes {left} live on without the one that began them"
            time.sleep(0.05)
        assert call([*command[3:], str(out)]).status == 0
        assert study_of(out) == whole
        assert not list(out.rglob("*.part"))
        shutil.rmtree(out)


def profiled(times: int, folder: Path) -> None:
    """End `sim profile` at random moments; the next run goes on from the last round, and leaves the two files of a profile."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.tools.tiny_profile", "sim.measure.calibrate"])  # torch, once for all
    rng, out = random.Random("profile"), folder / "out.yaml"

    def begun() -> ForkServerProcess:
        process = processes.Process(target=tiny_profile.profile, args=(out,))
        process.start()
        return process

    begun().join()  # with the import of torch
    began = time.monotonic()
    begun().join()
    took = time.monotonic() - began
    for _ in range(times):
        process = begun()
        process.join(took * rng.uniform(0, 1.1))
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, rng.choice(SIGNALS))
            process.join(60)
        assert process.exitcode is not None
        if out.exists():
            assert read_profile(out).provenance.rounds == tiny_profile.TINY.rounds
    last = begun()
    last.join()
    assert last.exitcode == 0
    assert read_profile(out).provenance.rounds == tiny_profile.TINY.rounds
    assert sorted(path.name for path in folder.iterdir()) == ["out.parquet", "out.yaml"]


def study_of(folder: Path) -> object:
    """The points of a study, with their numbers."""
    done = call(["study", str(folder), "--json"])
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)["points"]


def inside(folder: Path) -> list[str]:
    """Processes whose working directory is a folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (each / "cwd").readlink() == folder:
                found.append(each.name)
    return found


def test_one_kill(tmp_path: Path) -> None:
    killed("rounds", 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times"), [("run", 25), ("report", 25), ("rounds", 13)])
def test_many_kills(name: str, times: int, tmp_path: Path) -> None:
    killed(name, times, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc, to see what lives on")
def test_many_kills_of_sweeps(tmp_path: Path) -> None:
    swept(25, tmp_path)


@pytest.mark.slow
def test_many_kills_of_profiles(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    profiled(12, tmp_path)
