"""Columns derived from a log agree with the columns that it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sim.scenario
from sim.log import derived
from sim.runs.run import run

DEVICES: dict[str, Any] = {"count": 4, "islands": {"size": 2, "link": {"preset": "network-400g"}}}


@pytest.mark.parametrize("devices", [{"count": 4}, DEVICES])
def test_transfers_are_served_while_their_tasks_last(devices: dict[str, Any]) -> None:
    """From the request on, also where transfers cross several links; and the link that a send has is one of its device."""
    scenario = {
        "model": {"config": "llama-3.1-8b", "layers": 1},
        "workload": {"sequences": [{"context": 100}]},
        "hardware": {"preset": "h100-sxm", "devices": devices},
        "mapping": {"parallel": {"tensor": 4, "fold": False}},
    }
    log = run(sim.scenario.from_dict(scenario)).log
    found = derived.service(log)
    moves, tasks = found.moves, log.tasks
    assert moves.any()
    assert (derived.issued(log)[moves] <= found.first[moves]).all()
    assert (tasks.start[moves] <= found.first[moves]).all()
    assert (found.first[moves] < found.last[moves]).all()
    assert (found.last[moves] <= tasks.end[moves]).all()
    sends = np.flatnonzero(moves & (tasks.engine < 0))
    for row in sends.tolist():
        device = log.graphs[0].device[tasks.task[row]]
        channel = log.machine.channels[found.channel[row]]
        assert (channel.device, channel.name.endswith(" in")) == (device, False)


def test_names_of_kinds_are_listed_once() -> None:
    """Loops over kinds ask for the list: 10,000 kinds would make lists of 10,000 names as often."""
    graph = [{"name": f"op {i}", "kind": f"kind {i}", "duration": "1 us"} for i in range(3)]
    log = run(sim.scenario.from_dict({"model": {"graph": graph}, "workload": {"sequences": [{"tokens": 1}]}})).log
    forms = derived.forms(log)
    assert sorted(forms.kinds) == ["kind 0", "kind 1", "kind 2"]
    assert forms.kinds is forms.kinds
