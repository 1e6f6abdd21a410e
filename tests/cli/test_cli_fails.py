"""Errors end in one line on stderr, exit status 2 for bad input and 1 for failure, and nothing half-written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sim.cli import COMMANDS
from tests.cli.conftest import SIM, Sim, error_of

SCENARIO = """\
name: mine
model: {config: llama-3.2-1b, layers: 1, scope: block}
workload: {sequences: [{context: 4, tokens: 1}]}
hardware:
  engines: {count: 4}
  memory: {bandwidth: 100 GB/s, arbiter: fifo}
mapping: {heads: split, weights: resident, execution: blocking}
scheduler: earliest
cost: {model: fixed, table: block_estimates, jitter: 0.0}
"""

TABLE = (
    "norm: 1 us, q_pro: 1 us, k_proj: 1 us, v_proj: 1 us, o_proj: 1 us, rope: 1 us, scores: 1 us, softmax_max: 1 us, "
    "softmax_exp: 1 us, softmax_norm: 1 us, weighted_values: 1 us, residual: 1 us, kv_load: 1 us, kv_store: 1 us, "
    "gate_proj: 1 us, up_proj: 1 us, down_proj: 1 us, act: 1 us"
)

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)

#: Change to the scenario, place of the error, and its text.
WRONG = {
    "unknown key": ("hardware:", "hardwear:", "4:1", "did you mean 'hardware'?"),
    "unknown key in a section": ("bandwidth:", "bandwith:", "6:12", "did you mean 'bandwidth'?"),
    "unknown model": ("llama-3.2-1b", "llama-3.2-1", "2:17", "did you mean 'llama-3.2-1b'?"),
    "the beginning of a model": ("llama-3.2-1b", "qwen3-30b", "2:17", "did you mean 'qwen3-30b-a3b'?"),
    "unknown arbiter": ("arbiter: fifo", "arbiter: fifi", "6:42", "did you mean 'fifo'?"),
    "unknown scheduler": ("scheduler: earliest", "scheduler: earlyest", "8:12", "did you mean 'earliest'?"),
    "unknown cost model": ("model: fixed", "model: fixt", "9:15", "did you mean 'fixed'?"),
    "unknown cost table": ("block_estimates", "block_estimate", "9:7", "did you mean 'block_estimates'?"),
    "unknown unit": ("100 GB/s", "100 GB/sec", "6:23", "did you mean 'GB/s'?"),
    "no unit": ("100 GB/s", "100", "6:23", "100 GB/s"),
    "op kind without a time": ("block_estimates", f"{{{TABLE}}}", "9:29", "'q_proj' (did you mean 'q_pro'?)"),
    "unknown choice": ("blocking", "blokking", "7:55", "did you mean 'blocking'?"),
    "a text for a number": ("count: 4", "count: four", "5:20", "whole number from 1 to 4096"),
    "a list for a mapping": ("{count: 4}", "[4]", "5:12", "expected a mapping"),
    "a mapping for a text": ("name: mine", "name: {a: b}", "1:7", "expected a text"),
    "negative": ("count: 4", "count: -4", "5:20", "from 1 to 4096, found -4"),
    "negative with a unit": ("100 GB/s", "-100 GB/s", "6:23", "-100 GB/s"),
    "zero": ("count: 4", "count: 0", "5:20", "from 1 to 4096, found 0"),
    "zero with a unit": ("100 GB/s", "0 GB/s", "6:23", "above zero"),
    "NaN": ("jitter: 0.0", "jitter: .nan", "9:54", "found .nan"),
    "NaN with a unit": ("100 GB/s", "nan GB/s", "6:23", "finite"),
    "infinite": ("jitter: 0.0", "jitter: .inf", "9:54", "found .inf"),
    "absurdly large": ("count: 4", "count: 1e30", "5:20", "from 1 to 4096"),
    "absurdly fast": ("100 GB/s", "1e99 GB/s", "6:23", "at most 1000 PB/s"),
    "absurdly slow": ("model: fixed, table: block_estimates, jitter: 0.0", "model: fixed, table: {"
                      + TABLE.replace("q_pro:", "q_proj:").replace("1 us", "1000000 s") + "}", "5:3", "simulated time"),
    "more ops than memory has room for": ("tokens: 1", "tokens: 10000000, count: 10", "1:1", "rows for all ops"),
    "more layers than there are": ("layers: 1", "layers: 17", "2:39", "expected 1 to 16"),
    "duplicate key": ("name: mine", "name: mine\nname: yours", "2:1", "name"),
    "bad indentation": ("  memory:", " memory:", "6:2", ""),
    "a tag": ("name: mine", "name: !!python/object/apply:os.system [echo]", "1:7", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_scenario(case: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    old, new, place, message = WRONG[case]
    assert SCENARIO.count(old) == 1
    (tmp_path / "mine.yaml").write_text(SCENARIO.replace(old, new))
    error = fails("check", "mine.yaml")
    assert error.startswith(f"mine.yaml:{place}: ")
    assert message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"name: caf\xe9\n", "mine.yaml:1:10: not UTF-8"),
        (b"[1, 2]\n", "mine.yaml:1:1: expected a mapping"),
        (b"just a text\n", "mine.yaml:1:1: expected a mapping"),
        (b"name: {\n", "mine.yaml:"),
        (b"\0\1\2", "mine.yaml:"),
        (BOMB.encode(), "mine.yaml:"),
        (b"a: &a [*a]\n", "mine.yaml:"),
        (b"[" * 100_000, "mine.yaml:"),
    ],
    ids=["empty", "comment", "latin-1", "list", "text", "cut short", "binary", "alias bomb", "cycle", "deep"],
)
def test_no_scenario_at_all(content: bytes, message: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    before = time.monotonic()
    assert message in fails("check", "mine.yaml")
    assert time.monotonic() - before < 20


def test_no_file(tmp_path: Path, fails: Callable[..., str], process: Sim) -> None:
    assert fails("run", "none.yaml") == error_of(process("run", "none.yaml", status=2)) == "none.yaml: no such file"
    assert "did you mean 'two_tokens_4_engines'?" in fails("run", "two_token_4_engines")
    for command in ("report", "run", "explain"):
        assert fails(command, "x.pftrace") == "x.pftrace: expected a scenario, found a trace; `sim view x.pftrace` opens it"
        assert "`sim.load_log` reads it" in fails(command, "log.parquet")
    assert fails("run", tmp_path) == f"{tmp_path}: expected a YAML file, found a directory"
    (tmp_path / "log.parquet").touch()
    assert "found an event log" in fails("view", "log.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "llama",', "config.json:1:24: broken JSON"),
        ("", "config.json:1:1: broken JSON"),
        ("[]", "config.json: expected a JSON object, found list"),
        ("{}", "config.json: no model_type"),
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "BertForMaskedLM is not a causal language model"),
        ('{"model_type": "t5", "is_encoder_decoder": true}', "encoder-decoder"),
    ],
    ids=["cut short", "empty", "list", "no model type", "encoder", "encoder-decoder"],
)
def test_bad_config(content: str, message: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(content)
    (tmp_path / "mine.yaml").write_text(SCENARIO.replace("llama-3.2-1b", "model"))
    error = fails("run", "mine.yaml")
    assert error.startswith("mine.yaml:2:17: model.config: model/")
    assert message in error
    assert message in fails("capture", "model")


@pytest.mark.slow  # the client of the hub waits between its attempts
def test_no_network(process: Sim, tmp_path: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = process("capture", "nobody/nothing", status=2, env=nowhere)
    assert "not available from the Hugging Face hub" in error_of(done)


MAPPING = """device: d
source: s
date: "2026-01-01"
bandwidth: 1 TB/s
flops: {bfloat16: 1 TFLOP/s}
tables:
  - {file: times.csv, kind: matmul, dtype: bfloat16, unit: us, columns: {rows: m, n: n, k: k, duration: latency}}
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument 'SCENARIO...'"),
        (["runn"], "No such command 'runn' (did you mean 'run'?); commands: new, run, explain"),
        (["rn", "parallel"], "No such command 'rn' (did you mean 'run'?)"),
        (["run", "parallel", "--out", "a.pftrace", "--trace-format", "json"], "expected a name that ends in .json"),
        (["run", "parallel", "--set", "bandwidth=1 GB/s"], "(did you mean hardware.memory.bandwidth or hardware.devices.link"),
        (
            ["run", "parallel", "--set", "mapping.tensor=2"],
            "mapping: unknown key 'tensor' (did you mean mapping.parallel.tensor?)",
        ),
        (["run", "parallel", "--set", "prefix_caching=true"], "(did you mean workload.batching.kv.prefix_cache?)"),
        (["run", "parallel", "--out", "a.html"], "--out: a.html: expected a folder, or a name that ends in .pftrace"),
        (["report", "parallel", "--out", "a.pdf"], "--out: a.pdf: expected a folder, or a name that ends in .html"),
        (["run", "parallel", "--set", "hardware.engine=2"], "hardware: unknown key 'engine' (did you mean 'engines'?)"),
        (["run", "parallel", "--set", "workload.xyzzy=1"], "unknown key 'xyzzy'; valid: sequences"),
        (["run", "zebra"], "no shipped scenario of that name; `sim list scenarios` has them"),
        (["run", "parallel", "--jsn"], "'--json'"),
        (["run", "parallel", "--trace-format", "xml"], "'pftrace', 'pftrace.gz', 'json'"),
        (["run", "parallel", "--set", "seed"], "expected KEY.KEY=VALUE"),
        (["run", "parallel", "--set", "sed=1"], "did you mean 'seed'?"),
        (["run", "parallel", "--set", "seed=one"], "whole number"),
        (["run", "parallel", "parallel"], "two scenarios would write this file"),
        (["list", "modles"], "'models'"),
        (["capture", "llama-3.2-1b", "--layers", "17"], "expected 1 to 16"),
        (["capture", "llama-3.2-1b", "--context", "-1"], "--context"),
        (["completion", "tcsh"], "'bash', 'zsh', 'fish'"),
        (["completion"], "Choose from: bash, zsh, fish"),
        (["run", "parallel", "--save-log", ""], "--save-log: .: expected a file, found a folder"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(*arguments)


def test_without_a_command_it_shows_help(sim: Sim) -> None:
    assert sim(status=2).stderr.startswith("Usage: sim [OPTIONS] COMMAND")


def test_all_scenarios_are_checked_before_any_runs(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "mine.yaml").write_text(SCENARIO.replace("fifo", "fifi"))
    assert fails("run", "parallel", "mine.yaml").startswith("mine.yaml:6:42")
    assert not (tmp_path / "traces").exists()


def test_endings_of_files_do_not_make_them_near(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    assert fails("run", "nope.yaml") == "nope.yaml: no such file"
    (tmp_path / "chip.yaml").write_text(SCENARIO)
    assert fails("run", "chip.yml") == "chip.yml: no such file (did you mean 'chip.yaml'?)"
    assert fails("sweep", "chip.yaml") == "chip.yaml: expected a study, found a scenario; --over KEY=VALUES gives it axes"


def test_no_permission_to_write(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    assert "file is a file; expected a folder" in fails("run", "parallel", "--out", "file")
    assert (
        fails("report", "parallel", "--out", "file") == "--out: file is a file; expected a folder, or a name that ends in .html"
    )
    assert fails("run", "parallel", "--out", "file/below") == "file/below/parallel.pftrace: file is no folder"
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.geteuid() != 0:  # root may write anywhere
        assert fails("run", "parallel", "--out", closed, status=1) == f"{closed}/parallel.pftrace: Permission denied"
    assert not list(closed.iterdir())


def test_a_trace_that_cannot_be_replaced(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "traces" / "parallel.pftrace").mkdir(parents=True)
    assert fails("run", "parallel", status=1) == "traces/parallel.pftrace: Is a directory"
    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["parallel.pftrace"]


@pytest.mark.parametrize(
    "arguments",
    [["run", "mine.yaml", "--save-log", "mine.yaml"], ["run", "mine.yaml", "-o", "mine.json"],
     ["report", "mine.yaml", "-o", "mine.html"],
     ["import-kernels", "mine.yaml", "-o", "mine.yaml"], ["import-kernels", "mine.yaml", "-o", "mine.html"]],
)  # fmt: skip
def test_an_output_is_never_an_input(arguments: list[str], tmp_path: Path, fails: Callable[..., str]) -> None:
    """Nor a link to one: both kept its content as it was, before there was anything to write."""
    text = SCENARIO if arguments[0] != "import-kernels" else MAPPING
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "times.csv").write_text("m,n,k,latency\n" + "".join(f"{m},64,64,{m}.5\n" for m in range(1, 20)))
    for name in ("mine.json", "mine.html"):
        (tmp_path / name).hardlink_to(tmp_path / "mine.yaml")
    assert "this file is read by the same command; write to another one" in fails(*arguments)
    assert (tmp_path / "mine.yaml").read_text() == text


def test_full_disk(tmp_path: Path, process: Sim) -> None:
    old = tmp_path / "traces" / "parallel.pftrace"
    old.parent.mkdir()
    old.write_text("what was there before")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = process("run", "parallel", status=1, preexec_fn=limit)
    assert error_of(done) == "traces/parallel.pftrace: File too large"
    assert [path.name for path in old.parent.iterdir()] == ["parallel.pftrace"]
    assert old.read_text() == "what was there before"


@pytest.mark.parametrize(("command", "wanted"), [("explain", "an explanation"), ("report", "a page")])
def test_missing_ops_are_refused_before_the_run(command: str, wanted: str, fails: Callable[..., str]) -> None:
    """A million tokens of a whole model would take minutes."""
    changes = ("--set", "workload.sequences.0.tokens=1000000", "--set", "record=steps")
    began = time.monotonic()
    assert f"record: expected all for {wanted}, found steps; --set record=all" in fails(
        command, "llama_1b_context_256", *changes
    )
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("arguments", [["run", "parallel", "--no-trace"], ["schema"], ["--help"]])
def test_full_disk_behind_stdout(arguments: list[str], process: Sim) -> None:
    with Path("/dev/full").open("w") as full:
        assert process(*arguments, status=1, stdout=full).stderr == "error: No space left on device\n"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc, to see how far a process has come")
@pytest.mark.parametrize("when", ["starting", "simulating", "writing"])
def test_interrupted(when: str, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    # To write 225 thousand tasks compressed takes a second or so, to simulate 900 thousand longer than the wait below.
    changes = {"writing": ["workload.sequences.0.tokens=20", "--trace-format", "pftrace.gz"]}.get(
        when, ["workload.sequences.0.tokens=80"]
    )
    process = subprocess.Popen(
        [SIM, "run", "four_sequences_fifo", "--set", *changes],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        reached = {
            "starting": lambda: "numpy" in Path(f"/proc/{process.pid}/maps").read_text(),  # what the command needs is loading
            "writing": lambda: list(traces.glob(".*.part")),
        }
        deadline = time.monotonic() + 100
        while when in reached and not reached[when]():
            assert process.poll() is None, f"it ended before it was {when}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        if when == "simulating":
            time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert (out, error) == ("", "interrupted\n")
    assert not traces.exists() or not list(traces.iterdir())


def test_an_interrupt_waits_for_imports(tmp_path: Path, sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python loses one that comes while it locks a module, and turns one in the body of a class into another error."""
    (tmp_path / "late.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ncommand = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "late", ("late", ""))
    assert sim("late", status=130).stderr == "interrupted\n"
    assert sys.modules.pop("late").command is None, "it was imported to its end"


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"'{SIM}' schema | true"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
