"""Pages of the KV cache: the bytes that a sequence holds, from its tokens and the windows of the layers.

A page holds the keys and values of `block` successive tokens, in all layers that keep equally many tokens. Layers without a
window keep a page until the sequence ends. Layers with a window of W tokens keep what later queries see: the last W - 1
tokens in the cache, and new ones as they are fed in; a page is freed at the end of the step after which no later query sees
any of it. vLLM does the same (`SlidingWindowManager` in vllm/v1/core/single_type_kv_cache_manager.py; its design is described
at https://docs.vllm.ai/en/latest/design/hybrid_kv_cache_manager/), but makes the pages of all groups equally large.

Compressed caches (see `models.compressed`) keep a row for each m tokens: the pages of T tokens hold floor(T / m) rows. What
waits for the end of a window is of a fixed size, as a state is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from models.graph import MONOMIALS, QUANTITIES, IntArray, OpGraph
from models.masks import CHUNKED, CLOSED, ROWS, Mask
from sim.base.memo import Memo
from sim.base.units import ceil_div

KV_READ, KV_WRITE, STATE_WRITE = (QUANTITIES.index(name) for name in ("kv_read", "kv_write", "state_write"))


class LayerGroup(NamedTuple):
    """Layers that keep equally many tokens.

    window: tokens that a query sees, its own included; None if it sees all; 0 of a state, whose size is fixed. bytes: of one
    row, or of the state, in all of these layers. rate: tokens that a row stands for, more than one in a compressed cache; a row
    is made when the last of them comes.
    """

    window: int | None
    bytes: int
    rate: int = 1

    @property
    def token_bytes(self) -> int:
        """Bytes that a token appends, on average, rounded up."""
        return ceil_div(self.bytes, self.rate)


class BlockGroup(NamedTuple):
    """Layers that keep the same blocks, and free them together.

    block: tokens in one. window: as in `LayerGroup`. size: bytes of a block; None where blocks differ, because a row of a
    compressed cache is for several tokens.

    Blocks of a state are its copies: block i has the state after the tokens of all blocks up to i, and a step reads the copy
    of the token before it and writes that of its last token.
    """

    block: int
    window: int | None
    layers: tuple[LayerGroup, ...]
    size: int | None

    @classmethod
    def of(cls, block: int, layers: tuple[LayerGroup, ...]) -> BlockGroup:
        """The group of layers that have the same window."""
        window, row = layers[0].window, sum(of.bytes for of in layers)
        alike = all(of.rate == 1 for of in layers)
        return cls(block, window, layers, (row if window == 0 else block * row) if alike else None)

    @property
    def is_state(self) -> bool:
        """Whether its blocks are copies of a state."""
        return self.window == 0

    def bytes(self, first: int, end: int) -> int:
        """Bytes of the blocks from `first` to the one before `end`."""
        if end <= first:
            return 0
        if self.size is not None:
            return (end - first) * self.size
        first, end = first * self.block, end * self.block
        return sum(of.bytes * (end // of.rate - first // of.rate) for of in self.layers)

    @property
    def reach(self) -> int | None:
        """Tokens that a query sees, its own included; None if it sees all. Of a state it needs that of the token before it."""
        return 2 if self.is_state else self.window

    def seen(self, cached: int) -> int:
        """The first block that the query after so many cached tokens sees."""
        return 0 if self.reach is None else max(0, cached + 1 - self.reach) // self.block

    def leaves(self, cached: int) -> int:
        """Tokens more than `cached`, the query after which no longer sees the first block that it sees now; for windows."""
        return (self.seen(cached) + 1) * self.block - (cached + 1 - (self.reach or 0))

    def most(self, tokens: int) -> int | None:
        """Most blocks that steps of no more than so many new tokens see, wherever they begin; None if that has no limit."""
        if self.window is None:
            return None
        if self.is_state:
            return 2  # the one that is read and the one that is written
        # A step has the window - 1 tokens that its first query sees, and its new ones; these may begin at the end of a block.
        return ceil_div(self.window + tokens - 2, self.block) + 1

    def held(self, first: int, end: int, tokens: int, *, apart: int = 0) -> int:
        """Bytes of blocks from `first` to `end` that steps of no more than so many new tokens have at most at a time.

        apart: bytes of some of these blocks that are counted elsewhere.
        """
        held, most = self.bytes(first, end) - apart, self.most(tokens)
        return held if most is None else min(held, self.bytes(0, most))


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The layout of a paged KV cache. block: tokens in a page. state: bytes that a sequence has beside, whatever its length.

    block_groups: the groups of layers, those together that have the same window.
    """

    block: int
    groups: tuple[LayerGroup, ...]
    state: int = 0
    block_groups: tuple[BlockGroup, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        windows = dict.fromkeys(group.window for group in self.groups)
        by_window = (tuple(group for group in self.groups if group.window == window) for window in windows)
        object.__setattr__(self, "block_groups", tuple(BlockGroup.of(self.block, layers) for layers in by_window))

    @property
    def token_bytes(self) -> int:
        """Bytes that one token appends, in all layers."""
        return sum(group.token_bytes for group in self.groups if group.window != 0)

    @property
    def keeps_states(self) -> bool:
        """Whether copies of a state are kept, at ends of blocks."""
        return any(group.is_state for group in self.block_groups)

    @property
    def windowed(self) -> bool:
        """Whether some layers free pages while a sequence goes on."""
        return any(group.window is not None for group in self.groups)

    def held(self, cached: int, tokens: int, most: int, *, after: int = 0) -> int:
        """Bytes of the pages that a sequence holds at most, on its way from `cached` tokens to `tokens` in its cache.

        most: new tokens in any step of that way. after: leading tokens whose full pages are left out. With the tokens of one
        step, `tokens - cached <= most`, it holds exactly that.
        """
        first, end = after // self.block, ceil_div(tokens, self.block)
        return sum(group.held(max(first, group.seen(cached)), end, most) for group in self.block_groups)

    def held_in_all(self, cached: int, tokens: int, most: int, *, after: int = 0) -> int:
        """Bytes of the pages of a sequence, as `held`, and of its state, which it has from its first token on."""
        return self.held(cached, tokens, most, after=after) + (self.state if tokens else 0)


def state_bytes(ops: OpGraph) -> int:
    """Bytes of the states of one sequence, in all layers, and of the buffers of its compressed caches.

    ops: the step of one sequence that decodes one token.
    """
    return int(ops.costs(0)[STATE_WRITE].sum()) + sum(of.buffer for of in _compressed(ops).values())


def kept_groups(ops: OpGraph) -> tuple[LayerGroup, ...]:
    """The groups of layers with a KV cache, and one of those with a state, if there are any."""
    state = state_bytes(ops)
    return layer_groups(ops) + ((LayerGroup(0, state),) if state else ())


#: Groups of layers of earlier runs: those of a sweep share their graphs.
GROUPED: Memo[tuple[LayerGroup, ...]] = Memo(256)


def layer_groups(ops: OpGraph) -> tuple[LayerGroup, ...]:
    """Group the layers that append to the KV cache by window; the one without a window first.

    ops: the step of one sequence that decodes one token. A layer has a window where what it reads stops growing, unless it
    chooses what it reads.
    """
    return GROUPED.of(ops, None, lambda: _grouped(ops))


def _grouped(ops: OpGraph) -> tuple[LayerGroup, ...]:
    by_context = [i for i, (_, _, n) in enumerate(MONOMIALS) if n]
    reads = ops.table[ops.cost_index[KV_READ]]  # [op, piece, term]
    grows = reads[:, :, by_context].any(axis=2)  # [op, piece]
    written: list[int] = ops.costs(0)[KV_WRITE].tolist()
    layer = np.array([op.layer for op in ops.ops], dtype=np.int64)
    chooses = {op.layer for op in ops.ops if op.part == "chosen"}
    sizes = Counter[tuple[int | None, int]]()
    compressed = _compressed(ops)
    for number, of in compressed.items():
        window = _window(grows[layer == number].any(axis=0).tolist(), ops.breaks)
        sizes[window, 1] += of.recent
        sizes[None, of.rate] += of.row
    of_layer = Counter[int]()  # bytes that it writes
    for op, size in zip(ops.ops, written, strict=True):
        of_layer[op.layer] += size
    for number, size in of_layer.items():
        if not size or number in compressed:
            continue
        window = None if number in chooses else _window(grows[layer == number].any(axis=0).tolist(), ops.breaks)
        window = window or _chunk(ops, reads[layer == number])
        sizes[window, 1] += size
    return tuple(
        LayerGroup(window, sizes[window, rate], rate)
        for window, rate in sorted(sizes, key=lambda of: (of[0] is not None, of[0], of[1]))
    )


class _Compressed(NamedTuple):
    """Bytes of a layer with a compressed cache. rate: as in `LayerGroup`. row: of a compressed row, with keys of an indexer.

    recent: of a token in its window. buffer: of what waits for the end of a window of `rate` tokens, and of the one before.
    """

    rate: int
    row: int
    recent: int
    buffer: int


def _compressed(ops: OpGraph) -> dict[int, _Compressed]:
    """The layers that have a compressed cache, from their costs.

    In the first piece a step reads all rows, and all tokens of the window, which begins to lose some at the end of that piece.
    It writes a row of the buffer for each token. When it ends a window it reads the rows of that but its own, and what is kept
    of the one before.
    """
    found: dict[int, _Compressed] = {}
    at = {mask: len(MONOMIALS) + 2 * i for i, mask in enumerate(ops.masks) if mask.kind in (ROWS, CLOSED)}
    if not at:
        return found
    by_layer = {op.layer: i for i, op in enumerate(ops.ops) if op.kind == "kv_load"}
    stores = {op.layer: i for i, op in reversed(list(enumerate(ops.ops))) if op.kind == "kv_store"}  # the first of each layer
    for layer, i in by_layer.items():
        read = ops.table[ops.cost_index[KV_READ, i], 0]  # [term]
        store = stores.get(layer, i)
        for mask, term in at.items():
            if mask.kind == ROWS and (row := int(read[term] + read[term + 1])):
                ends = at.get(Mask(CLOSED, mask.size))
                recent = int(read[[n for n, (_, _, context) in enumerate(MONOMIALS) if context]].sum())
                waits = int(ops.costs(0)[KV_WRITE, store]) - recent
                before = int(read[ends : ends + 2].sum()) - (mask.size - 1) * waits if ends is not None else 0
                found[layer] = _Compressed(mask.size, row, recent, mask.size * waits + before)
    return found


def _chunk(ops: OpGraph, reads: IntArray) -> int | None:
    """Tokens of the chunk that a layer sees, None if it sees no chunks. reads: [op, piece, term] of the layer.

    Its pages are kept as those of a window of as many tokens.
    """
    of_masks = reads[:, :, len(MONOMIALS) :]  # two terms for each mask
    chunks = ((i, mask.size) for i, mask in enumerate(ops.masks) if mask.kind == CHUNKED)
    return next((size for i, size in chunks if of_masks[:, :, 2 * i : 2 * i + 2].any()), None)


def _window(grows: Sequence[bool], breaks: Sequence[int]) -> int | None:
    """The window of a layer, None if it has none. grows: [piece], whether the bytes that it reads grow with the context.

    From `window - 1` tokens on it reads the same. Where it never grows, nothing is known of a window.
    """
    if grows[-1] or not any(grows):
        return None
    return 1 + breaks[max(piece for piece, grown in enumerate(grows) if grown)]
