"""Several memory channels behind one interface: which of them a transfer goes to.

Each channel has the full bandwidth of the scenario, an arbiter and queues of its own. Work is picoseconds at the full speed
of one channel, whichever it is.

| route         | a transfer goes                                                                                   |
| ------------- | ------------------------------------------------------------------------------------------------- |
| `interleaved` | to all channels, in parts whose work differs by at most 1 ps; it ends with its last part           |
| `sequence`    | to the channel of its sequence: number modulo channels                                            |
| `class`       | to the channel of its bytes: weights 0, KV cache 1, activations 2, modulo channels                 |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from sim.hardware.arbiters import Transfer
from sim.hardware.channel import Channel
from sim.tasks import CLASS_BIT

Route = Literal["interleaved", "sequence", "class"]

#: Byte classes in order of the channel they go to; of a transfer of several, the first counts.
PARTITIONS = (
    CLASS_BIT["weight"],
    CLASS_BIT["kv_read"] | CLASS_BIT["kv_write"],
    CLASS_BIT["act_read"] | CLASS_BIT["act_write"],
)


class Channels:
    """Sends transfers to the channels they belong to."""

    def __init__(self, channels: Sequence[Channel], route: Route = "interleaved") -> None:
        if not channels or route not in get_args(Route):
            raise ValueError(f"expected channels and a route of {', '.join(get_args(Route))}, found {route!r}")
        self.channels = channels
        self.route = route

    def __repr__(self) -> str:
        return f"Channels({self.route}, {list(self.channels)})"

    def request(self, transfer: Transfer, ended: Callable[[], Any]) -> None:
        """Issue a transfer; `ended` is called at the instant at which its last byte has arrived."""
        if self.route == "sequence":
            self.channels[transfer.sequence % len(self.channels)].request(transfer, ended)
        elif self.route == "class":
            number = next((i for i, bits in enumerate(PARTITIONS) if transfer.moves & bits), 0)
            self.channels[number % len(self.channels)].request(transfer, ended)
        else:
            self._stripe(transfer, ended)

    def _stripe(self, transfer: Transfer, ended: Callable[[], Any]) -> None:
        shares = stripes(transfer.work, len(self.channels))
        parts = [(channel, work) for channel, work in zip(self.channels, shares, strict=True) if work]
        left = len(parts)

        def part_ended() -> None:
            nonlocal left
            left -= 1
            if not left:
                ended()

        for channel, work in parts:
            channel.request(replace(transfer, work=work, remaining=work), part_ended)


def stripes(work: int, count: int) -> list[int]:
    """Parts of `work` that sum to it, the larger first; a transfer of less than `count` ps does not reach all channels."""
    return [(work + count - 1 - i) // count for i in range(count)]
