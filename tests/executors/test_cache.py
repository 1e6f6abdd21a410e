"""Compiled code on disk: cold, warm, where it cannot be written, and broken; and installations without Numba."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.base import kernel

ROOT = Path(__file__).parents[2]

#: A small function of its own, so that compiling it takes no time. `refuse`: where even root may not write.
SMALL = """
import sys
import tempfile
from pathlib import Path
from sim.base import kernel as base

allowed = tempfile.TemporaryFile
def refuse(dir, **options):
    if "cache" in Path(dir).parts:
        raise PermissionError
    return allowed(dir=dir, **options)
if "refuse" in sys.argv:
    tempfile.TemporaryFile = refuse

@base.kernel
def add(a, b):
    return a + b

told = []
with base.when_compiling(lambda: told.append("compiled")):
    print(base.compile_kernel(add)(40, 2), *told, base._CACHE.folder)
"""

#: The event loop itself, by a scenario.
LARGE = """
import sim.scenario
from sim.base import kernel as base
from sim.runs.run import run
told = []
data = {
    "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
    "workload": {"sequences": [{"context": 30, "tokens": 3}]},
}
with base.when_compiling(lambda: told.append("compiled")):
    print(run(sim.scenario.from_dict(data), executor="compiled").makespan, *sorted(set(told)))
"""


def python(code: str, folder: Path, cache: Path, *arguments: str) -> list[str]:
    """Output of a program in a process of its own."""
    (folder / "program.py").write_text(code, encoding="utf-8")
    environment = os.environ | {"DECODE_SIM_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(folder / "program.py"), *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.split()


@pytest.fixture
def small(tmp_path):
    return lambda cache=tmp_path / "cache": python(SMALL, tmp_path, cache)


def test_cold_it_compiles_and_warm_it_does_not(small):
    assert small()[:2] == ["42", "compiled"]
    assert small()[:-1] == ["42"]


@pytest.mark.parametrize(
    ("ending", "harm"),
    [
        ("nbi", "noise"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("nbi", "half"), ("nbc", "half"), ("nbc", "gone"))),
    ],
)
def test_a_broken_file_is_replaced(small, tmp_path, ending, harm):
    small()
    (file,) = (tmp_path / "cache").rglob(f"*.{ending}")
    data = file.read_bytes()
    file.write_bytes({"half": data[: len(data) // 2], "noise": b"\x80\x05noise" * 50, "gone": b""}[harm])
    if harm == "gone":
        file.unlink()
    assert small()[:2] == ["42", "compiled"]
    assert small()[:-1] == ["42"]


def test_a_folder_that_cannot_be_made_is_no_error(small, tmp_path):
    (tmp_path / "file").write_text("no folder")
    *said, folder = small(tmp_path / "file" / "cache")
    assert said == ["42", "compiled"]
    assert "decode-sim-" in folder
    assert not Path(folder).exists()  # it lasts as long as the process


def test_compiled_code_in_a_folder_that_cannot_be_written_is_read(tmp_path):
    """As in an image of a container that somebody else has made."""
    python(SMALL, tmp_path, tmp_path / "cache")
    said, folder = python(SMALL, tmp_path, tmp_path / "cache", "refuse")
    assert said == "42"
    assert "decode-sim-" in folder


@pytest.mark.slow
def test_the_event_loop_cold_warm_broken_and_where_nothing_can_be_written(tmp_path):
    cache = tmp_path / "cache"
    (first, compiled) = python(LARGE, tmp_path, cache)
    assert compiled == "compiled"
    assert python(LARGE, tmp_path, cache) == [first]
    for file in sorted(cache.rglob("*.nb?")):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    assert python(LARGE, tmp_path, cache) == [first, "compiled"]
    assert python(LARGE, tmp_path, cache) == [first]


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numba":
            raise ImportError("Numba needs NumPy 2.5 or less. Got NumPy 9.9.")
sys.meta_path.insert(0, Blocked())
from sim.cli import cli
cli([
    "run", "four_sequences_fifo", "--set", "workload.sequences=[{context: 5, tokens: %d}]", "--set", "model.layers=1",
    "--set", "model.scope=block", "--set", "mapping.heads=fused", "--no-trace", "--executor", "%s",
], standalone_mode=False)
"""


def test_without_numba_a_large_run_goes_to_the_reference_and_a_line_says_so(tmp_path):
    said = " ".join(python(WITHOUT % (3000, "auto"), tmp_path, tmp_path))
    assert "Numba cannot be used here: Numba needs NumPy 2.5 or less. Got NumPy 9.9." in said


def test_a_small_run_does_not_import_numba(tmp_path):
    code = WITHOUT % (3, "auto") + "\nassert not [name for name in sys.modules if name.startswith(('numba', 'llvmlite'))]\n"
    assert "Numba" not in " ".join(python(code, tmp_path, tmp_path))


def test_the_folder_follows_from_the_sources():
    assert kernel.cache_folder().name.startswith("kernels-")
    assert kernel.cache_folder() == kernel.cache_folder()


def test_constants_of_kernels_are_sources_too():
    """A field of the event loop's memory that moves must not be read by code that was compiled before."""
    names = {path.relative_to(ROOT).as_posix() for path in kernel._sources(ROOT)}
    kernels = {path for path in ROOT.glob("sim/**/*.py") if "\n@kernel" in path.read_text(encoding="utf-8")}
    assert names >= {path.relative_to(ROOT).as_posix() for path in kernels}
    assert names >= {"sim/executors/compiled/state.py", "sim/base/units.py", "sim/log/columns.py"}
    assert "sim/cli/run.py" not in names
    assert "sim/executors/reference/run.py" not in names
