"""The seven parts of a task's time, and how one task's [ready, end] is split into them. See `sim.analysis.breakdown`."""

from __future__ import annotations

from sim.base.integers import ceil_div
from sim.base.kernel import kernel

PARTS = ("compute", "transfer", "wait_engine", "wait_channel", "wait_input", "wait_sram", "wait_policy")
COMPUTE, TRANSFER, WAIT_ENGINE, WAIT_CHANNEL, WAIT_INPUT, WAIT_SRAM, WAIT_POLICY = range(len(PARTS))
PART_COUNT = len(PARTS)


@kernel
def full_speed(work: int, latency: int, stripes: int) -> int:
    """Time of a transfer at the full speed of its channels, as if it were the only one; 0 if there is none."""
    if work == 0:
        return 0
    return latency + (work if stripes == 1 else ceil_div(work, stripes))


@kernel
def service(held: bool, start: int, loaded: int, end: int, compute: int, transfer: int, stream: bool) -> tuple[int, int]:
    """The parts compute and transfer of a task's [start, end]; what is left is waiting for the channel.

    held: an engine ran it. transfer: its `full_speed`.
    """
    if not stream:
        return (end - loaded if held else 0), transfer
    if held and compute >= transfer:
        return compute, 0
    return 0, transfer
