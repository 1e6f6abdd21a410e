"""The plot of growth: time and memory per task against the size of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure


def plot(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write an SVG. found: for each kind of record, rows of `growth.rows`."""
    matplotlib.rcParams["svg.hashsalt"] = "decode-sim"  # the same file for the same numbers
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name, rows in found.items():
        tasks = [row["tasks"] for row in rows]
        time.plot(tasks, [1e6 * row["cpu"] / row["tasks"] for row in rows], "o-", label=f"record: {name}")
        memory.plot(tasks, [row["added"] / row["tasks"] for row in rows], "o-", label=f"record: {name}")
    time.set(xscale="log", yscale="log", xlabel="tasks", ylabel="µs of CPU time a task", title="Time")
    memory.set(xscale="log", ylim=(0, None), xlabel="tasks", ylabel="bytes a task, at the peak", title="Memory")
    for axes in (time, memory):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, metadata={"Date": None})
