"""Every shipped scenario still has its stored numbers, to the picosecond, whichever executor runs it."""

from __future__ import annotations

import gzip
from dataclasses import fields, replace
from pathlib import Path

import pytest

from sim.executors import simulate
from sim.runs.plan import plan
from sim.runs.run import read
from sim.scenario.shipped import scenarios
from tests.executors import assert_same
from tests.reports import COLUMNS, FOLDER, SAMPLE, differences, digest, numbers, run, stored, write_sample


@pytest.mark.parametrize("name", scenarios())
def test_numbers(name: str) -> None:
    """The stored numbers are those of today."""
    assert (FOLDER / f"{name}.json").exists(), "no stored numbers: run `make reports` and commit them"
    found = list(differences(stored(name), numbers(run(name))))
    assert not found, "\n".join([f"{name} changed; if it should, run `make reports`:", *found])


def test_a_difference_names_the_number_with_both_values() -> None:
    before: dict[str, int | None] = {"makespan_ps": 100, "tasks": 7, "bounds.upper_ps": None, "gone": 1}
    now = {"makespan_ps": 101, "tasks": 7, "bounds.upper_ps": 5, "come": 2}
    assert list(differences(before, now)) == [
        "makespan_ps: 100 stored, 101 now (+0.01)",
        "bounds.upper_ps: None stored, 5 now",
        "gone: 1 stored, None now",
        "come: None stored, 2 now",
    ]
    assert not list(differences(before, before))


@pytest.mark.parametrize(("table", "column"), [(table, column) for table, columns in COLUMNS.items() for column in columns])
def test_the_hash_changes_with_each_column(table: str, column: str) -> None:
    log = run("batch_8").log
    changed = getattr(getattr(log, table), column).copy()
    changed[-1] += 1
    where = "batched" if table == "members" else table
    other = replace(log, **{where: replace(getattr(log, where), **{column: changed})})
    assert digest(other) != digest(log) == stored("batch_8")["log"]


def test_every_column_is_hashed() -> None:
    log = run("batch_8").log
    for table, columns in COLUMNS.items():
        assert {*columns} == {column.name for column in fields(getattr(log, table))}


def by_size(path: Path) -> object:
    """Marked as slow if it has many tasks."""
    tasks = stored(path.stem)["tasks"]
    assert isinstance(tasks, int)
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if tasks > 5_000 else [])


@pytest.mark.parametrize("path", [by_size(path) for path in scenarios().values()])
def test_both_executors_give_the_same_log_to_the_bit(path: Path) -> None:
    scenario = read(path)
    setup = plan(scenario).setup
    assert_same(simulate(setup, "compiled")[0], simulate(setup, "simpy")[0])


def test_no_report_is_left_over() -> None:
    assert {report.stem for report in FOLDER.glob("*.json")} == set(scenarios())


def test_the_sample_trace_is_what_is_written_today(tmp_path: Path) -> None:
    write_sample(tmp_path / SAMPLE.name)
    today = gzip.decompress((tmp_path / SAMPLE.name).read_bytes())
    assert today == gzip.decompress(SAMPLE.read_bytes()), "the trace changed: if it should, run `make reports` and look at it"
    assert SAMPLE.stat().st_size < 100_000
