"""The commands, as a user types them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

import sim as library
from sim.base.errors import InputError
from sim.cli import COMMANDS
from sim.cli import run as sim_run
from sim.machine.presets import PRESETS, find
from sim.scenario import parse
from sim.scenario.shipped import SCENARIOS, scenarios
from sim.scenario.starter import USES, starter
from tests.cli.conftest import SIM, Sim

SCHEMA = Path(library.__file__).parent / "schema.json"


def test_run_by_name_by_path_and_anywhere(sim: Sim, process: Sim, tmp_path: Path) -> None:
    shutil.copy(SCENARIOS / "parallel.yaml", tmp_path / "copy.yaml")
    by_name = process("run", "parallel", "--no-trace").stdout
    assert by_name == sim("run", SCENARIOS / "parallel.yaml", "--no-trace").stdout
    assert by_name == sim("run", "copy.yaml", "--no-trace").stdout
    assert "makespan  7.067 ms, 21 tasks\ntokens    1 in 7.067 ms\n" in by_name
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["copy.yaml"]


@pytest.mark.parametrize("kind", ["pftrace", "pftrace.gz", "json"])
def test_run_writes_a_trace_and_says_where(kind: str, sim: Sim, tmp_path: Path) -> None:
    out = sim("run", "parallel", "--trace-format", kind, "--out", "some/folder").stdout
    path = tmp_path / "some" / "folder" / f"parallel.{kind}"
    assert f"trace  some/folder/parallel.{kind}\n" in out
    assert f"open it with: sim view some/folder/parallel.{kind}\n" in out
    assert path.stat().st_size > 500
    assert list(path.parent.iterdir()) == [path]


def test_a_large_trace_says_how_to_make_it_smaller(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pftrace.gz" not in sim("run", "parallel").stdout
    monkeypatch.setattr(sim_run, "LARGE", 500)
    assert "kB; --trace-format pftrace.gz is smaller" in sim("run", "parallel").stdout
    assert "is smaller" not in sim("run", "parallel", "--trace-format", "pftrace.gz").stdout


def test_the_same_twice_is_the_same(process: Sim, sim: Sim, tmp_path: Path) -> None:
    jitter = ["--set", "cost.jitter=0.05", "--set", "seed=7"]
    for folder in ("a", "b"):
        process("run", "multi_head", *jitter, "--out", folder)
    assert (tmp_path / "a" / "multi_head.pftrace").read_bytes() == (tmp_path / "b" / "multi_head.pftrace").read_bytes()
    sim("run", "multi_head", "--set", "cost.jitter=0.05", "--set", "seed=8", "--out", "c")
    assert (tmp_path / "a" / "multi_head.pftrace").read_bytes() != (tmp_path / "c" / "multi_head.pftrace").read_bytes()


def test_json_is_one_object_per_scenario_and_line(sim: Sim) -> None:
    lines = sim("run", "parallel", "multi_head", "--json", "--no-trace").stdout.splitlines()
    assert [json.loads(line)["scenario"] for line in lines] == ["parallel", "multi-head"]
    data = json.loads(lines[0])
    required = {
        "scenario", "seed", "makespan_ps", "tasks", "tokens", "engines", "memory", "bounds", "by_kind", "checks", "trace",
    }  # fmt: skip
    assert required <= set(data)
    assert {"sequence", "token", "start_ps", "end_ps"} <= set(data["tokens"][0])
    assert {"name", "busy_ps", "utilization"} <= set(data["engines"][0])
    assert {"bytes_read", "bytes_written", "busy_ps", "utilization"} <= set(data["memory"])
    assert {"critical_path_ps", "compute_ps", "memory_ps", "lower_ps", "gap"} <= set(data["bounds"])
    assert {"kind", "tasks", "compute_ps", "bytes"} <= set(data["by_kind"][0])
    assert data["trace"] is None
    assert "NaN" not in lines[0]
    assert "Infinity" not in lines[0]


def test_json_equals_the_values_in_python(sim: Sim) -> None:
    printed = json.loads(sim("run", "parallel", "--json", "--out", "t").stdout)
    assert printed.pop("trace") == "t/parallel.pftrace"
    printed.pop("timing")
    result = library.run(scenarios()["parallel"])
    expected = json.loads(json.dumps(library.summary(result, timing=False)))
    expected.pop("trace")
    assert printed == expected


def test_words_of_the_user_are_no_markup(tmp_path: Path, sim: Sim) -> None:
    (tmp_path / "n[bold] :x:.yaml").write_text("model: {graph: [{name: a, kind: 'k[/b] :x:', flops: 1000}]}\n")
    out = sim("run", "n[bold] :x:.yaml", "--out", "o[/b]").stdout
    assert out.startswith("n[bold] :x:")
    assert "\nk[/b] :x: " in out
    assert "trace  o[/b]/n[bold] :x:.pftrace\n" in out
    assert (tmp_path / "o[/b]" / "n[bold] :x:.pftrace").is_file()
    sim("report", "n[bold] :x:.yaml", "--no-what-if", "--out", "p[/b].html")
    assert "\nk[/b] :x: " in sim("explain", "n[bold] :x:.yaml", "--no-what-if").stdout


def test_large_rates_are_written_out(sim: Sim) -> None:
    words = sim("run", "parallel", "--no-trace", "--set", "workload.sequences.0.count=2", "--set", "cost=roofline").stdout
    assert re.search(r"[1-9][\d,]*\.\d tokens/s, \d{1,3},\d{3} requests/s", words), words


def test_nothing_to_show_is_reported(sim: Sim) -> None:
    late = ("--set", "trace={window: {start: 9 ms}}")  # the run ends at 7.067 ms
    assert "it is empty: trace.window starts at 9.000 ms" in " ".join(sim("run", "parallel", *late).stdout.split())
    assert "it is empty" not in sim("run", "parallel", "--set", "trace={window: {start: 7 ms}}").stdout
    several = ("--set", "workload.sequences.0.count=3")
    assert "p50" in sim("run", "parallel", "--no-trace", *several).stdout
    none = sim("run", "parallel", "--no-trace", *several, "--set", "report.warmup_requests=3").stdout
    assert "0 of 3, the others are warm-up" in none
    assert "p50" not in none, "no head of a table without rows"


def test_set_changes_values_in_order(sim: Sim) -> None:
    def makespan(*changes: str, scenario: str = "multi_head") -> int:
        arguments = [word for change in changes for word in ("--set", change)]
        printed: int = json.loads(sim("run", scenario, "--json", "--no-trace", *arguments).stdout)["makespan_ps"]
        return printed

    assert makespan() == makespan("scheduler=serial", "scheduler=earliest")
    assert makespan("scheduler=serial") == 12_200_000_000
    assert makespan("hardware.engines.count=1") == 12_200_000_000
    slow = makespan("hardware.memory.bandwidth=200 GB/s", "hardware.memory.bandwidth=50 GB/s", scenario="llama_1b_context_256")
    assert slow > 49_000_000_000  # 2.48 GB at 50 GB/s


def test_it_is_quiet_in_a_pipe(process: Sim) -> None:
    for arguments in (["run", "parallel"], ["check", "parallel"]):
        done = process(*arguments)
        assert done.stderr == "", "no spinner"
        assert "\x1b" not in done.stdout, "no escape codes"
        assert "\r" not in done.stdout


def test_on_a_terminal_it_shows_its_progress() -> None:
    ours, theirs = os.openpty()
    options = ["--no-trace", "--executor", "simpy", "--set", "workload.sequences.0.tokens=20"]
    with subprocess.Popen([SIM, "run", "four_sequences_fifo", *options], stderr=theirs, stdout=subprocess.PIPE) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while part := os.read(ours, 4096):
                said += part
        assert process.stdout is not None
        assert b"\x1b" not in process.stdout.read()
    os.close(ours)
    line = r"simulating four-sequences-fifo: \d+ of 80 tokens, \d+ s left, \d+/s, \d+\.\d+ m?s"
    assert re.search(line, said.decode()), said
    assert "analyzing four-sequences-fifo: 80 tokens" in said.decode()


def test_help(sim: Sim) -> None:
    out = sim("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", out, re.MULTILINE)
        assert sim(name, "--help").stdout.startswith(f"Usage: sim {name} ")
    assert sim("--version").stdout == f"sim, version {library.__version__}\n"


@pytest.mark.parametrize("use", sorted(USES))
def test_new_writes_a_scenario_that_is_right(sim: Sim, tmp_path: Path, use: str) -> None:
    told = sim("new", "--model", "qwen3-0.6b", "--device", "rtx-4090", "--use", use).stdout
    assert told.startswith("qwen3-0.6b-rtx-4090.yaml: ")
    text = (tmp_path / "qwen3-0.6b-rtx-4090.yaml").read_text()
    schema = re.match(r"# yaml-language-server: \$schema=(.*)\n", text)[1]
    assert json.loads(Path(schema).read_text()) == json.loads(sim("schema").stdout)
    assert "ok: qwen3-0.6b" in sim("check", "qwen3-0.6b-rtx-4090.yaml").stdout
    jsonschema.validate(YAML(typ="safe").load(text), json.loads(Path(schema).read_text()))


def test_new_keeps_a_file_that_exists(sim: Sim, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: mine\n")
    failed = sim("new", "mine.yaml", "--model", "gpt2", "--device", "l4", "--use", "one", status=2)
    assert failed.stderr == "error: mine.yaml: expected a new file, found one that exists\n"
    assert (tmp_path / "mine.yaml").read_text() == "model: mine\n"


def test_new_writes_nothing_for_a_model_that_cannot_run(sim: Sim, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({"model_type": "bert", "is_decoder": False}))
    failed = sim("new", "mine.yaml", "--model", "./encoder", "--device", "l4", "--use", "one", status=2)
    (tmp_path / "other.yaml").write_text("model: {config: ./encoder}\n")
    checked = sim("check", "other.yaml", status=2).stderr
    assert failed.stderr == checked.replace("other.yaml:1:17: model.config", "--model")
    assert "encoder-only" in failed.stderr
    assert not (tmp_path / "mine.yaml").exists()


def test_new_asks_a_person_and_nobody_else(process: Sim, tmp_path: Path) -> None:
    failed = process("new", "--model", "gpt2", "--use", "one", stdin=subprocess.DEVNULL, status=2)
    assert failed.stderr == "error: expected --device, because there is no terminal to ask\n"
    person, terminal = pty.openpty()
    os.write(person, b"gpt2\nl4\nserve\n")
    process("new", stdin=terminal)
    for end in (person, terminal):
        os.close(end)
    assert "gpt2 on l4, requests that arrive over time." in (tmp_path / "gpt2-l4.yaml").read_text()


@pytest.mark.parametrize("device", PRESETS.names())
def test_every_device_has_a_first_scenario(device: str) -> None:
    """Each preset as it is, or an error that names figures which are not published."""
    text = starter("llama-3.2-1b", device, "batch", title=find(device).title, schema="schema.json")
    if find(device).unpublished:
        with pytest.raises(InputError, match="not published"):
            parse(text)
    else:
        assert parse(text).hardware.preset == device


def test_check_shows_where_each_value_is_from(sim: Sim, tmp_path: Path) -> None:
    lines = ["model: {config: llama-3.2-1b}", "hardware:", "  preset: h100-sxm", "  memory: {arbiter: fifo}"]
    lines += ["  tiers: [{name: ssd, link: {preset: nvme-pcie-4}}]"]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    told = sim("check", "mine.yaml", "--set", "hardware.memory.latency=200 ns").stdout
    rows = [re.split(r"  +", line.strip()) for line in told.splitlines() if re.match(r"  \w[\w.\[\]]*  ", line)]
    found = {key: rest for key, *rest in rows}
    assert found["model.config"] == ["llama-3.2-1b", "line 1"]
    assert found["hardware.preset"] == ["h100-sxm", "line 3"]
    assert found["hardware.memory.arbiter"] == ["fifo", "line 4"]
    assert found["hardware.memory.latency"] == ["200 ns", "--set"]
    assert found["hardware.memory.bandwidth"] == [find("h100-sxm").bandwidth.text, "preset h100-sxm"]
    assert found["hardware.host.link.bandwidth"] == ["54 GB/s", "preset h100-sxm"]
    assert found["hardware.tiers[0].link.bandwidth"] == ["7 GB/s", "preset nvme-pcie-4"]
    assert found["mapping.mla"] == ["latent", "default"]
    assert "mapping.mla" not in sim("check", "mine.yaml", "--not-resolved").stdout


def test_check(sim: Sim) -> None:
    names = ["parallel", "batch_64", *list(scenarios())[::8]]  # the stored reports are of all
    told = sim("check", *names).stdout.splitlines()
    lines = [line for line in told if not line.startswith("  ")]
    assert len(lines) == len(names)
    assert f"{scenarios()['parallel']}: ok: llama-3.2-1b, 21 ops, 21 tasks per step, 21 in all" in lines
    assert any(line.endswith("212 tasks per step, about 8,900 to 54,000 in all") for line in lines)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("models", ["llama-3.2-1b"]),
        ("hardware", ["generic-npu"]),
        ("arbiters", ["fifo", "processor_sharing"]),
        ("schedulers", ["serial", "earliest", "sticky", "critical_path"]),
        ("costs", ["fixed", "roofline"]),
        ("scenarios", list(scenarios())),
    ],
)
def test_list(what: str, names: list[str], sim: Sim) -> None:
    listed = [line.split()[0] for line in sim("list", what).stdout.splitlines()]
    assert set(names) <= set(listed)
    assert len(set(listed)) == len(listed)


def test_capture(sim: Sim) -> None:
    out = sim("capture", "llama-3.2-1b", "--context", "256").stdout
    assert "1,235,814,400 parameters" in out
    ops = [
        json.loads(line)
        for line in sim("capture", "llama-3.2-1b", "--layers", "1", "--scope", "block", "--json").stdout.splitlines()
    ]
    assert len(ops) == 21
    assert ops[0]["kind"] == "kv_load"
    assert ops[0]["kv_read"] == 2 * 256 * 8 * 64 * 2  # key and value, context, KV heads, head dim, bytes of bfloat16


def test_schema_is_stored_and_current(sim: Sim) -> None:
    out = sim("schema").stdout
    assert out == SCHEMA.read_text(), "run `make schema` and commit sim/schema.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


def test_shipped_scenarios_point_their_editor_at_the_schema() -> None:
    for path in scenarios().values():
        link = path.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / link).resolve() == SCHEMA.resolve(), path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, sim: Sim) -> None:
    script = sim("completion", shell).stdout
    assert "_SIM_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [("sim ch", "plain,check"), ("sim run two_tokens_8", "plain,two_tokens_8_engines"), ("sim list sched", "plain,schedulers")],
)
def test_completion(words: str, offered: str, sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    last = str(len(words.split()) - 1)
    for name, value in (("_SIM_COMPLETE", "bash_complete"), ("COMP_WORDS", words), ("COMP_CWORD", last)):
        monkeypatch.setenv(name, value)
    assert sim().stdout.splitlines() == [offered]


def test_python_m_sim(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(SIM).with_name("python"), "-m", "sim", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"sim, version {library.__version__}\n"


def test_no_table_ends_in_blanks(sim: Sim) -> None:
    for arguments in ("explain lockstep_fifo", "compare lockstep_fifo lockstep_processor_sharing", "list arbiters"):
        lines = sim(*arguments.split()).stdout.splitlines()
        assert len(lines) > 5
        assert not [line for line in lines if line != line.rstrip()]
