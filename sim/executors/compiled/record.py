"""Rows of the log that a channel writes."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.state import (
    G_CHANNEL, G_END, G_START, G_TASK, G_WORK, GRANTS, NOW, RECORDED, S_BASE, S_ROW, SLOT, State,
)  # fmt: skip


@kernel
def record(run: State, channel: int, cell: int, since: int, work: int) -> None:
    """An interval of service that ends now. `advance` has seen to it that there is room for a row for every transfer."""
    if not run.m[RECORDED]:
        return
    slot, row = run.cell[SLOT, cell], run.m[GRANTS]
    run.grant[G_TASK, row] = run.slot[S_ROW, slot] + cell - run.slot[S_BASE, slot]
    run.grant[G_CHANNEL, row] = channel
    run.grant[G_START, row] = since
    run.grant[G_END, row] = run.m[NOW]
    run.grant[G_WORK, row] = work
    run.m[GRANTS] = row + 1
