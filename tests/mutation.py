"""Mutation tests: break the code in small ways, one at a time, and see whether the tests notice.

    pip install cosmic-ray
    python -m tests.mutation [FOLDER ...] [--sample 40] [--seed 0]

Each mutant is a copy of the program in which cosmic-ray changed one operator, number or condition. It is killed if a test of
its folder fails. A sample of mutants is drawn from a seed, because all would take days. Prints the score of each folder, and
the places of survivors. Kernels run as plain Python, and folders are tested by runs too small for the compiled executor: code
that only that one uses (`disciplines.py`, `written.py`) survives here, and is covered by the tests that compare the executors.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = """[cosmic-ray]
module-path = {modules}
timeout = {timeout}
excluded-modules = []
test-command = "{command}"
[cosmic-ray.distributor]
name = "local"
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Modules that are mutated, and the tests that must notice."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


MACHINE = (
    "tests/machine/test_rules.py", "tests/machine/test_channel.py", "tests/machine/test_choices.py",
    "tests/machine/test_lockstep.py", "tests/machine/test_age.py", "tests/theory/test_exact.py",
)  # fmt: skip
TARGETS = {
    "arbiters": Target(("sim/machine/arbiters",), (*MACHINE, "tests/machine/test_invariants.py")),
    "reference": Target(("sim/executors/reference",), MACHINE),
    "serving": Target(
        ("sim/serving",), ("tests/serving/test_batcher.py", "tests/serving/test_brute_force.py", "tests/serving/test_runs.py")
    ),
    "log": Target(("sim/log",), ("tests/log/test_storage.py", "tests/analysis")),
    "analysis": Target(("sim/analysis",), ("tests/analysis", "tests/theory/test_exact.py")),
}  # fmt: skip

#: Operators whose mutants change nothing that runs: `|` in annotations, which are never evaluated.
LEFT_OUT = "core/ReplaceBinaryOperator_BitOr%"


def copy(folder: Path) -> None:
    """Copy the files of the program that git knows."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def run(name: str, target: Target, sample: int, seed: int, timeout: float) -> tuple[int, list[str]]:
    """Number of killed mutants of a sample, and the places of the others."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy(folder)
        command = (
            f"{sys.executable} -m pytest -x -q -p no:cacheprovider -m 'not slow' -k 'not compiled' {' '.join(target.tests)}"
        )
        config, session = folder / "mutation.toml", folder / "session.sqlite"
        config.write_text(CONFIG.format(modules=list(target.modules), timeout=timeout, command=command))
        cosmic_ray = [str(Path(sys.executable).with_name("cosmic-ray"))]
        subprocess.run([*cosmic_ray, "init", config.name, session.name], cwd=folder, check=True, capture_output=True)
        draw(session, sample, seed)
        subprocess.run([*cosmic_ray, "exec", config.name, session.name], cwd=folder, check=True, capture_output=True)
        return outcome(session)


def draw(session: Path, sample: int, seed: int) -> None:
    """Keep a sample of the mutants of a session."""
    with sqlite3.connect(session) as database:
        rows = database.execute(
            "SELECT job_id, operator_name LIKE ? FROM mutation_specs "
            "ORDER BY module_path, start_pos_row, start_pos_col, operator_name, occurrence",
            (LEFT_OUT,),
        ).fetchall()
        possible = [job for job, left_out in rows if not left_out]
        kept = set(random.Random(seed).sample(possible, min(sample, len(possible))))
        dropped = [(job,) for job, _ in rows if job not in kept]
        database.executemany("DELETE FROM mutation_specs WHERE job_id = ?", dropped)
        database.executemany("DELETE FROM work_items WHERE job_id = ?", dropped)


def outcome(session: Path) -> tuple[int, list[str]]:
    """Number of killed mutants, and the survivors: file, line and operator."""
    with sqlite3.connect(session) as database:
        rows = database.execute(
            "SELECT r.test_outcome, m.module_path, m.start_pos_row, m.operator_name FROM work_results r "
            "JOIN mutation_specs m ON m.job_id = r.job_id"
        ).fetchall()
    survivors = [f"{path}:{row}: {operator}" for found, path, row, operator in rows if "SURVIVED" in str(found).upper()]
    return len(rows) - len(survivors), sorted(survivors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "targets", nargs="*", choices=[[], *TARGETS], metavar="FOLDER", help=f"of {', '.join(TARGETS)}; default: all"
    )
    parser.add_argument("--sample", type=int, default=40, help="mutants of each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=120, help="seconds after which a mutant counts as killed")
    options = parser.parse_args()
    for name in options.targets or TARGETS:
        killed, survivors = run(name, TARGETS[name], options.sample, options.seed, options.timeout)
        print(f"{name}: {killed} of {killed + len(survivors)} mutants killed")
        for line in survivors:
            print(f"  {line}")


if __name__ == "__main__":
    main()
