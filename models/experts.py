"""Mixture of experts: how many distinct experts the tokens of a step choose.

The weights of an expert are read once in a step, however many of its tokens choose it. So the weight bytes of a step's
expert ops are those of the distinct experts that its tokens choose, while the arithmetic is that of every choice. With
T tokens that each choose k of E experts evenly, the expected number of distinct ones is E (1 - (1 - k/E)^T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sim.base.kernel import loaded

IntArray = npt.NDArray[np.int64]

#: The first columns of a table of members [lane, member, field]: sequence, tokens in its cache, tokens that it feeds in.
M_SEQUENCE, M_CONTEXT, M_QUERY = range(3)

#: Largest numbers of choices, and of marks of (layer, step, expert), in memory at once.
_BLOCK = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The experts of one op. count: E. top_k: how many each token chooses. bytes: weight bytes of one expert.

    first, held: those that the device of the op has, where they are dealt out to several; held is 0 if it has all.
    """

    count: int
    top_k: int
    bytes: int
    first: int = 0
    held: int = 0

    @property
    def here(self) -> range:
        """The experts that the device has."""
        return range(self.first, self.first + (self.held or self.count))

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.count:
            raise ValueError(f"expected each token to choose 1 to {self.count} experts, found {self.top_k}")


class Routing(Protocol):
    """Choice of experts by tokens: a function of sequence, position and layer, and of nothing else.

    It may also have `distinct(layers, members, experts)`, which counts as `distinct_of` does, by compiled code.
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


def distinct_of(routing: Routing | None, experts: Experts, layers: IntArray, members: IntArray) -> IntArray:
    """Number of distinct experts of a device [layer, lane] that members [lane, member, field] choose."""
    query = members[:, :, M_QUERY]
    if routing is None:
        most = np.minimum(experts.top_k * query.sum(axis=1), len(experts.here))
        return np.tile(most, (len(layers), 1))
    compiled = getattr(routing, "distinct", None)
    if compiled is not None and loaded():
        found: IntArray = compiled(layers, members, experts)
        return found
    tokens = Tokens.of(members[:, :, M_SEQUENCE].T, members[:, :, M_CONTEXT].T, query.T)
    return distinct(routing, experts, layers.tolist(), tokens)
