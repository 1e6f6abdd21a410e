"""Logs as Parquet: what is read is what was written, to the bit, and the scenario comes with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sim
from sim import storage
from sim.cli import cli
from sim.errors import InputError
from sim.replay import driver
from sim.runner import read, run
from sim.shipped import scenarios
from tests.replay.test_replay import assert_same

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


def test_a_run_that_is_written_as_it_comes_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver, "LANES", 5)
    monkeypatch.setattr(storage, "ROWS", 1)  # a group a step, so that groups do not depend on how the steps came
    scenario = read(SHIPPED["llama_1b_context_256"], ["workload.sequences=[{context: 256, tokens: 13}]"])
    result = run(scenario)
    sim.save_log(result.log, scenario, tmp_path / "whole.parquet")
    makespan, report = storage.run_to_file(scenario, tmp_path / "parts.parquet")
    assert makespan == result.makespan
    assert (report.replayed, report.tapes) == (13, 1)
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "parts.parquet").read_bytes()
    assert_same(storage.load(tmp_path / "parts.parquet")[0], result.log)


def test_columns_and_metadata_are_as_documented(tmp_path: Path):
    scenario = read(SHIPPED["two_tokens_4_engines"])
    result = run(scenario)
    sim.save_log(result.log, scenario, tmp_path / "log.parquet")
    table = parquet.read_table(tmp_path / "log.parquet")
    assert tuple(table.column_names) == storage.COLUMNS
    metadata = table.schema.metadata
    assert metadata[b"sim.version"].decode() == sim.__version__
    assert json.loads(metadata[b"sim.scenario"])["name"] == scenario.name
    assert table["name"].to_pylist() == [result.log.name(row) for row in range(len(table))]
    work = [sum(grant["work"] for grant in grants) for grants in table["grants"].to_pylist()]
    np.testing.assert_array_equal(work, result.log.tasks.work)


def test_other_files_are_refused_in_one_line(tmp_path: Path):
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(InputError, match=r"text\.parquet: "):
        storage.load(tmp_path / "text.parquet")


def test_the_command_line_writes_logs(tmp_path: Path):
    target = tmp_path / "log.parquet"
    options = ["run", "two_tokens_4_engines", "--save-log", str(target)]
    assert CliRunner().invoke(cli, [*options, "--no-trace"], catch_exceptions=False).exit_code == 0
    before = target.read_bytes()
    told = CliRunner().invoke(cli, [*options, "--log-only"], catch_exceptions=False).output
    assert "8.127 ms" in told
    assert target.read_bytes() == before
