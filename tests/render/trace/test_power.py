"""The power counter: its integral is the energy of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

import sim.scenario
from sim.render.trace.of_result import write_trace
from sim.runs.result import Result
from sim.runs.run import known_names, run
from tests.tools.trace_processor import TraceProcessor

WATTS = """\
SELECT p.name AS parent, t.unit AS unit, c.ts AS ts, c.value AS value FROM counter c JOIN counter_track t ON c.track_id = t.id
LEFT JOIN track p ON t.parent_id = p.id WHERE t.name = 'power' ORDER BY c.ts
"""


def result(**rest: object) -> Result:
    scenario = {
        "model": {"config": "llama-3.1-8b", "layers": 2},
        "workload": {"sequences": [{"context": 512, "tokens": 3}]},
        "hardware": {"preset": "h100-sxm"},
        **rest,
    }
    return run(sim.scenario.from_dict(scenario, known=known_names()))


def test_its_integral_is_the_energy(load: Callable[[Path], TraceProcessor], tmp_path: Path) -> None:
    found = result()
    assert found.energy is not None
    write_trace(found, tmp_path / "run.pftrace")
    rows = load(tmp_path / "run.pftrace").query(WATTS)
    assert {row["unit"] for row in rows} == {"W"}
    assert (rows[0]["ts"], rows[-1]["value"]) == (0, 0.0)
    assert min(row["value"] for row in rows[:-1]) == 100
    assert max(row["value"] for row in rows) == pytest.approx(100 + 82e-12 * 0.886 * 3.35e12, rel=0.03)  # all of the channel
    nanojoules = sum(a["value"] * (b["ts"] - a["ts"]) for a, b in pairwise(rows))
    assert nanojoules * 1e6 == pytest.approx(found.energy.total, rel=1e-3)  # fJ; a trace has whole nanoseconds


def test_tasks_have_their_joules(load: Callable[[Path], TraceProcessor], tmp_path: Path) -> None:
    """Arguments of slices on the engine and of transfers by a DMA sum to the arithmetic and the bytes of the run."""
    found = result()
    assert found.energy is not None
    write_trace(found, tmp_path / "run.pftrace")
    rows = load(tmp_path / "run.pftrace").query(
        "SELECT s.ts AS ts, a.int_value AS fj FROM slice s JOIN args a ON s.arg_set_id = a.arg_set_id "
        "WHERE a.flat_key LIKE '%energy_fj' AND s.category = 'engine'"
    )
    assert sum(row["fj"] for row in rows) == found.energy.compute + found.energy.memory - dma(found)
    write_trace(found, tmp_path / "run.json")
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    of_engine = [event["args"].get("energy_fj", 0) for event in events if event.get("cat") == "engine"]
    assert sum(of_engine) == sum(row["fj"] for row in rows)


def dma(found: Result) -> int:
    """Energy of bytes that tasks without an engine move."""
    assert found.plan.rules.energy is not None
    return int(found.log.bytes_moved()[found.log.tasks.engine < 0].sum()) * found.plan.rules.energy.of_byte[0]


def test_a_window_has_its_own_part(load: Callable[[Path], TraceProcessor], tmp_path: Path) -> None:
    """Where only a window was recorded, values in it are those of the whole run."""
    whole = result()
    window = {"trace": {"window": {"start": "300 us", "end": "400 us"}}}
    for name, record in (("part", "steps"), ("all", "all")):
        write_trace(result(record=record, **window), tmp_path / f"{name}.pftrace")
    part, all_ = (load(tmp_path / f"{name}.pftrace").query(WATTS) for name in ("part", "all"))
    assert part == all_
    assert part[0]["ts"] == 300_000
    assert whole.power is not None


def test_no_counter_without_figures(tmp_path: Path) -> None:
    write_trace(result(hardware={"preset": "b200"}), tmp_path / "run.json")
    assert "power" not in {event["name"] for event in json.loads((tmp_path / "run.json").read_text())["traceEvents"]}
    write_trace(result(), tmp_path / "with.json")
    assert "power" in {event["name"] for event in json.loads((tmp_path / "with.json").read_text())["traceEvents"]}
