from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import sim
from sim.log.tables import EventLog


def assert_same(a: EventLog, b: EventLog) -> None:
    """Two logs are equal to the bit: every column of every table, and its type."""
    for name in ("tasks", "services", "steps", "members"):
        left, right = getattr(a, name), getattr(b, name)
        for column in fields(left):
            x, y = getattr(left, column.name), getattr(right, column.name)
            assert x.dtype == y.dtype, f"{name}.{column.name}"
            np.testing.assert_array_equal(x, y, err_msg=f"{name}.{column.name}")
    assert (a.engines, a.channels, a.bandwidth, len(a.graphs)) == (b.engines, b.channels, b.bandwidth, len(b.graphs))
    assert a.arrival.tolist() == b.arrival.tolist()
    assert (a.batched is None) == (b.batched is None)
    assert (a.queue is None) == (b.queue is None)
    assert a.queue is None or b.queue is None or a.queue.tolist() == b.queue.tolist()


def assert_saved(result: sim.Result, folder: Path) -> None:
    """A log that is saved and loaded again is the same, with its machine."""
    pytest.importorskip("pyarrow")
    sim.save_log(result.log, result.scenario, folder / "run.parquet")
    log, _ = sim.load_log(folder / "run.parquet")
    assert log.machine == result.log.machine
    assert log.sram == result.log.sram
    assert_same(result.log, log)
