"""Descriptions of machines and models by `sim list`."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

import models.library
from sim.cli import cli
from sim.machine.links import find as find_link
from sim.machine.presets import PRESETS, find


def printed(*arguments: str) -> list[str]:
    return CliRunner().invoke(cli, ["list", *arguments], catch_exceptions=False).output.splitlines()


def listed(*arguments: str) -> dict[str, str]:
    return {key: text for key, _, text in (line.partition("  ") for line in printed(*arguments))}


def test_a_table_of_machines_that_marks_what_is_unsure() -> None:
    head, *lines = printed("hardware")
    rows = {line.split()[0]: re.split("  +", line) for line in lines}
    assert list(rows) == PRESETS.names()
    assert re.split("  +", head) == ["device", "bf16 peak", "memory", "bandwidth", "engines"]
    assert rows["l4"] == ["l4", "121 TFLOP/s", "24 GB", "300 GB/s", "58*", "NVIDIA L4"]
    assert rows["generic-npu"][1:5] == ["8 TFLOP/s", "-", "100 GB/s", "4"]
    assert rows["sifive-x390"][3] == "not published"


@pytest.mark.parametrize("name", PRESETS.names())
def test_one_machine_with_the_source_of_each_figure(name: str) -> None:
    rows = listed("hardware", name)
    figures = list(find(name).figures())
    assert len(figures) >= 3
    for key, figure in figures:
        for text in (figure.text, figure.source, figure.derived, figure.unsure):
            assert text in rows[key]


def test_a_table_of_links_and_the_sources_of_one() -> None:
    head, *lines = printed("links")
    rows = {line.split()[0]: re.split("  +", line) for line in lines}
    assert re.split("  +", head) == ["link", "bandwidth", "latency"]
    assert rows["nvlink-4"][1:] == ["450 GB/s", "2 us", "NVLink of an H100 or H200, over NVSwitch"]
    assert rows["pcie-6"][1:3] == ["108 GB/s*", "7 us*"]
    for name in rows:
        link = find_link(name)
        for key, figure in (("bandwidth", link.bandwidth), ("latency", link.latency)):
            assert figure.source
            for text in (figure.text, figure.source, figure.derived, figure.unsure):
                assert text in listed("links", name)[key]


def test_models_with_their_size() -> None:
    head, *lines = printed("models")
    assert re.split("  +", head)[:3] == ["model", "parameters", "weights"]
    rows = {line.split()[0]: re.split("  +", line)[1:] for line in lines}
    assert set(rows) == set(models.library.names())
    assert rows["llama-3.2-1b"] == ["1,235,814,400", "2.472 GB bfloat16", "16", "2048", "32,768 B"]
    assert rows["mixtral-8x7b"][-2:] == ["131,072 B", "2 of 8"]
    assert [line.split()[0] for line in printed("models", "gpt2")] == ["model", "gpt2"]
