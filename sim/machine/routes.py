"""Routes: which of several memory channels a transfer goes to. Pure functions on integers.

Each device has its own; what is for a link goes to that of the device by any route.

Each channel has the full bandwidth of the scenario, an arbiter and queues of its own. Work is picoseconds at the full speed
of one channel, whichever it is.

| route         | a transfer goes                                                                                   |
| ------------- | ------------------------------------------------------------------------------------------------- |
| `interleaved` | to all channels, in parts whose work differs by at most 1 ps; it ends with its last part           |
| `sequence`    | to the channel of its sequence: number modulo channels                                            |
| `class`       | to the channel of its bytes: weights 0, KV cache 1, activations 2, modulo channels                 |
"""

from __future__ import annotations

from typing import Literal

from sim.base.kernel import kernel
from sim.mapping.tasks import CLASS_BIT, HOST_BIT, LINK_BIT, NETWORK_BIT, TIER_SHIFT

Route = Literal["interleaved", "sequence", "class"]

#: Numbers of the routes, as kernels take them.
INTERLEAVED, BY_SEQUENCE, BY_CLASS = 0, 1, 2
ROUTES: dict[Route, int] = {"interleaved": INTERLEAVED, "sequence": BY_SEQUENCE, "class": BY_CLASS}

#: `unit_of` for a transfer that goes to all channels of the memory of its device.
ALL_CHANNELS = -1

#: Byte classes (bits of `TaskGraph.moves`) in order of the channel they go to; of a transfer of several, the first counts.
WEIGHT_BITS = CLASS_BIT["weight"]
KV_BITS = CLASS_BIT["kv_read"] | CLASS_BIT["kv_write"] | CLASS_BIT["state_read"] | CLASS_BIT["state_write"]
ACTIVATION_BITS = CLASS_BIT["act_read"] | CLASS_BIT["act_write"]


@kernel
def unit_of(
    route: int, sequence: int, moves: int, channels: int, device: int, devices: int, beside: int, joint: bool
) -> int:  # fmt: skip
    """The unit of a transfer by the number of the route, its sequence and its byte classes, or `ALL_CHANNELS` of its device.

    A unit is a channel, or with `joint` all links between devices, and all to the network between islands: see `units_of`.
    channels: those of the memory of a device. All memories have the first numbers, device by device; then come the links
    between devices, to the network, and to each tier, of which `beside` is the first unit.
    """
    if moves & HOST_BIT:
        return beside + int(moves >> TIER_SHIFT) * devices + device
    first = device * channels
    if moves & LINK_BIT:
        between = int(moves & NETWORK_BIT != 0)
        return devices * channels + (between if joint else between * devices + device)
    if route == INTERLEAVED:
        return first if channels == 1 else ALL_CHANNELS
    if route == BY_SEQUENCE:
        return first + sequence % channels
    if moves & WEIGHT_BITS:
        return first
    if moves & KV_BITS:
        return first + 1 % channels
    if moves & ACTIVATION_BITS:
        return first + 2 % channels
    return first


@kernel
def stripe(work: int, count: int, i: int) -> int:
    """Part `i` of `count` of some work: parts sum to it, the larger come first, and the last of a small one may be 0."""
    return (work + count - 1 - i) // count
