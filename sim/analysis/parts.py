"""The seven parts of a task's time, and how one task's [ready, end] is split into them. See `sim.analysis.breakdown`."""

from __future__ import annotations

from sim.analysis.columns import Ints
from sim.base.integers import ceil_div
from sim.base.kernel import kernel

PARTS = ("compute", "transfer", "wait_engine", "wait_channel", "wait_input", "wait_sram", "wait_policy")
COMPUTE, TRANSFER, WAIT_ENGINE, WAIT_CHANNEL, WAIT_INPUT, WAIT_SRAM, WAIT_POLICY = range(len(PARTS))
PART_COUNT = len(PARTS)


@kernel
def full_speed(work: int, latency: int, stripes: int) -> int:
    """Time of a transfer at the full speed of its channels, as if nobody else were there; 0 of no transfer."""
    if work == 0:
        return 0
    return latency + (work if stripes == 1 else ceil_div(work, stripes))


@kernel
def split(
    held: bool, ready: int, start: int, loaded: int, end: int, compute: int, transfer: int, all_busy: int, stream: bool,
    parts: Ints,
) -> bool:  # fmt: skip
    """Fill `parts` [part] of one task; False if one of them is negative.

    held: an engine ran it. transfer: its `full_speed`. all_busy: ps of its wait for an engine in which none was idle.
    """
    if stream:
        computes = held and compute >= transfer
        parts[COMPUTE] = compute if computes else 0
        parts[TRANSFER] = 0 if computes and compute > 0 else transfer
    else:
        parts[COMPUTE] = end - loaded if held else 0
        parts[TRANSFER] = transfer
    parts[WAIT_CHANNEL] = end - start - parts[COMPUTE] - parts[TRANSFER]
    waited = start - ready
    parts[WAIT_ENGINE] = all_busy if held else 0
    parts[WAIT_POLICY] = waited - all_busy if held else 0
    parts[WAIT_SRAM] = 0 if held else waited
    for part in range(PART_COUNT):  # noqa: SIM110  # Numba has no generators in `all`
        if parts[part] < 0:
            return False
    return True
