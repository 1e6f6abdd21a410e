"""The progress of a request that a batcher serves."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.serving.contents import Content
from sim.workload.requests import Request

#: A block of the prefix cache: the number of the group of layers, and what it holds.
Key = tuple[int, Content]


class Share(NamedTuple):
    """A block of the prefix cache that a sequence holds, of so many bytes. apart: whether it counts once for all that hold it;
    else it counts within what the sequence has for itself.
    """

    key: Key
    apart: bool
    size: int

    @property
    def group(self) -> int:
        """Number of its group of layers."""
        return self.key[0]

    @property
    def number(self) -> int:
        """Number of the block in a sequence."""
        return self.key[1].number


@dataclass(slots=True)
class Shares:
    """Blocks of a group of layers that a sequence holds, and that others can find. first: the first block that it holds at all.
    apart: bytes of those that count apart.
    """

    first: int
    blocks: deque[Share] = field(default_factory=deque)
    apart: int = 0


@dataclass(slots=True, eq=False)
class SequenceState:
    """A request and how far it is.

    cached: tokens in its KV cache. pending: tokens to prefill, the last of which gives an output token; 0 if it decodes.
    generated: output tokens. decoded: steps in which it has decoded, pre-emptions included. allocated: tokens that its pages
    are for. held: bytes of the pages that it has to itself. forked: it waits until the first sample of its prompt has
    prefilled it for all. shared: cached tokens that it shares with the other samples of its prompt. drafted: tokens in its KV
    cache of the draft model. fed: cached tokens that were prefilled here. shares: blocks of the prefix cache that it holds, by
    group of layers. filled: its leading blocks that are full. moving: moves to and from tiers that it waits for. stalled: it
    waits for blocks that others give up. begun: it has taken part in a step.
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
    shares: list[Shares] = field(default_factory=list)
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
