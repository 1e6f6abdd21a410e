"""Commands that are ended at random moments leave what they write whole, or not there, and nothing else for long."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_one_kill(tmp_path: Path) -> None:
    killed("rounds", 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times"), [("run", 6), ("report", 6), ("rounds", 8)])
def test_many_kills(name: str, times: int, tmp_path: Path) -> None:
    killed(name, times, tmp_path)
