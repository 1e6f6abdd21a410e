"""Mixture of experts: how many distinct experts the tokens of a step choose, and how many tokens go to other devices.

The weights of an expert are read once in a step, however many of its tokens choose it. So the weight bytes of a step's
expert ops are those of the distinct experts that its tokens choose, while the arithmetic is that of every choice. With
T tokens that each choose k of E experts evenly, the expected number of distinct ones is E (1 - (1 - k/E)^T). Where experts are
dealt out to devices, the arithmetic of each is that of the choices of its own.

Where tokens are sent to the devices of their experts, each is sent once to a device, however many of the experts there it
chooses. Of n devices with equally many experts, one of evenly chosen ones is expected to need 1 - C(E - E/n, k) / C(E, k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sim.base.kernel import kernel, loaded, small

IntArray = npt.NDArray[np.int64]

#: The first columns of a table of members [lane, member, field]: sequence, tokens in its cache, tokens that it feeds in.
M_SEQUENCE, M_CONTEXT, M_QUERY = range(3)

#: Counts of a step by the experts that its tokens choose: distinct ones of a device, tokens of a share that are sent to it, and
#: choices of experts of it.
Count = Literal["distinct", "sent", "chosen"]

#: Largest numbers of choices, and of marks of (layer, step, expert), in memory at once.
_BLOCK = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The experts of one op. count: E. top_k: how many each token chooses. bytes: weight bytes of one expert.

    idle: how many of them, the last ones, return the token and have no weights. bytes of them are never read.
    first, held: those that the device of the op has, where they are dealt out to several; held is 0 if it has all.
    share, shares: for an op that sends tokens to these experts, or brings back what these made of them: bytes are those of a
    token, and of the tokens of a step, divided over so many devices, it sends those of this one; shares is 0 for other ops.
    flops: of one choice of a token, where some are not of experts here; 0 if all are.
    """

    count: int
    top_k: int
    bytes: int
    idle: int = 0
    first: int = 0
    held: int = 0
    share: int = 0
    shares: int = 0
    flops: int = 0

    def __str__(self) -> str:
        return f"{self.top_k} of {self.working}" + (f" + {self.idle} idle" if self.idle else "")

    @property
    def working(self) -> int:
        """Number of experts that have weights."""
        return self.count - self.idle

    @property
    def here(self) -> range:
        """The experts that the device has."""
        return range(self.first, self.first + (self.held or self.working))

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.count:
            raise ValueError(f"expected each token to choose 1 to {self.count} experts, found {self.top_k}")
        if not 0 <= self.idle < self.count:
            raise ValueError(f"expected fewer idle experts than {self.count}, found {self.idle}")


