"""Grids: the shares that an op is cut into, and the shares of another op that a share needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.graph import OpGraph

#: Number of edges between two ops from which a join replaces them (see `sim.mapping.tasks.Links`).
MANY_EDGES = 65_536


@dataclass(frozen=True, slots=True)
class Grid:
    """The cut of an op: heads, each into splits of the keys, each into tiles. Shares are numbered in this order."""

    heads: int = 1
    splits: int = 1
    tiles: int = 1

    def __len__(self) -> int:
        return self.heads * self.splits * self.tiles

    def coordinates(self, share: int) -> tuple[int, int, int]:
        """Head, split and tile of a share."""
        rest, tile = divmod(share, self.tiles)
        return *divmod(rest, self.splits), tile

    def labels(self, share: int) -> tuple[int, int]:
        """The head, and the tile or split, of a share: -1 if the op is not cut that way."""
        head, split, tile = self.coordinates(share)
        return head if self.heads > 1 else -1, split if self.splits > 1 else tile if self.tiles > 1 else -1

    def shares(self, head: int | None, split: int | None, tile: int | None) -> list[int]:
        """The shares at these coordinates; None stands for all."""
        heads, splits, tiles = (
            range(count) if at is None else (at,)
            for at, count in ((head, self.heads), (split, self.splits), (tile, self.tiles))
        )
        return [(h * self.splits + s) * self.tiles + t for h in heads for s in splits for t in tiles]


def shares_needed(ops: OpGraph, consumer: int, producer: int, part: int, grids: Sequence[Grid]) -> list[int]:
    """The shares of the producer that share `part` of the consumer needs: the same head, split and tile where they line up.

    Query heads share a head of the cache in groups of equal size. Where grids do not line up, all shares are needed.
    """
    to, source = grids[consumer], grids[producer]
    if len(source) == 1:
        return [0]
    head, split, tile = to.coordinates(part)
    groups = to.heads == source.heads or (ops.ops[producer].kind == "kv_load" and to.heads % source.heads == 0)
    return source.shares(
        head * source.heads // to.heads if groups else None,
        split if to.splits == source.splits else None,
        tile if to.tiles == source.tiles and ops.ops[consumer].kind == "act" else None,
    )


def is_joined(ops: OpGraph, consumer: int, producer: int, grids: Sequence[Grid]) -> bool:
    """Whether every share of one op needs every share of another, over at least `MANY_EDGES` edges."""
    shares = len(grids[consumer]), len(grids[producer])
    many = min(shares) > 1 and shares[0] * shares[1] > MANY_EDGES
    return many and len(shares_needed(ops, consumer, producer, 0, grids)) == len(grids[producer])
