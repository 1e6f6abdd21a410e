"""The passes of a tally on two threads say the same as one after another."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from sim.analysis import tally
from sim.analysis.findings import analyze
from sim.executors import simulate
from sim.runs.plan import plan
from sim.runs.run import read
from sim.scenario.shipped import scenarios


@pytest.mark.parametrize("name", ["batching_static", "four_sequences_fifo"])
def test_findings_do_not_depend_on_cores(name: str) -> None:
    energy = "hardware.energy={flop: 0.761 pJ/FLOP, byte: 34.567 pJ/B, static: {device: 99.999 W, engine: 1.234 W}}"
    scenario = read(scenarios()[name], ["model.layers=2", "model.scope=block", energy])
    planned = plan(scenario)
    log, _ = simulate(planned.setup, "compiled")
    found = []
    for count in (1, 2):
        with patch.object(tally, "MANY", 1), patch.object(tally, "cores", lambda count=count: count):
            found.append(analyze(log, planned.rules))
    one, two = found
    assert (one.checks, one.bounds, one.metrics) == (two.checks, two.bounds, two.metrics)
    for table in ("tokens", "by_step"):
        np.testing.assert_array_equal(getattr(one.breakdown, table), getattr(two.breakdown, table))
    np.testing.assert_array_equal(one.series.bytes_per_s, two.series.bytes_per_s)
    assert one.energy is not None
    assert two.energy is not None
    assert (one.energy.total, one.energy.channels, one.energy.idle) == (two.energy.total, two.energy.channels, two.energy.idle)
    for table in ("by_step", "by_part", "by_kind", "by_sequence", "engines"):
        np.testing.assert_array_equal(getattr(one.energy, table), getattr(two.energy, table))
