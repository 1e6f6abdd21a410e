"""The guide that adds an arbiter and a scheduler, as written: its files, installed as far as Python can tell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sim.base.errors import InputError
from sim.machine.arbiters import ARBITERS
from sim.machine.schedulers import SCHEDULERS
from sim.runs.run import read, run
from tests.executors import assert_same
from tests.guides import install

GUIDE = "own_arbiter.md"


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    return install(GUIDE, tmp_path, monkeypatch)


def test_the_guide_works(lab):
    assert "newest" in ARBITERS.names()
    assert "longest" in SCHEDULERS.names()
    result = run(lab / "newest.yaml")
    assert len(result.metrics.tokens) == 24
    loads = 24 * 5 * 10**9  # the channel is the limit: 24 tokens of 2 ms and 3 ms
    assert loads <= result.makespan <= loads + 24 * 3 * 10**9


def test_the_function_on_integers_gives_the_same_log_on_both_executors(lab):
    kernels = read(lab / "newest.yaml", ["hardware.memory.arbiter.name=newest_kernel", "scheduler=earliest"])
    expected = run(read(lab / "newest.yaml", ["scheduler=earliest"])).log
    assert_same(expected, run(kernels).log)
    assert_same(expected, run(kernels, executor="compiled").log)


def test_its_options_are_checked_where_they_stand(lab):
    scenario = read(lab / "newest.yaml", ["hardware.memory.arbiter.patience=0"])
    with pytest.raises(InputError, match=r"arbiter 'newest': patience: expected a whole number from 1 on, found 0"):
        run(scenario)


def test_without_it_the_name_is_unknown(lab, monkeypatch):
    text = (lab / "newest.yaml").read_text(encoding="utf-8")
    with monkeypatch.context() as other:
        other.setattr("sys.path", [p for p in sys.path if p != str(lab)])
        (lab / "copy.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"copy.yaml:11:\d+: hardware.memory.arbiter.*'newest'"):
            read(lab / "copy.yaml")
