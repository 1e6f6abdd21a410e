"""Replicas in turn."""

from __future__ import annotations

from collections.abc import Sequence

from sim.serving.routers.contract import Load
from sim.workload.requests import Request


class RoundRobin:
    """Replicas in turn, in order of arrival, whatever they have to do."""

    static = True

    def __init__(self) -> None:
        self._routed = 0

    def choose(self, request: Request, loads: Sequence[Load]) -> int:
        self._routed += 1
        return (self._routed - 1) % len(loads)
