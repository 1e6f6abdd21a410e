"""The machine of a scenario that a device profile stands for."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from sim.base.quantities import BANDWIDTH, DURATION, SIZE
from sim.cost.profile.device import DeviceProfile

SHARE = 10_000  # shares of the bandwidth are written with four decimals


def hardware(profile: DeviceProfile) -> dict[str, Any]:
    """The `hardware` section as plain data.

    An engine is what runs one op, all threads or multiprocessors of it. Reads say how much of the bandwidth n streams get;
    streams that pull at once share it fairly.
    """
    memory: dict[str, Any] = {"bandwidth": BANDWIDTH.format(profile.bandwidth), "arbiter": "processor_sharing"}
    if profile.read:
        shares = {n: min(Fraction(rate, profile.bandwidth), Fraction(1)) for n, rate in profile.read.items()}
        memory["efficiency"] = {str(n): max(1, round(share * SHARE)) / SHARE for n, share in shares.items()}
    if profile.capacity is not None:
        memory["capacity"] = SIZE.format(profile.capacity)
    return {
        "engines": {"count": profile.engines, "overhead": DURATION.format(profile.step.per_op)},
        "memory": memory,
    }
