"""The trace of steps that are batched: what each sequence did in them, as the real trace processor reads it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim
from sim.render.trace import write_perfetto
from sim.render.trace.layout import Layout
from sim.render.trace.tracks import Role, to_ns
from sim.scenario import from_dict
from tests.tools.trace_processor import TraceProcessor

Load = Callable[[Path], TraceProcessor]
WORKLOADS: dict[str, dict[str, Any]] = {
    "chunks": {
        "sequences": [{"context": 50, "tokens": 6, "count": 2}, {"prompt": 100, "tokens": 2, "arrival": "10 us"}],
        "batching": "continuous", "prefill": {"chunk": 40},
    },
    "swaps": {
        "sequences": [{"prompt": 60, "tokens": 25, "count": 3}],
        "batching": {"policy": "continuous", "kv": {"capacity": "0.85 MB", "full": "swap"}},
    },
    "drafts": {"sequences": [{"context": 20, "tokens": 5}], "speculative": {"draft": 2, "acceptance": [2, 0]}},
}  # fmt: skip


def read(workload: str, load: Load, folder: Path) -> tuple[sim.Result, dict[str, list[dict[str, Any]]], TraceProcessor]:
    """The run, the slices of each track of a sequence in order, and the trace."""
    model = {"config": "llama-3.2-1b", "layers": 2}
    result = sim.run(from_dict({"model": model, "workload": WORKLOADS[workload], "mapping": {"heads": "fused"}}))
    write_perfetto(result.log, folder / f"{workload}.pftrace", metadata={})
    trace = load(folder / f"{workload}.pftrace")
    assert trace.problems() == []
    tracks = defaultdict(list)
    for row in trace.query(
        "SELECT track.name AS track, slice.name AS name, ts, dur FROM slice JOIN track ON slice.track_id = track.id "
        "WHERE track.name GLOB 'sequence *' ORDER BY ts"
    ):
        tracks[row["track"]].append(row)
    return result, tracks, trace


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_sequence_is_shown_from_its_arrival_to_its_end(workload: str, load: Load, tmp_path: Path) -> None:
    result, tracks, trace = read(workload, load, tmp_path)
    for number, (arrival, last) in enumerate(
        zip(result.requests.arrival.tolist(), (result.requests.arrival + result.requests.e2e).tolist(), strict=True)
    ):
        told = tracks[f"sequence {number}"]
        assert told[0]["ts"] == int(to_ns(arrival))
        assert told[-1]["ts"] + told[-1]["dur"] == int(to_ns(last))
        assert [a["ts"] + a["dur"] for a in told[:-1]] == [b["ts"] for b in told[1:]], "without a gap"
    steps = trace.query("SELECT name FROM slice WHERE name GLOB 'step *'")
    assert len(steps) == len(result.log.steps)
    assert not trace.query("SELECT name FROM slice WHERE name GLOB 'token *'")


def test_swaps_are_on_the_link_to_the_host(load: Load, tmp_path: Path) -> None:
    """Its lane, under a group of its own, has the swaps and nothing else, and its counter their bytes per second."""
    hardware = {"host": {"link": {"bandwidth": "20 GB/s"}}}
    data = {"model": {"config": "llama-3.2-1b", "layers": 2}, "hardware": hardware, "mapping": {"heads": "fused"}}
    result = sim.run(from_dict(data | {"workload": WORKLOADS["swaps"]}))
    write_perfetto(result.log, tmp_path / "host.pftrace", metadata={})
    trace = load(tmp_path / "host.pftrace")
    assert trace.problems() == []
    rows = trace.query(
        "SELECT slice.name AS name, parent.name AS parent FROM slice JOIN track ON slice.track_id = track.id "
        "JOIN track AS parent ON track.parent_id = parent.id WHERE track.name = 'host link'"
    )
    swaps = int((result.log.members.query == 0).sum())
    assert len(rows) == 2 * swaps, "one for each layer"
    assert {row["parent"] for row in rows} == {"Host"}
    assert {row["name"].split()[0] for row in rows} == {"kv_swap_out", "kv_swap_in"}
    (most,) = trace.query(
        "SELECT max(value) AS rate FROM counter JOIN track ON counter.track_id = track.id "
        "JOIN track AS parent ON track.parent_id = parent.id WHERE parent.name = 'Host'"
    )
    assert most["rate"] == pytest.approx(20, rel=1e-3)
    (outstanding,) = trace.query(
        "SELECT parent.name AS parent FROM track JOIN track AS parent ON track.parent_id = parent.id "
        "WHERE track.name = 'outstanding transfers'"
    )
    assert outstanding["parent"] == "Machine", "those on the link count, too"
    loops = trace.query("SELECT name FROM track WHERE name GLOB '*loop *' ORDER BY name")
    assert [row["name"] for row in loops] == ["loop 0", "moves of caches, loop 1"]


def test_what_steps_did(load: Load, tmp_path: Path) -> None:
    _, tracks, _ = read("chunks", load, tmp_path)
    names = [slice_["name"] for slice_ in tracks["sequence 2"]]
    assert names == ["queued", "prefill 40", "prefill 40", "prefill 20", "decode"]
    _, tracks, _ = read("drafts", load, tmp_path)
    assert [slice_["name"] for slice_ in tracks["sequence 0"]] == ["verify 3", "verify 2", "decode"]
    _, tracks, _ = read("swaps", load, tmp_path)
    names = [slice_["name"] for slice_ in tracks["sequence 2"]]
    out = names.index("swap out")
    assert names[out + 1 : out + 3] == ["waits for its turn", "swap in"]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_steps_that_prefill_have_a_color_of_their_own(workload: str) -> None:
    """By the lengths of what members fed in: chunks of a prompt of 40 tokens, prompts of 60, and drafts of 3, which decode."""
    model = {"config": "llama-3.2-1b", "layers": 2}
    log = sim.run({"model": model, "workload": WORKLOADS[workload], "mapping": {"heads": "fused"}}).log
    prefills = set(log.members.step[log.members.query > 3].tolist())
    slices = Layout(log, None, None, None).machine()
    ran = np.flatnonzero(slices.role == Role.RUN)
    steps = log.tasks.step[slices.row[ran]].tolist()
    found = {(step in prefills, color) for step, color in zip(steps, slices.color[ran].tolist(), strict=True)}
    assert len(found) == len({color for _, color in found}) == (2 if prefills else 1)
