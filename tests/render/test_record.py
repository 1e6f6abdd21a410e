"""`record` keeps the same numbers of a run, with fewer tables behind them."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

import sim
import sim.scenario
from sim.render import explain, sram
from sim.render.trace.of_result import write_trace
from sim.runs.run import read
from sim.scenario.shipped import find_scenario


def summary(name: str, *overrides: str) -> dict[str, Any]:
    return sim.summary(sim.run(read(find_scenario(name), list(overrides))), timing=False)


#: Outputs that need ops, and outputs that need steps.
OF_OPS, OF_STEPS = {"blame", "critical_path"}, {"tokens", "breakdown_ps"}


def without_steps(value: Any) -> Any:
    """Without the time of links that tokens waited for, which comes from steps."""
    return {key: each for key, each in value.items() if key != "exposed_ps"} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", ["two_tokens_4_engines", "kv_full_swap"])
def test_numbers_do_not_depend_on_what_is_recorded(name: str) -> None:
    all_of_it, steps, none = (summary(name, f"record={record}") for record in ("all", "steps", "none"))
    assert all(all_of_it[key] for key in OF_OPS)
    assert not any(each[key] for each in (steps, none) for key in OF_OPS)
    for key in all_of_it.keys() - OF_OPS - {"series"}:
        assert steps[key] == all_of_it[key], key
        if key not in OF_STEPS:
            assert without_steps(none[key]) == without_steps(all_of_it[key]), key
    assert none["tokens"] == []
    for key in ("total", "by_kind", "by_layer", "by_sequence"):
        assert none["breakdown_ps"][key] == all_of_it["breakdown_ps"][key]


def test_ops_of_a_window_are_kept_whatever_is_recorded() -> None:
    scenario = read(find_scenario("two_tokens_4_engines"), ["record=steps", "trace.window={start: 0 ms, end: 1 ms}"])
    result = sim.run(scenario)
    assert not result.log.has_rows
    assert result.window is not None
    assert len(result.window.steps) == 2, "known tokens overlap: both steps are under way"
    with pytest.raises(sim.InputError, match=r"record: expected all for a page, found steps"):
        result.rows("a page")


def test_a_window_of_nothing_but_drafts_has_a_trace(tmp_path: Path) -> None:
    """The first step drafts. Its cache is not counted, since it follows that of the model."""
    result = sim.run({
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "workload": {
            "sequences": [{"context": 5, "tokens": 3}], "batching": "continuous",
            "speculative": {"draft": 1, "acceptance": 1, "model": {"config": "llama-3.2-1b", "layers": 1}},
        },
        "record": "steps", "trace": {"window": {"end": "1 ns"}},
    })  # fmt: skip
    assert result.window is not None
    assert len(result.window.steps) == 1
    write_trace(result, tmp_path / "run.pftrace")
    assert (tmp_path / "run.pftrace").stat().st_size > 0


def test_operands_in_sram_are_shown_where_it_is_bounded_and_ops_are_recorded() -> None:
    assert "sram" not in summary("two_tokens_4_engines")
    assert summary("weights_half_on_chip", "record=steps")["sram"] is None
    data = summary("weights_half_on_chip")
    assert data["sram"]["most_bytes"] <= data["sram"]["bytes"] < 160_000_000, "what resident weights leave"
    for table in (data["sram"]["by_kind"], data["sram"]["by_layer"]):
        assert sum(row["wait_ps"] for row in table) == data["sram"]["wait_ps"] > 0
        assert sum(row["wait_sram_ps"] for row in table) == data["breakdown_ps"]["total"]["wait_sram"]


def test_of_several_devices_each_says_how_full_its_sram_was() -> None:
    """Two stages of a layer each: the second is as full as the first, and its loads wait for longer, for the first stage."""
    result = sim.run(sim.scenario.from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
        "workload": {"sequences": [{"context": 100, "tokens": 1}]},
        "hardware": {"sram": "8 MiB", "devices": {"count": 2, "link": {"bandwidth": "450 GB/s"}}},
        "mapping": {"heads": "fused", "tiles": 8, "parallel": {"pipeline": 2}},
    }))  # fmt: skip
    data = sim.summary(result, timing=False)
    first, second = data["sram"]["devices"]
    assert (first["name"], second["name"]) == ("device 0", "device 1")
    assert first["wait_sram_ps"] < second["wait_sram_ps"]
    for key in ("wait_ps", "wait_sram_ps"):
        assert first[key] + second[key] == data["sram"][key]
    assert data["sram"]["wait_sram_ps"] == data["breakdown_ps"]["total"]["wait_sram"]
    assert data["sram"]["most_bytes"] == max(first["most_bytes"], second["most_bytes"]) <= 8 * 2**20
    console = Console(width=120, record=True, file=StringIO())
    console.print(explain.render(result))
    text = console.export_text()
    assert "8.389 MB of 8.389 MB in use at most, on device 0" in text
    nothing = SimpleNamespace(log=result.log, occupancy=replace(result.occupancy, by_kind=()))
    assert sram.line(cast("sim.Result", nothing)).endswith("on device 0; loads waited for " + sram.ELSEWHERE)
    assert re.search(r"^device 1 +\d+\.\d% ", text, flags=re.MULTILINE)