class Routing(Protocol):
    """Choice of experts by tokens: a function of sequence, position and layer, and of nothing else.

    It may also have `counted(layers, members, experts, count)`, which counts as `counted_of` does, by compiled code.
    """

    def choose(self, layer: IntArray, sequence: IntArray, position: IntArray, experts: Experts) -> IntArray:
        """Experts of tokens, [token, top_k], counted from 0 and distinct in each row. layer, sequence, position: [token]."""
        ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of some steps: vectors [token]. lane: the step that a token is in, ascending, below `lanes`."""

    sequence: IntArray
    position: IntArray
    lane: IntArray
    lanes: int

    @classmethod
    def of(cls, sequence: IntArray, context: IntArray, query: IntArray) -> Tokens:
        """Tokens that members [member, lane] of steps feed in: `query` each, after `context` others."""
        count = query.T.ravel()
        first = np.cumsum(count) - count
        return cls(
            sequence=np.repeat(sequence.T.ravel(), count),
            position=np.arange(int(count.sum())) + np.repeat(context.T.ravel() - first, count),
            lane=np.repeat(np.arange(query.shape[1]), query.sum(axis=0)),
            lanes=query.shape[1],
        )

    def of_share(self, share: int, shares: int) -> Tokens:
        """The tokens of each step that one of several devices has, where they are divided over these: see `share_of`."""
        many = np.bincount(self.lane, minlength=self.lanes)
        place = np.arange(len(self.lane)) - (np.cumsum(many) - many)[self.lane]
        first, last = (share_of(many, each, shares)[self.lane] for each in (share, share + 1))
        own = (first <= place) & (place < last)
        return Tokens(self.sequence[own], self.position[own], self.lane[own], self.lanes)


@small
@kernel
def share_of(tokens: Any, share: Any, shares: Any) -> Any:
    """The first of the tokens of a step that is in a share: shares are of tokens that follow, the first ones are larger."""
    return -(-(tokens * share) // shares)


def counted(
    routing: Routing | None, experts: Experts, layers: Sequence[int], tokens: Tokens, count: Count = "distinct"
) -> IntArray:
    """A count of each step in some layers, [layer, lane]."""
    if count == "distinct":
        return distinct(routing, experts, layers, tokens)
    return _of_tokens(routing, experts, layers, tokens, sends=count == "sent")


def _of_tokens(routing: Routing | None, experts: Experts, layers: Sequence[int], tokens: Tokens, *, sends: bool) -> IntArray:
    """Numbers of choices of experts of a device, or if it sends, of tokens of a share that choose some: [layer, lane].

    Without a routing, the largest possible ones.
    """
    layer, own = np.asarray(layers, dtype=np.int64), tokens.of_share(experts.share, experts.shares) if sends else tokens
    most_each = 1 if sends else min(experts.top_k, len(experts.here))
    if routing is None:
        return np.tile(most_each * np.bincount(own.lane, minlength=own.lanes).astype(np.int64), (len(layer), 1))
    result = np.zeros((len(layer), own.lanes), dtype=np.int64)
    most = max(1, _BLOCK // max(1, len(layer) * experts.top_k))
    for start in range(0, len(own.lane), most):
        part = slice(start, min(start + most, len(own.lane)))
        row, token = (grid.ravel() for grid in np.mgrid[: len(layer), part])  # every layer with every token
        chosen = routing.choose(layer[row], own.sequence[token], own.position[token], experts)
        here = ((chosen >= experts.here.start) & (chosen < experts.here.stop)).sum(axis=1)
        np.add.at(result, (row, own.lane[token]), np.minimum(here, most_each))
    return result


def distinct(routing: Routing | None, experts: Experts, layers: Sequence[int], tokens: Tokens) -> IntArray:
    """Number of distinct experts of a device that the tokens of each step choose in some layers: [layer, lane].

    Without a routing, the largest possible number: no two tokens choose the same expert while others are left.
    """
    layer = np.asarray(layers, dtype=np.int64)
    if routing is None:
        most = np.minimum(experts.top_k * np.bincount(tokens.lane, minlength=tokens.lanes), len(experts.here))
        return np.tile(most.astype(np.int64), (len(layer), 1))
    result = np.zeros((len(layer), tokens.lanes), dtype=np.int64)
    most_lanes = max(1, _BLOCK // max(1, len(layer) * experts.count))
    most_tokens = max(1, _BLOCK // max(1, len(layer) * experts.top_k))
    for first in range(0, tokens.lanes, most_lanes):
        last = min(first + most_lanes, tokens.lanes)
        begin, end = np.searchsorted(tokens.lane, (first, last)).tolist()
        chosen_by_some = np.zeros((len(layer), last - first, experts.count), dtype=np.bool_)
        for start in range(begin, end, most_tokens):
            part = slice(start, min(start + most_tokens, end))
            row, token = (grid.ravel() for grid in np.mgrid[: len(layer), part])  # every layer with every token
            chosen = routing.choose(layer[row], tokens.sequence[token], tokens.position[token], experts)
            chosen_by_some[row[:, None], tokens.lane[token][:, None] - first, chosen] = True
        result[:, first:last] = chosen_by_some[:, :, experts.here.start : experts.here.stop].sum(axis=2)
    return result


def counted_of(
    routing: Routing | None, experts: Experts, layers: IntArray, members: IntArray, count: Count = "distinct"
) -> IntArray:
    """As `counted`, of members [lane, member, field]."""
    query = members[:, :, M_QUERY]
    compiled = getattr(routing, "counted", None)
    if compiled is not None and loaded():
        found: IntArray = compiled(layers, members, experts, count)
        return found
    tokens = Tokens.of(members[:, :, M_SEQUENCE].T, members[:, :, M_CONTEXT].T, query.T)
    return counted(routing, experts, layers.tolist(), tokens, count)
