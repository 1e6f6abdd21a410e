"""The guide to hybrids: its bytes by hand and from the graphs, its table by runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.graph import QUANTITIES
from models.library import load
from sim.runs.plan import plan
from sim.runs.run import read, run
from sim.scenario import from_dict
from sim.scenario.shipped import find_scenario

GUIDE = (Path(__file__).parents[2] / "docs/guides/hybrids.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([\d,]+) \| (\d+) \| ([\d.]+) ms \| ([\d.]+) ms \|$", re.MULTILINE)
HYBRID, DENSE = "qwen3.6-27b", "mistral-small-3.1-24b"
STATE = 48 * 4 * (48 * 128 * 128 + 3 * (2 * 16 * 128 + 48 * 128))


def moved(name: str, N: int) -> dict[str, int]:
    return dict(zip(QUANTITIES, load(name).step().costs(N).sum(axis=1).tolist(), strict=True))


def test_bytes():
    hybrid, dense = moved(HYBRID, 1000), moved(DENSE, 1000)
    assert (hybrid["state_read"], hybrid["state_write"]) == (STATE, STATE)
    assert (hybrid["kv_read"], dense["kv_read"]) == (1000 * 65_536, 1000 * 163_840)
    assert (dense["state_read"], f"{2 * STATE / 1e6:.1f}") == (0, "313.8")
    weights = [made["weight"] / 1e9 for made in (hybrid, dense)]
    assert [f"{each:.2f}" for each in weights] == ["51.25", "45.80"]
    more = hybrid["weight"] - dense["weight"]
    assert f"{more / 1e9:.3f}" == "5.447"
    begins = [round((more / batch + 2 * STATE) / (163_840 - 65_536), -2) for batch in (1, 8, 32)]
    assert begins == [58_600, 10_100, 4_900]
    assert 2 * STATE // (163_840 - 65_536) == 3_192
    assert all(f"{n:,}" in GUIDE for n in (58_600, 10_100, 4_900, 3_192))
    assert [f"{each / 1e9:.2f}" for each in (131_072 * 65_536 + STATE, 131_072 * 163_840)] == ["8.75", "21.47"]


def test_memory_of_listed_sequences():
    """Caches at the final contexts, of one token more, and states, beside the weights."""
    held = {}
    for name in ("hybrid_128k", "dense_128k"):
        held[name] = {what: size for memory, what, size in plan(read(find_scenario(name), [])).held if memory == "memory"}
    assert {what: held["hybrid_128k"][what] for what in ("KV cache", "states")} == {
        "KV cache": 131_073 * 65_536,
        "states": STATE,
    }
    assert held["dense_128k"]["KV cache"] == 131_073 * 163_840
    assert held["dense_128k"].keys() == {"weights", "KV cache"}


@pytest.mark.slow
@pytest.mark.parametrize("line", ROW.findall(GUIDE))
def test_times(line):
    context, batch, *times = (each.replace(",", "") for each in line)
    for name, time in zip((HYBRID, DENSE), times, strict=True):
        workload = {"sequences": [{"context": int(context), "count": int(batch)}], "batching": {"policy": "static"}}
        made = from_dict({"model": {"config": name}, "workload": workload, "hardware": {"preset": "b300"}})
        assert f"{run(made).makespan / 1e9:.2f}" == time


def test_the_table_is_read():
    assert len(ROW.findall(GUIDE)) == 7
