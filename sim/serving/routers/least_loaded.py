"""Join the shortest queue."""

from __future__ import annotations

from collections.abc import Sequence

from sim.serving.routers.contract import Load
from sim.workload.requests import Request


def least(loads: Sequence[Load], among: Sequence[int]) -> int:
    """The replica, of some, with the fewest requests, of these with the fewest tokens of prompts, of these the first."""
    return min(among, key=lambda number: (loads[number].requests, loads[number].prompts, number))


class LeastLoaded:
    """The replica with the fewest requests that have not ended; among equals, the fewest tokens of prompts."""

    def choose(self, request: Request, loads: Sequence[Load]) -> int:
        return least(loads, range(len(loads)))
