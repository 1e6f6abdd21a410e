"""Routing to where the beginning of a prompt is in the cache, unless that replica has much more to do."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from sim.serving.routers.contract import Load
from sim.serving.routers.least_loaded import least
from sim.workload.requests import Request


class PrefixAware:
    """The replica that has been given the longest beginning of the prompt before (ids of its blocks, or turns of its
    conversation), so that its prefix cache has it; the least loaded one of several, or if none has any.

    imbalance: a replica with more than so many requests above the least loaded one is left alone. SGLang's router has the same
    two rules (https://docs.sglang.ai/advanced_features/router.html).
    """

    def __init__(self, *, imbalance: int = 32) -> None:
        if type(imbalance) is not int or imbalance < 0:
            raise ValueError(f"imbalance: expected a number of requests, 0 or more, found {imbalance!r}")
        self._imbalance = imbalance
        self._paths: dict[tuple[int, int], int] = {}  # (path before it, id) -> path; 0 is the beginning
        self._given: dict[int, set[Hashable]] = {}  # replica -> beginnings and conversations that it was given

    def choose(self, request: Request, loads: Sequence[Load]) -> int:
        beginnings = list(self._beginnings(request))
        fewest = min(load.requests for load in loads)
        near = [number for number, load in enumerate(loads) if load.requests - fewest <= self._imbalance]
        known = [self._known(number, beginnings) for number in near]
        chosen = least(loads, [number for number, many in zip(near, known, strict=True) if many == max(known)])
        self._given.setdefault(chosen, set()).update(beginnings)
        return chosen

    def _beginnings(self, request: Request) -> Iterator[Hashable]:
        """Beginnings of a prompt, shorter ones first, and its conversation."""
        path = 0
        for each in request.prefix:
            path = self._paths.setdefault((path, each), len(self._paths) + 1)
            yield path
        if request.conversation >= 0:
            yield "conversation", request.conversation

    def _known(self, number: int, beginnings: Sequence[Hashable]) -> int:
        """How many of the beginnings a replica was given before."""
        given = self._given.get(number, set())
        return sum(each in given for each in beginnings)
