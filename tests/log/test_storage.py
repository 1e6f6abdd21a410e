"""Logs as Parquet: what is read is what was written, to the bit, and the scenario comes with it."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sim
from models.config import CONFIGS
from sim.base.errors import InputError
from sim.cli import cli
from sim.executors import Executor
from sim.executors.compiled import batches, driver
from sim.log import parquet as storage
from sim.machine.presets import PRESETS
from sim.runs.run import read, run
from sim.runs.saved import load, run_to_file
from sim.scenario.shipped import scenarios
from tests.executors import assert_same

parquet = pytest.importorskip("pyarrow.parquet")

SHIPPED = scenarios()


@pytest.mark.parametrize("name", ["two_tokens_4_engines", "four_sequences_processor_sharing", "lockstep_fifo"])
def test_a_log_survives(name: str, tmp_path: Path):
    scenario = read(SHIPPED[name])
    result = run(scenario)
    sim.save_log(result.log, scenario, tmp_path / "log.parquet")
    log, again = sim.load_log(tmp_path / "log.parquet")
    assert_same(log, result.log)
    assert again == scenario
    assert log.name(3) == result.log.name(3)
    assert (log.bytes_moved() == result.log.bytes_moved()).all()


#: Changes of a scenario that name files beside its own.
WITH_PATHS = {
    "a device profile for costs": ("cost={model: profiled, profile: profile.yaml}",),
    "a device profile for hardware": ("hardware={from_profile: profile.yaml}",),
    "a preset": ("hardware={preset: preset.yaml, memory: {capacity: null}}",),
    "a trace of requests": ("workload={trace: {file: requests.csv}, batching: continuous}",),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scenario with the files that its paths name, in a folder of its own."""
    made = tmp_path / "scenarios"
    made.mkdir()
    (made / "one.yaml").write_text(
        "model: {config: qwen2.5-0.5b, layers: 1, dtype: bfloat16}\nworkload: {sequences: [{context: 9, tokens: 2}]}\n"
        "mapping: {softmax: online, heads: fused, kv: operands, execution: blocking}\n"
    )
    shutil.copy(SHIPPED["xeon_qwen_0.5b"].parent / "profiles" / "xeon_1_thread.yaml", made / "profile.yaml")
    shutil.copy(PRESETS.get("a100-80g-sxm"), made / "preset.yaml")
    (made / "requests.csv").write_text("arrival,prompt,tokens\n0,5,3\n1,4,2\n")
    return made


