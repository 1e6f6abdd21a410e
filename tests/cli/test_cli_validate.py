"""`sim validate` refuses what cannot be run in one line, and most of it before torch is loaded."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import SIM, Sim, error_of

Fails = Callable[..., str]


def before_all_else(folder: Path) -> dict[str, str]:
    """An environment in which a folder goes before other places of modules."""
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama-3.2-1"], "unknown model config 'llama-3.2-1' (did you mean 'llama-3.2-1b'?)"),
        (["gpt2", "--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda', 'mps'"),
        (["gpt2", "--dtype", "bf16"], "'float16', 'float32' (did you mean 'bfloat16'?)"),
        (["gpt2", "--trace", "a.html"], "trace file 'a.html': expected a name that ends in .pftrace"),
        (["gpt2", "--trace", "a.json"], "--trace: expected a name that ends in .pftrace or .pftrace.gz, found 'a.json'"),
        (["gpt2", "--band", "5"], "--band: expected --profile DEVICE.yaml as well"),
        (["gpt2", "--profile", "none.yaml"], "none.yaml: no such file"),
        (["gpt2", "--cuda-graph"], "--cuda-graph: expected --device cuda, found cpu"),
        (["gpt2", "--rounds", "1"], "1 is not in the range x>=2"),
    ],
)
def test_it_is_refused_at_once(fails: Fails, arguments: list[str], message: str) -> None:
    assert message in fails("validate", *arguments)


@pytest.mark.parametrize("command", [("validate", "gpt2"), ("profile", "-o", "device.yaml")])
def test_without_torch_it_says_so(process: Sim, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    found = error_of(process(*command, status=2, env=before_all_else(tmp_path)))
    assert found.endswith("(pip install torch transformers): No module named torch")
    assert not (tmp_path / "device.yaml").exists()


def test_what_this_machine_lacks_is_refused(fails: Fails) -> None:
    assert "threads: expected 1 to " in fails("validate", "gpt2", "--threads", 100_000)


@pytest.mark.slow
def test_what_does_not_fit_memory_is_refused(fails: Fails) -> None:
    found = fails("validate", "deepseek-v3", "--dtype", "bfloat16")
    assert found.startswith("deepseek-v3 in bfloat16: its weights need 1.3")
    assert found.endswith("fewer layers would fit")


def test_its_help_needs_no_torch(process: Sim, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    assert "--band PERCENT" in process("validate", "--help", env=before_all_else(tmp_path)).stdout


@pytest.mark.slow
def test_ctrl_c_ends_it_in_one_line_and_leaves_no_trace(tmp_path: Path) -> None:
    command = [SIM, "validate", "gpt2", "--layers", "1", "--threads", "1", "--rounds", "100000", "--trace", "t.pftrace"]
    environment = {**os.environ, "DECODE_SIM_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=12)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert not list(tmp_path.glob("*.pftrace*"))
