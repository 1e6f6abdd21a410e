"""Routing by a hash of the beginning of a prompt: what begins alike goes to one replica, whatever it has to do."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from sim.serving.routers.contract import Load
from sim.workload.requests import Request


class PrefixHash:
    """The replica that a hash of the first blocks of the prompt, or of its conversation, gives; others in turn.

    blocks: how many of the ids of blocks with which the prompt begins are hashed. It needs to know nothing of replicas, as the
    session routing of vLLM's production stack does (https://docs.vllm.ai/projects/production-stack), and evens out nothing.
    """

    static = True

    def __init__(self, *, blocks: int = 1) -> None:
        if type(blocks) is not int or blocks < 1:
            raise ValueError(f"blocks: expected a number of blocks, 1 or more, found {blocks!r}")
        self._blocks, self._routed = blocks, 0

    def choose(self, request: Request, loads: Sequence[Load]) -> int:
        key = (-1, request.conversation) if request.conversation >= 0 else tuple(request.prefix[: self._blocks])
        if not key:
            self._routed += 1
            return (self._routed - 1) % len(loads)
        return crc32(",".join(map(str, key)).encode()) % len(loads)