@pytest.mark.parametrize("changes", WITH_PATHS.values(), ids=WITH_PATHS.keys())
def test_a_log_loads_wherever_it_is(changes: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that start in the working directory, the log moved, and another working directory."""
    monkeypatch.chdir(folder.parent)
    scenario = read("scenarios/one.yaml", list(changes))
    result = run(scenario)
    sim.save_log(result.log, scenario, "log.parquet")
    (folder / "deeper").mkdir()
    shutil.move("log.parquet", folder / "deeper" / "moved.parquet")
    monkeypatch.chdir(folder / "deeper")
    log, again = load("moved.parquet")
    assert_same(log, result.log)
    assert run(again).makespan == result.makespan, "its paths are still those of the files"
    for path in folder.glob("*.*"):
        path.unlink()
    log, again = load("moved.parquet")
    assert_same(log, result.log)
    assert (log.bytes_moved() == result.log.bytes_moved()).all()


def test_a_log_of_a_routing_that_is_a_file_loads_wherever_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"sequence": 0, "position": p, "layer": 0, "experts": [p % 8, 1 + p % 7]}) for p in range(9, 11)]
    (folder / "routes.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(folder.parent)
    changes = ["model.config=mixtral-8x7b", "model.dtype=null", "workload.routing={file: routes.jsonl}"]
    scenario = read("scenarios/one.yaml", changes)
    result = run(scenario)
    sim.save_log(result.log, scenario, "log.parquet")
    monkeypatch.chdir(folder)
    log, _ = load("../log.parquet")
    assert_same(log, result.log)
    assert (log.bytes_moved() == result.log.bytes_moved()).all()


def test_a_log_of_a_model_by_its_path_loads_wherever_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(CONFIGS / "gpt2.json", folder / "gpt2.json")
    monkeypatch.chdir(folder)
    scenario = read("one.yaml", ["model.config=./gpt2.json", "model.dtype=null"])
    result = run(scenario)
    sim.save_log(result.log, scenario, "log.parquet")
    monkeypatch.chdir(folder.parent)
    assert_same(load("scenarios/log.parquet")[0], result.log)


SEVERAL = "workload.sequences=[{context: 64, tokens: 5}, {context: 9, tokens: 4, arrival: 1 ms}, {context: 30, tokens: 6}]"
CLOSED = "workload.sequences=[{context: 64, tokens: 5}, {context: 9, tokens: 4}, {context: 30, tokens: 6}]"
BLOCK = ("model.layers=1", "model.scope=block")
RUNS = {
    "one sequence": ("workload.sequences=[{context: 256, tokens: 13}]",),
    "several sequences": (SEVERAL, *BLOCK),
    "fair shares": (SEVERAL, *BLOCK, "hardware.memory.arbiter=processor_sharing"),
    "two channels": (SEVERAL, *BLOCK, "hardware.memory.channels={count: 2}"),
    "known tokens": (SEVERAL, *BLOCK, "workload.dependency=known"),
    "a batch": (SEVERAL, *BLOCK, "workload.batching={policy: continuous, max_batch: 2}"),
    "loops that serve one at a time": (CLOSED, *BLOCK, "workload.batching=independent", "workload.concurrency=2"),
}


@pytest.mark.parametrize("executor", ["compiled", "simpy"])
@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS.keys())
def test_a_run_that_is_written_as_it_comes_is_the_same_file(
    overrides: tuple[str, ...], executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (driver, batches):
        monkeypatch.setattr(module, "PART", 400)
    monkeypatch.setattr(storage, "ROWS", 1)  # a group a step, so that groups do not depend on how the steps came
    scenario = read(SHIPPED["llama_1b_context_256"], list(overrides))
    result = run(scenario, executor=executor)
    sim.save_log(result.log, scenario, tmp_path / "whole.parquet")
    makespan, report = run_to_file(scenario, tmp_path / "parts.parquet", executor=executor)
    assert makespan == result.makespan
    assert report == result.timing.executed
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    if scenario.workload.batching is None:
        assert whole.read_bytes() == parts.read_bytes()
    else:  # a part knows only the names of the tasks in its own steps: dictionaries differ, and with them bytes
        rows = [parquet.read_table(path) for path in (whole, parts)]
        assert rows[0]["name"].to_pylist() == rows[1]["name"].to_pylist()
        assert rows[0].drop(["name"]).equals(rows[1].drop(["name"]))
        metadata = [parquet.read_metadata(path).metadata for path in (whole, parts)]
        assert metadata[0] == metadata[1]
    assert_same(load(tmp_path / "parts.parquet")[0], result.log)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.parquet", "whole.parquet"]


def test_a_run_that_is_written_as_it_comes_takes_no_more_memory_when_it_is_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module, name in ((driver, "PART"), (batches, "PART"), (storage, "ROWS")):
        monkeypatch.setattr(module, name, 2000)

    def peak(tokens: int) -> int:
        sequences = f"workload.sequences=[{{context: 64, tokens: {tokens}}}, {{context: 9, tokens: {tokens}}}]"
        scenario = read(
            SHIPPED["llama_1b_context_256"],
            [*BLOCK, sequences, "hardware.memory.arbiter=processor_sharing", "workload.batching=continuous"],
        )
        tracemalloc.start()
        try:
            run_to_file(scenario, tmp_path / "log.parquet", executor="compiled")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is loaded once
    tasks = 2 * 90 * 185
    few, many = peak(30), peak(120)
    assert many - few < 10 * tasks, "in memory they would take 66 bytes a task, and services"


@pytest.mark.parametrize("name", ["one sequence", "a batch"])
def test_parts_are_written_as_the_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "ROWS", 1)
    log = run(read(SHIPPED["llama_1b_context_256"], [*RUNS[name], *BLOCK])).log
    steps = len(log.steps)
    assert steps > 5
    for file, cuts in (("whole", [0, steps]), ("parts", [0, 1, 4, steps])):
        with storage.writing(tmp_path / f"{file}.parquet", {}, 0) as writer:
            for begin, end in pairwise(cuts):
                writer.add(log.part(begin, end))
    whole, parts = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "parts"))
    assert len(whole) == len(log.tasks)
    assert whole.to_pylist() == parts.to_pylist()
    assert whole.schema.metadata == parts.schema.metadata


def test_columns_and_metadata_are_as_documented(tmp_path: Path):
    scenario = read(SHIPPED["two_tokens_4_engines"])
    result = run(scenario)
    sim.save_log(result.log, scenario, tmp_path / "log.parquet")
    table = parquet.read_table(tmp_path / "log.parquet")
    assert tuple(table.column_names) == storage.COLUMNS
    metadata = parquet.read_metadata(tmp_path / "log.parquet").metadata
    assert metadata[b"sim.version"].decode() == sim.__version__
    assert json.loads(metadata[b"sim.scenario"])["name"] == scenario.name
    assert table["name"].to_pylist() == [result.log.name(row) for row in range(len(table))]
    work = [sum(service["work"] for service in services) for services in table["services"].to_pylist()]
    np.testing.assert_array_equal(work, result.log.tasks.work)


def test_a_file_alone_gives_bytes_and_bandwidth_by_layer(tmp_path: Path):
    """By the columns of the file, as the query in the docs does; against the graphs of the run."""
    scenario = read(SHIPPED["batch_8"], ["model.layers=3"])
    log = run(scenario).log
    sim.save_log(log, scenario, tmp_path / "log.parquet")
    rows = parquet.read_table(tmp_path / "log.parquet").to_pylist()
    bandwidth = int(parquet.read_metadata(tmp_path / "log.parquet").metadata[b"sim.bandwidth"])
    moved, served = Counter(), Counter()
    for row in rows:
        moved[row["layer"]] += row["bytes"]
        served[row["layer"]] += sum(service["work"] for service in row["services"]) * bandwidth / 1e12
    (graph,) = log.graphs
    costs = graph.bytes_moved(graph.ops.costs_of(log.lanes(np.arange(len(log.steps))))).sum(axis=1)  # [task]
    assert moved == {layer: int(costs[graph.layer == layer].sum()) for layer in (-1, 0, 1, 2)}
    assert served == {layer: pytest.approx(total, rel=1e-4) for layer, total in moved.items()}
    assert [(row["kind"], row["head"]) for row in rows[: len(graph)]] == [
        (graph.kind_of(task), graph.head[task]) for task in range(len(graph))
    ]


def test_other_files_are_refused_in_one_line(tmp_path: Path):
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(InputError, match=r"text\.parquet: "):
        load(tmp_path / "text.parquet")


@pytest.mark.parametrize("lacking", ["sim.arrival", "sim.batches", "services"])
def test_logs_of_other_versions_are_refused_in_one_line(tmp_path: Path, lacking: str):
    scenario = read(SHIPPED["two_tokens_4_engines"])
    path = tmp_path / "log.parquet"
    run_to_file(scenario, path)
    with parquet.ParquetFile(path) as file:
        table, metadata = file.read(), {k: v for k, v in file.metadata.metadata.items() if k.decode() != lacking}
    table = table.drop_columns([lacking]) if lacking in table.column_names else table
    parquet.write_table(table.replace_schema_metadata(metadata | {b"sim.version": b"0.1"}), path)
    with pytest.raises(InputError, match=rf"log\.parquet: expected a log as .* found one of 0\.1 without {lacking}$"):
        load(path)


@pytest.mark.parametrize("name", ["sim.scenario", "sim.batches", "sim.arrival", "sim.engines", "sim.bandwidth"])
@pytest.mark.parametrize(
    "content", ["", "{", "null", "[1]", '"x"', "7.5", '{"a": 1}', '{"shapes": [[1]], "graph": [0], "members": 3}']
)
def test_logs_with_damaged_metadata_are_refused_in_one_line(tmp_path: Path, kept: Path, name: str, content: str):
    with parquet.ParquetFile(kept) as file:
        table, metadata = file.read(), dict(file.metadata.metadata)
    parquet.write_table(table.replace_schema_metadata(metadata | {name.encode(): content.encode()}), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"log\.parquet: ") as caught:
        load(tmp_path / "log.parquet")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logs") / "whole.parquet"
    run_to_file(read(SHIPPED["batching_static"], ["model.layers=1", "model.scope=block"]), path)
    return path


@pytest.mark.parametrize("option", [["--json"], ["--repeats", "3"]])
def test_a_log_only_goes_with_nothing_that_needs_the_analysis(tmp_path: Path, option: list[str]):
    options = ["run", "two_tokens_4_engines", "--save-log", str(tmp_path / "log.parquet"), "--log-only", *option]
    with pytest.raises(InputError, match=f"--log-only: expected no {option[0]}, which needs the analysis"):
        CliRunner().invoke(cli, options, catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_reported_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^--save-log: logs: no such folder$"):
        CliRunner().invoke(cli, ["run", "two_tokens_4_engines", "--save-log", "logs/log.parquet"], catch_exceptions=False)
    assert not list(tmp_path.iterdir())  # and no trace was written


def test_the_command_line_writes_logs(tmp_path: Path):
    target = tmp_path / "log.parquet"
    options = ["run", "two_tokens_4_engines", "--save-log", str(target)]
    assert CliRunner().invoke(cli, [*options, "--no-trace"], catch_exceptions=False).exit_code == 0
    before = target.read_bytes()
    told = CliRunner().invoke(cli, [*options, "--log-only"], catch_exceptions=False).output
    assert "8.127 ms" in told
    assert target.read_bytes() == before
