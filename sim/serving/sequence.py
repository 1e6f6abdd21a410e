"""The progress of a request that a batcher serves."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from sim.workload.requests import Request


@dataclass(slots=True, eq=False)
class SequenceState:
    """A request and how far it is.

    cached: tokens in its KV cache. pending: tokens to prefill, the last of which gives an output token; 0 if it decodes.
    generated: output tokens. decoded: steps in which it has decoded, pre-emptions included. allocated: tokens that its pages
    are for. held: bytes of the pages that it has to itself. forked: it waits until the first sample of its prompt has
    prefilled it for all. shared: cached tokens that it shares with the other samples of its prompt. drafted: tokens in its KV
    cache of the draft model. fed: cached tokens that were prefilled here. shares: blocks of the prefix cache that it holds.
    filled: its leading blocks that are full. moving: moves to and from tiers that it waits for. stalled: it waits for blocks
    that others give up. begun: it has taken part in a step.
    """

    number: int
    request: Request
    cached: int
    pending: int
    generated: int = 0
    decoded: int = 0
    allocated: int = 0
    held: int = 0
    forked: bool = False
    shared: int = 0
    drafted: int = 0
    fed: int = 0
    shares: list[Hashable] = field(default_factory=list)
    filled: int = 0
    moving: int = 0
    stalled: bool = False
    begun: bool = False

    @property
    def ready(self) -> bool:
        """Whether it can take part in a step."""
        return not (self.forked or self.moving or self.stalled)

    @classmethod
    def of(cls, number: int, request: Request) -> SequenceState:
        """The state of a request that has come."""
        return cls(number, request, request.context, request.prompt, drafted=request.context)

    def handed_over(self) -> SequenceState:
        """The state in which a request whose prompt was prefilled goes on elsewhere."""
        return SequenceState(
            self.number, self.request, self.cached, 0, generated=self.generated, drafted=self.cached, begun=True
        )  # fmt: skip
