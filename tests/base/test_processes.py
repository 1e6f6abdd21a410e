"""Work in forks of this process. Each test is a program of its own, for a test run may have other threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no forks")

BEGIN = "import os, signal, threading, time\nfrom sim.base.processes import can_fork, forked\n"


def program(text: str) -> str:
    """Output of a program without `if __name__ == "__main__"`."""
    done = subprocess.run([sys.executable, "-c", BEGIN + text], check=False, capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    return done.stdout


def test_results_are_in_order_and_the_work_need_not_be_picklable() -> None:
    text = "mine = 10\nprint(list(forked(lambda i: (mine * i, os.getpid() != here), range(9), 2)))"
    assert program("here = os.getpid()\n" + text) == f"{[(10 * i, True) for i in range(9)]}\n"


def test_not_beside_other_threads() -> None:
    text = "other = threading.Thread(target=time.sleep, args=(1,))\nprint(can_fork()); other.start(); print(can_fork())"
    assert program(text).split() == ["True", "False"]


def test_errors_are_those_of_the_work() -> None:
    text = """
from sim.base.errors import InputError
def fail(i):
    raise InputError(f"number {i}")
try:
    list(forked(fail, [7, 8], 2))
except InputError as error:
    print(error)
"""
    assert program(text) == "number 7\n"


def test_a_process_that_is_killed() -> None:
    text = """
from sim.base.errors import SimError
try:
    list(forked(lambda i: os.kill(os.getpid(), signal.SIGKILL), [1, 2], 2))
except SimError as error:
    print(error)
"""
    assert "was killed" in program(text)


def test_those_left_end_when_the_iterator_is_closed() -> None:
    text = """
runs = forked(lambda i: time.sleep(0 if i == 0 else 50), range(9), 2)
next(runs); runs.close(); print("closed")
"""
    assert program(text) == "closed\n"


def test_an_interrupt_ends_all(tmp_path: Path) -> None:
    text = f"""
def work(i):
    open(os.path.join({str(tmp_path)!r}, str(os.getpid())), "w").close()
    time.sleep(50)
try:
    list(forked(work, range(4), 2))
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.Popen(
        [sys.executable, "-c", BEGIN + text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(done.pid, signal.SIGINT)  # as a terminal does: all of them
    assert done.communicate(timeout=60) == ("interrupted\n", "")
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
