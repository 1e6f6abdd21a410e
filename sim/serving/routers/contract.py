"""The contract of a router: which replica serves a request.

A request is routed once, when it arrives, and stays where it is. A router is asked in order of arrival; it may remember what it
has answered, for the time of one run. It decides from what it is asked, never from a clock or a random number.

A router that looks at requests alone, never at loads, may say so by a class attribute `static = True`. Then it is known before
a run which replica serves which requests, and replicas can be simulated as runs of their own (`sim.runs.apart`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sim.workload.requests import Request


class Load(Protocol):
    """Requests of a replica that have been routed to it and have not ended.

    requests: how many they are. prompts: tokens of their prompts.
    """

    @property
    def requests(self) -> int: ...
    @property
    def prompts(self) -> int: ...


class Router(Protocol):
    """See the module for the contract. Options of the scenario are parameters of its constructor."""

    def choose(self, request: Request, loads: Sequence[Load]) -> int:
        """The number of the replica that is to serve a request. loads: of each replica, without this request."""
        ...
