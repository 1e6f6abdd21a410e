"""The parts of a task's time, and how one task's [ready, end] is split into them. See `sim.analysis.breakdown`."""

from __future__ import annotations

from typing import NamedTuple

from sim.base.integers import ceil_div
from sim.base.kernel import kernel
from sim.log.columns import Tasks

PARTS = (
    "compute", "transfer", "wait_engine", "wait_channel", "wait_input", "wait_sram", "wait_policy", "link", "wait_link",
)  # fmt: skip
COMPUTE, TRANSFER, WAIT_ENGINE, WAIT_CHANNEL, WAIT_INPUT, WAIT_SRAM, WAIT_POLICY, LINK, WAIT_LINK = range(len(PARTS))
PART_COUNT = len(PARTS)

#: Parts of a machine without links.
WITHOUT_LINKS = PARTS[:LINK]


class Latency(NamedTuple):
    """Picoseconds until a transfer arrives, over each of `sim.machine.machine.PATHS`."""

    memory: int
    link: int
    host: int
    network: int
    tier_1: int
    tier_2: int
    tier_3: int


class Conserving(NamedTuple):
    """Whether channels are never idle while a transfer is eligible, those of each of `sim.machine.machine.PATHS`."""

    memory: bool
    link: bool
    host: bool
    network: bool
    tier_1: bool
    tier_2: bool
    tier_3: bool


@kernel
def on_link(t: Tasks, row: int) -> int:
    """The link on which a task moves bytes, as the index of `Latency` and `Conserving`; 0 if it is none."""
    return int(t.link[row]) if len(t.link) > 0 else 0


@kernel
def alone(t: Tasks, row: int, latency: Latency, stripes: int) -> int:
    """`full_speed` of the transfer of a task."""
    link = on_link(t, row)
    return full_speed(t.work[row], latency[link], 1 if link else stripes)


@kernel
def full_speed(work: int, latency: int, stripes: int) -> int:
    """Time of a transfer at the full speed of its channels, as if it were the only one; 0 if there is none."""
    if work == 0:
        return 0
    return latency + (work if stripes == 1 else ceil_div(work, stripes))


@kernel
def service(
    held: bool, start: int, loaded: int, end: int, compute: int, transfer: int, launched: int, stream: bool
) -> tuple[int, int]:  # fmt: skip
    """The parts compute and transfer of a task's [start, end]; what is left is waiting for the channel.

    held: an engine ran it. transfer: its `full_speed`. launched: its launch.
    """
    if not stream:
        return (launched + end - loaded if held else 0), transfer
    if held and compute >= launched + transfer:
        return compute, 0
    return launched, transfer
