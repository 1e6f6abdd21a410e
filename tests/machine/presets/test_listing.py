"""Descriptions of machines and models by `sim list`."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import models.library
from sim.cli import cli
from sim.machine.presets import PRESETS, find


def listed(*arguments: str) -> dict[str, str]:
    done = CliRunner().invoke(cli, ["list", *arguments], catch_exceptions=False)
    return {key: text for key, _, text in (line.partition("  ") for line in done.output.splitlines())}


def test_machines_with_their_figures_and_unsure_ones() -> None:
    rows = listed("hardware")
    assert list(rows) == PRESETS.names()
    assert "engines 58 (derived, unsure)" in rows["l4"]
    assert "achievable 0.5425/0.775/0.679 (derived)" in rows["raspberry-pi-5"]
    assert rows["sifive-x390"].endswith("bandwidth not published")


@pytest.mark.parametrize("name", PRESETS.names())
def test_one_machine_with_the_source_of_each_figure(name: str) -> None:
    rows = listed("hardware", name)
    figures = list(find(name).figures())
    assert len(figures) >= 3
    for key, figure in figures:
        for text in (figure.text, figure.source, figure.derived, figure.unsure):
            assert text in rows[key]


def test_models_with_their_size() -> None:
    rows = listed("models")
    assert set(rows) == set(models.library.names())
    llama = "1,235,814,400 parameters (2.472 GB as bfloat16), 16 layers, hidden 2048, KV cache 32,768 B a token"
    assert rows["llama-3.2-1b"].strip() == llama
    assert rows["mixtral-8x7b"].endswith("KV cache 131,072 B a token, 2 of 8 experts a token")
    assert list(listed("models", "gpt2")) == ["gpt2"]
