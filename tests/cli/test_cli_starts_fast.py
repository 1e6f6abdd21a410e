"""Commands start fast: none imports torch, which takes seconds and only a capture needs, nor Numba, for small runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "huggingface_hub", "numba", "scipy", "pandas", "matplotlib", "pyarrow"}


def imported(code: str, cwd: Path) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after `code`."""
    script = f"import contextlib, sys\nwith contextlib.suppress(SystemExit):\n    {code}\nprint()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def main(*arguments: str) -> str:
    """Code that runs a command."""
    return f"import sim.cli; sim.cli.main({list(arguments)!r})"


@pytest.mark.parametrize(
    "code",
    [
        main("list"),
        main("check", "llama_1b_context_256"),
        main("run", "two_tokens_4_engines", "llama_1b_context_256"),
        main("capture", "llama-3.2-1b"),
        "import sim; sim.run('two_tokens_4_engines').summary()",
    ],
)
def test_small_commands_import_neither_torch_nor_numba(code: str, tmp_path: Path) -> None:
    assert not imported(code, tmp_path) & HEAVY


def test_importing_sim_imports_next_to_nothing(tmp_path: Path) -> None:
    assert not imported("import sim", tmp_path) & {"numpy", "simpy", "pydantic", "click", "rich", *HEAVY}


def test_help_imports_only_click(tmp_path: Path) -> None:
    assert not imported(main("--help"), tmp_path) & {"numpy", "simpy", "pydantic", "rich", *HEAVY}


def test_the_table_of_models_waits_neither_for_graphs_nor_for_the_simulator(tmp_path: Path) -> None:
    assert not imported(main("list", "models"), tmp_path) & {"numpy", "simpy", "pydantic", "rich", *HEAVY}
