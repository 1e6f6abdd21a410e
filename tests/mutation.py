"""Mutation tests: break the code in small ways, one at a time, and see whether the tests notice.

    pip install cosmic-ray
    python -m tests.mutation [FOLDER ...] [--sample 40] [--seed 0]

Each mutant is a copy of the program in which cosmic-ray changed one operator, number or condition. It is killed if a test of
its folder fails or takes too long. A sample of mutants is drawn from a seed: to run all would take days. Prints the score of
each folder, and where the survivors are.

A mutant takes seconds. Each is tested in a fork of one process, which has imported all that does not change. Nothing is
compiled, since Numba is hidden from the tests: kernels run as plain Python, and the reference executor runs all. Random tests
draw few examples. What only the compiled executor uses (`disciplines.py`, `written.py`) survives here, and is covered by the
tests that compare the executors.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = """[cosmic-ray]
module-path = {modules}
timeout = 1
excluded-modules = []
test-command = ""
[cosmic-ray.distributor]
name = "local"
"""
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutation", "--hypothesis-seed=0", "-m", "not slow")
EXAMPLES = 25  # of a random test


@dataclass(frozen=True, slots=True)
class Target:
    """Modules that are mutated, and the tests that must notice, those that end soonest first.

    left_out: parts of the names of tests that are slow, or need the compiled executor without saying so in their names.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Arguments of pytest, before the file."""
        return [*OPTIONS, "-k", " and ".join(f"not {name}" for name in ("compiled", *self.left_out))]


MACHINE = (
    "tests/machine/test_rules.py", "tests/machine/test_channel.py", "tests/machine/test_choices.py",
    "tests/machine/test_lockstep.py", "tests/machine/test_age.py", "tests/theory/test_exact.py",
)  # fmt: skip
BY_HAND = (
    "tests/analysis/test_breakdown.py", "tests/analysis/test_critical_path.py", "tests/analysis/test_requests.py",
    "tests/analysis/test_blame.py",
)  # fmt: skip
TARGETS = {
    "arbiters": Target(("sim/machine/arbiters",), (*MACHINE, "tests/machine/test_invariants.py")),
    "reference": Target(("sim/executors/reference",), MACHINE),
    "serving": Target(
        ("sim/serving",),
        tuple(f"tests/serving/test_{name}.py" for name in ("settings", "batcher", "requests", "runs", "size")),
        ("executors_agree", "shipped_scenarios", "progress_adds_up", "pollaczek", "bursts_wait"),
    ),
    "log": Target(
        ("sim/log",), ("tests/log/test_tables.py", *BY_HAND, "tests/log/test_storage.py", "tests/analysis/test_findings.py"),
        ("no_more_memory", "four_sequences_processor_sharing", "parts_add_up", "sequence-simpy", "kv_full_swap",
         "prefill_chunks", "sums_pass_int64"),
    ),
    "analysis": Target(
        ("sim/analysis",), (*BY_HAND, "tests/analysis/test_findings.py", "tests/analysis/test_optimal.py",
                            "tests/analysis/test_random.py"),
        ("kv_full_swap", "prefill_chunks"),
    ),
}  # fmt: skip

#: Operators whose mutants change nothing that runs: `|` in annotations, which are never evaluated.
LEFT_OUT = "core/ReplaceBinaryOperator_BitOr%"


def pytest_configure() -> None:
    """Draw few examples, and search for one counterexample, not for the smallest."""
    import hypothesis  # before the tests import it

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", max_examples=EXAMPLES, phases=phases, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")
    whole = hypothesis.settings.__init__

    def few(self: hypothesis.settings, *parent: Any, **given: Any) -> None:
        if "max_examples" in given:
            given["max_examples"] = min(EXAMPLES, given["max_examples"])
        whole(self, *parent, **given)

    hypothesis.settings.__init__ = few  # type: ignore[method-assign]


def copy(folder: Path) -> None:
    """Copy what git knows of the program."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def draw(modules: tuple[str, ...], sample: int, seed: int) -> list[tuple[str, int, str, int]]:
    """A sample of mutants of the modules of this folder: path, line, operator, and which of its occurrences in the file."""
    config, session = Path("mutation.toml"), Path("session.sqlite")
    config.write_text(CONFIG.format(modules=list(modules)))
    command = [str(Path(sys.executable).with_name("cosmic-ray")), "init", str(config), str(session)]
    subprocess.run(command, check=True, capture_output=True)
    with sqlite3.connect(session) as database:
        possible = database.execute(
            "SELECT module_path, start_pos_row, operator_name, occurrence FROM mutation_specs WHERE operator_name NOT LIKE ? "
            "ORDER BY module_path, start_pos_row, start_pos_col, operator_name, occurrence",
            (LEFT_OUT,),
        ).fetchall()
    return sorted(random.Random(seed).sample(possible, min(sample, len(possible))))


def survives(target: Target, timeout: int) -> bool:
    """Whether all tests pass, file by file: most mutants end with the first, and import no more than it needs."""
    return all(passes([*target.arguments, path], timeout) for path in target.tests)


def passes(arguments: list[str], timeout: int) -> bool:
    """Whether some tests pass, in a fork of this process."""
    child = os.fork()
    if not child:
        signal.setitimer(signal.ITIMER_PROF, timeout)  # which kills
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        import pytest

        os._exit(int(pytest.main(arguments)))
    return os.waitpid(child, 0)[1] == 0


def prepare(target: Target) -> None:
    """Import what the tests need, and forget what may be mutated."""
    for path in target.tests:
        importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for name in [name for name in sys.modules if name.split(".")[0] in {"sim", "models", "tests"}]:
        del sys.modules[name]
    sys.dont_write_bytecode = True  # of mutants, which would outlive them


def run(target: Target, sample: int, seed: int, timeout: int) -> tuple[int, list[str]]:
    """How many mutants of a sample were killed, and the others: file, line and operator. In a folder of its own."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    mutants = draw(target.modules, sample, seed)
    if not survives(target, timeout):  # otherwise each mutant would count as killed
        raise SystemExit("expected tests that pass before anything is mutated")
    prepare(target)
    survivors = []
    for name, line, operator, occurrence in mutants:
        path = Path(name)
        source, times = path.read_text(), path.stat()
        path.write_text(mutate_code(source, get_operator(operator)(), occurrence))
        if survives(target, timeout):
            survivors.append(f"{name}:{line}: {operator}, {occurrence}")
        path.write_text(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # its bytecode is valid again
    return len(mutants) - len(survivors), survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "targets", nargs="*", choices=[[], *TARGETS], metavar="FOLDER", help=f"of {', '.join(TARGETS)}; default: all"
    )
    parser.add_argument("--sample", type=int, default=40, help="mutants of each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=int, default=30, help="seconds of CPU time after which a mutant counts as killed")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # this folder is the copy
    options = parser.parse_args()
    for name in options.targets or TARGETS:
        if not options.here:
            in_a_copy([name, "--sample", str(options.sample), "--seed", str(options.seed), "--timeout", str(options.timeout)])
            continue
        killed, survivors = run(TARGETS[name], options.sample, options.seed, options.timeout)
        print(f"{name}: {killed} of {killed + len(survivors)} mutants killed")
        for line in survivors:
            print(f"  {line}")


def in_a_copy(arguments: list[str]) -> None:
    """Start this program in a copy of all that git knows, without Numba."""
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder))
        (Path(folder) / "numba.py").write_text("raise ImportError('mutants run as plain Python')\n")
        command = [sys.executable, "-m", "tests.mutation", *arguments, "--here"]
        subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": folder}, check=True)


if __name__ == "__main__":
    main()
