"""The trace of a result, as its scenario describes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import sim.render.trace
from sim import __version__
from sim.runs.result import Result


def traceable(result: Result) -> bool:
    """Whether ops were recorded, for the whole run or for a window."""
    return result.log.has_rows or result.window is not None


def write_trace(result: Result, path: Path) -> None:
    """Write the trace of a result; the format follows from the name. Raises InputError if no ops were recorded."""
    scenario = result.scenario
    log = result.window if result.window is not None else result.rows("a trace")
    path.parent.mkdir(parents=True, exist_ok=True)
    window = scenario.trace.window
    sim.render.trace.write(
        log,
        path,
        metadata={"scenario": scenario.name, "seed": str(scenario.seed), "version": __version__},
        detail=scenario.trace.detail,
        flows=scenario.trace.flows,
        window=(window.start, window.end if window.end is not None else result.makespan) if window else None,
        critical=result.critical_path.rows if result.log.has_rows else np.zeros(0, dtype=np.int64),
        power=result.power_of(log),
    )
