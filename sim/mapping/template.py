"""Templates: the items of a graph (ops or tasks) in blocks that are repeated, by index arithmetic on whole columns.

In program order a step alternates between items of each member and items that serve all members:

    segment 0                 segment 1                 ...
    [m0 m0][m1 m1][m2 m2] s   [m0][m1][m2] s s          m: a block of a member's own items, s: an item that is shared

Where devices have members of their own, what serves the members of one device are blocks, too, which a step has or has not:

    [m0 m0][m1 m1][m2 m2]   [d0 d0][d1 d1] s            d: a block of a device, behind those of members

A template has few members, each of which represents all that are like it. The graph of a step has, for each member, a copy
of the block and the edges of its representative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


#: Place of one end of an edge: a shared item, an item of the member itself, or of the member that it shares a prompt with, or
#: of its device.
SHARED, OWN, OTHER, HOME = range(4)
_NONE = np.zeros(0, dtype=np.int64)


class Edges(NamedTuple):
    """Edges of a template that are repeated together: for each member that is like `member`, or once if that is -1.

    into, of: the kinds of their ends (`SHARED`, `OWN`, `OTHER`, `HOME`). group, offset, input_group, input_offset: places of
    consumers and sources; offsets are [edge, 1].
    """

    member: int
    into: int
    of: int
    group: IntArray
    offset: IntArray
    input_group: IntArray
    input_offset: IntArray


class Blocks:
    """The items of a template.

    owner: int64 [item], the member it belongs to, below 0 if it is shared. segment: int64 [item], ascending.
    inputs, start: the items that each needs, CSR, ascending. plain: number of members at the front that share no prompt; the
    edges of the others show whose prompt they share. members: number of owners that are members; those after them are devices.
    """

    def __init__(
        self, owner: IntArray, segment: IntArray, inputs: npt.NDArray[np.integer], start: npt.NDArray[np.integer], plain: int,
        members: int,
    ) -> None:  # fmt: skip
        is_own = owner >= 0  # [item]
        items = np.arange(len(owner))
        own_items, self.shared = items[is_own], items[~is_own]
        own_member = owner[is_own]  # [own item]
        # [own item]: its segment, numbered among the segments in which members have items
        _, own_segment = np.unique(segment[is_own], return_inverse=True)
        shape = int(owner.max(initial=-1)) + 1, int(own_segment.max(initial=-1)) + 1
        # A block holds the items of a member in a segment: their number and the first of them, [member, segment].
        self.count = np.zeros(shape, dtype=np.int64)
        np.add.at(self.count, (own_member, own_segment), 1)
        self.first = np.full(shape, len(owner))
        np.minimum.at(self.first, (own_member, own_segment), own_items)
        begins = self.first.min(axis=0, initial=len(owner))  # [segment]: the first item of its blocks
        self.shared_before = np.searchsorted(self.shared, begins)  # [segment]
        # Place of an item: its group (a block, or all shared items before one segment) by segment, and its offset there.
        self.group = np.empty(len(owner), dtype=np.int64)
        self.offset = np.empty(len(owner), dtype=np.int64)
        self.group[is_own] = own_segment
        self.offset[is_own] = own_items - self.first[own_member, own_segment]
        self.group[~is_own] = np.searchsorted(begins, self.shared)
        self.offset[~is_own] = np.arange(len(self.shared))
        self.edges = self._edges(owner, inputs.astype(np.int64), start.astype(np.int64), plain, members)

    def _edges(self, owner: IntArray, inputs: IntArray, start: IntArray, plain: int, members: int) -> list[Edges]:
        """The edges of each member, and those between shared items, by the kinds of their ends."""
        consumer = np.repeat(np.arange(len(owner)), np.diff(start))  # [edge], as are all below
        source, into = owner[inputs], owner[consumer]
        chosen = [(-1, SHARED, SHARED, (into < 0) & (source < 0))]
        for member in range(int(owner.max(initial=-1)) + 1):
            mine, others = into == member, (source >= 0) & (source != member)
            chosen.append((member, OWN, SHARED, mine & (source < 0)))
            chosen.append((member, OWN, OWN, mine & (source == member)))
            if member < members:
                chosen.append((member, OWN, OTHER, mine & others & (source < members)))
            chosen.append((member, OWN, HOME, mine & others & (source >= members)))
            if member < plain:
                chosen.append((member, HOME, OWN, (into >= members) & (source == member)))
            if member < plain or member >= members:
                chosen.append((member, SHARED, OWN, (into < 0) & (source == member)))
        places = (self.group[consumer], self.offset[consumer, None], self.group[inputs], self.offset[inputs, None])
        return [
            Edges(member, consumer_at, source_at, *(each[mask] for each in places))
            for member, consumer_at, source_at, mask in chosen
            if mask.any()
        ]

    def repeat(self, block: IntArray, like: IntArray, leader: IntArray, home: IntArray) -> Repeated:
        """The items of a step. All arguments are int64 [member]; devices that have members come after all members.

        block: the member of the template with the same blocks. like: the one with the same edges. leader: the member of the
        step that loads the context they share, home: the place of its device; -1 if there is none.
        """
        members, segments = len(block), self.count.shape[1]
        size = self.count[block].T.ravel()  # [segment x member], in program order
        before = np.cumsum(size) - size
        total = int(size.sum())
        # begin [segment, member]: where a block begins; in the last column, by how much the items before shift shared ones.
        begin = np.zeros((segments + 1, members + 1), dtype=np.int64)
        begin[:-1, :-1] = before.reshape(segments, members) + self.shared_before[:, None]
        begin[1:, -1] = np.cumsum(size.reshape(segments, members).sum(axis=1))
        source = np.empty(len(self.shared) + total, dtype=np.int64)
        member = np.full(len(source), -1, dtype=np.int64)
        source[begin[self.group[self.shared], -1] + self.offset[self.shared]] = self.shared
        counting = np.arange(total)  # [own item], as are all below
        place = counting + np.repeat(begin[:-1, :-1].ravel() - before, size)
        within = counting - np.repeat(before, size)
        source[place] = np.repeat(self.first[block].T.ravel(), size) + within
        member[place] = np.repeat(np.tile(np.arange(members), segments), size)
        return Repeated(self, begin, source, member, block, like, leader, home)


@dataclass(frozen=True, slots=True, eq=False)
class Repeated:
    """The items of a step.

    begin: int64 [segment, member], see `Blocks.repeat`. source: int64 [item], the item of the template. member: int64 [item],
    the member it belongs to, -1 if it is shared. block, like, leader, home: int64 [member], as there.
    """

    blocks: Blocks
    begin: IntArray
    source: IntArray
    member: IntArray
    block: IntArray
    like: IntArray
    leader: IntArray
    home: IntArray

    def __len__(self) -> int:
        return len(self.source)

    def of(self, blocks: Blocks) -> Repeated:
        """The same repetition of other items."""
        return replace(self, blocks=blocks)

    def place(self, items: npt.NDArray[np.integer], member: IntArray | None = None) -> IntArray:
        """Places in the step of items of the template. member: [item], -1 for shared items; None: all are shared."""
        column = -1 if member is None else member
        places: IntArray = self.begin[self.blocks.group[items], column] + self.blocks.offset[items]
        return places

    def edges(self) -> tuple[IntArray, IntArray]:
        """All edges, in no order: consumers and sources."""
        consumers, sources = [], []
        shared = np.array([-1])
        for edges in self.blocks.edges:
            # Of each edge [edge, 1] one for each member like that of the template [1, member].
            members = np.flatnonzero((self.like if edges.into == OWN else self.block) == edges.member)
            columns = {SHARED: shared, OWN: members, OTHER: self.leader[members], HOME: self.home[members]}
            if edges.member < 0:
                members = shared
            into = self.begin[edges.group][:, columns[edges.into]] + edges.offset
            of = self.begin[edges.input_group][:, columns[edges.of]] + edges.input_offset
            shape = (len(into), len(members))
            consumers.append(np.broadcast_to(into, shape).ravel())
            sources.append(np.broadcast_to(of, shape).ravel())
        return np.concatenate([_NONE, *consumers]), np.concatenate([_NONE, *sources])


def rows(row: IntArray, value: IntArray, count: int) -> tuple[Int32Array, Int32Array]:
    """Values below `count`, sorted by row and value, and where each of `count` rows begins."""
    bits = count.bit_length()
    key = (row << bits) | value
    if 2 * bits < 32:
        key = key.astype(np.int32)  # sorted twice as fast
    key.sort()
    start = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(np.bincount(row, minlength=count), out=start[1:])
    return (key & ((1 << bits) - 1)).astype(np.int32), start


def first_of_each(key: IntArray, bound: int) -> tuple[IntArray, IntArray]:
    """Group non-negative keys below `bound`, as `np.unique`: the first place of each distinct key, and the group of each."""
    if bound > 16 * len(key) + 65_536:  # a table of all keys would be sparse
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        return first, which
    table = np.full(bound, len(key))
    np.minimum.at(table, key, np.arange(len(key)))
    present = np.flatnonzero(table < len(key))
    first = table[present]
    table[present] = np.arange(len(present))
    return first, table[key]
