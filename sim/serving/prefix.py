"""The prefix cache: full blocks of the KV cache by what they hold, shared by requests whose tokens begin alike.

A block is known by its content: its tokens and all tokens before it. From the end of the step in which it was filled, other
requests find it. Each that holds it counts as a reference; without any it stays in memory, least recently released first to be
evicted where others need its place. A request frees its last block first, so that beginnings stay longest.

With `evicted: tiers` such a block goes to the first tier, unless it is in one still, and is found there; then it is loaded
before the step that needs it. Other requests that find it meanwhile wait for it, too. The first tier keeps a copy of what is
loaded from it, others do not. With a draft model a block holds the cache of both models, and is found once both have filled it.

Content is what requests say of it: ids of the blocks of their prompt (`prefix`), or turns of one conversation, each of which
begins with all of the one before. All other tokens are a request's own, which finds them again after it was pre-empted.
vLLM shares blocks by the same rules (https://docs.vllm.ai/en/latest/design/prefix_caching/); there a block can be found in the
step that fills it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sim.base.units import ceil_div
from sim.serving.batching import ResolvedBatching
from sim.serving.blocks import CacheMove, KVBlocks
from sim.serving.cache import CacheUse, TierUse
from sim.serving.sequence import SequenceState
from sim.serving.tiers import Tiers
from sim.workload.requests import Request


@dataclass(slots=True)
class Contents:
    """Keys of blocks of `block` tokens by what they hold: the same key if their tokens, and all before them, are the same.

    Tokens that a request has in its cache when it comes are its own.
    """

    block: int
    _paths: dict[tuple[int, int], int] = field(default_factory=dict)  # (path before it, id) -> path; 0 is the beginning
    _of: dict[int, tuple[int, ...]] = field(default_factory=dict)  # request -> the path to each id of its prefix

    def key(self, number: int, request: Request, i: int) -> Hashable:
        """The key of block i of a request."""
        end = (i + 1) * self.block
        if request.context:
            return ("own", number, i)
        if end <= min(request.prompt, len(request.prefix) * request.prefix_tokens):
            return ("prefix", self._path(number, request)[ceil_div(end, request.prefix_tokens) - 1], i)
        return ("own", number, i) if request.conversation < 0 else ("turns", request.conversation, i)

    def _path(self, number: int, request: Request) -> tuple[int, ...]:
        if number not in self._of:
            path, paths = 0, []
            for each in request.prefix:
                path = self._paths.setdefault((path, each), len(self._paths) + 1)
                paths.append(path)
            self._of[number] = tuple(paths)
        return self._of[number]


@dataclass(slots=True)
class SharedBlocks(KVBlocks):
    """Blocks of a KV cache with a prefix cache. used: bytes that sequences hold, shared blocks once.

    The layers keep all tokens, so that a block is `page` bytes. asked, hits: tokens of prompts that were looked up, and found.
    evicted: blocks. tiers: blocks in each tier; there are none where what is evicted is lost. fetched: tokens found in each.
    """

    asked: int = 0
    hits: int = 0
    evicted: int = 0
    tiers: Tiers[Hashable] = field(init=False)
    fetched: list[int] = field(init=False)
    _contents: Contents = field(init=False)
    _holders: dict[Hashable, int] = field(default_factory=dict)  # of blocks that can be found: sequences that hold each
    _free: dict[Hashable, None] = field(default_factory=dict)  # those without holders, least recently released first
    _coming: dict[Hashable, CacheMove] = field(default_factory=dict)  # blocks that are on their way from a tier

    def __post_init__(self) -> None:
        self._contents = Contents(self.batching.layout.block)
        self.tiers = Tiers(self.batching.tiers if self.batching.settings.kv.spills else (), lossy=True)
        self.fetched = [0] * len(self.tiers.capacity)

    @property
    def use(self) -> CacheUse:
        of_tiers = zip(self.fetched, self.tiers.taken, self.tiers.evicted, strict=True)
        return CacheUse(self.asked, self.hits, self.evicted, tuple(TierUse(*each) for each in of_tiers))

    @property
    def page(self) -> int:
        """Bytes of a block."""
        return self.batching.layout.block * self.batching.layout.token_bytes

    def admit(self, sequence: SequenceState, tokens: int) -> bool:
        """Allocate blocks up to so many tokens, of which those are found that are cached; these it need not prefill.

        Returns False, and changes nothing, if they do not fit.
        """
        found = self._found(sequence)
        placed = sum(self._holders.get(key, 0) == 0 for key in found)  # that no sequence holds, or that are in tiers
        missing = ceil_div(tokens, self.batching.layout.block) - len(found)
        if not self.fits((missing + placed) * self.page):
            return False
        if sequence.pending:
            self.asked += sequence.cached + sequence.pending
        self._await(sequence, found)
        fetched = defaultdict[int, list[Hashable]](list)
        for key in found:
            if key not in self._holders:
                fetched[self._fetch(key)].append(key)
            self._holders[key] = self._holders.get(key, 0) + 1
            self._free.pop(key, None)
        self.used += placed * self.page
        block = self.batching.layout.block
        hits = len(found) * block
        self.hits += hits
        sequence.shares, sequence.filled = found, len(found)
        sequence.cached, sequence.pending = sequence.cached + hits, sequence.pending - hits
        sequence.drafted += hits
        grown = self.grow(sequence, tokens)
        for tier, keys in sorted(fetched.items()):
            tokens = len(keys) * block
            self.fetched[tier] += tokens
            self._coming |= dict.fromkeys(keys, self.move("fetch", tier, sequence, tokens))
        return grown

    def moved(self, move: CacheMove) -> None:
        KVBlocks.moved(self, move)
        if move.swap == "fetch":
            self._coming = {key: coming for key, coming in self._coming.items() if coming is not move}

    def lacks(self, sequence: SequenceState, tokens: int) -> int:
        blocks = ceil_div(max(sequence.allocated, tokens), self.batching.layout.block)
        return (blocks - len(sequence.shares)) * self.page - sequence.held

    def grow(self, sequence: SequenceState, tokens: int, *, leave: int = 0) -> bool:
        if not KVBlocks.grow(self, sequence, tokens, leave=leave):
            return False
        self._evict(sequence)
        return True

    def filled(self, sequences: Iterable[SequenceState]) -> None:
        """Let others find the blocks that sequences have filled, but those that have been there already."""
        for sequence in sequences:
            # A block has the cache of the draft model, too, which takes tokens in after the model has.
            cached = min(sequence.cached, sequence.drafted) if self.batching.drafts else sequence.cached
            full = cached // self.batching.layout.block
            for i in range(sequence.filled, full):
                key = self._contents.key(sequence.number, sequence.request, i)
                if key not in self._holders:
                    self._holders[key] = 1
                    sequence.shares.append(key)
                    sequence.held -= self.page
            sequence.filled = full

    def free(self, sequence: SequenceState) -> None:
        self.used -= sequence.held
        for key in reversed(sequence.shares):
            self._holders[key] -= 1
            if not self._holders[key]:
                self._free[key] = None
                self.used -= self.page
        sequence.held = sequence.allocated = sequence.filled = 0
        sequence.shares = []

    def _found(self, sequence: SequenceState) -> list[Hashable]:
        """The keys of the leading blocks of a sequence that are cached; its last token is always computed."""
        found = list[Hashable]()
        if sequence.cached:
            return found
        for i in range((sequence.pending - 1) // self.batching.layout.block):
            key = self._contents.key(sequence.number, sequence.request, i)
            if key not in self._holders and self.tiers.tier_of(key) < 0:
                break
            found.append(key)
        return found

    def _await(self, sequence: SequenceState, found: Iterable[Hashable]) -> None:
        """Have a sequence wait for blocks that it finds, and that are on their way for another."""
        for move in {id(move): move for key in found if (move := self._coming.get(key)) is not None}.values():
            move.others.append(sequence)
            sequence.moving += 1

    def _fetch(self, key: Hashable) -> int:
        """Take note that a block is loaded from its tier; returns that."""
        tier = self.tiers.tier_of(key)
        if tier:
            return self.tiers.take(key)
        self.tiers.touch(key)
        return tier

    def _evict(self, sequence: SequenceState) -> None:
        """Evict blocks that no sequence holds until all fit. sequence: the one that takes their place."""
        capacity, spilled = self.batching.capacity, Counter[int]()
        while capacity is not None and self.used + len(self._free) * self.page > capacity:
            key = next(iter(self._free))
            del self._free[key], self._holders[key]
            self.evicted += 1
            if self.tiers.tier_of(key) >= 0:
                self.tiers.touch(key)
            else:
                spilled.update(move.tier for move in self.tiers.put(key, self.page) or ())
        for tier, blocks in sorted(spilled.items(), reverse=True):
            if tier < len(self.tiers.capacity):
                self.move("spill", tier, sequence, blocks * self.batching.layout.block)


def blocks_of(batching: ResolvedBatching) -> KVBlocks:
    """The blocks of a loop, with a prefix cache or without."""
    return SharedBlocks(batching) if batching.settings.kv.prefix_cache else KVBlocks(batching)


def bytes_held(batching: ResolvedBatching, members: Sequence[tuple[Request, int]]) -> Iterator[int]:
    """Bytes that the first requests, those and the next one, and so on hold together. members: each with its cached tokens.

    With a prefix cache blocks of a prompt count once that earlier ones of these have, too.
    """
    layout, held, shared = batching.layout, 0, set[Hashable]()
    contents = Contents(layout.block)
    for number, (request, tokens) in enumerate(members):
        held += layout.held_in_all(0, tokens, 1)
        if batching.settings.kv.prefix_cache:
            keys = {contents.key(number, request, i) for i in range(min(request.prompt - 1, tokens) // layout.block)}
            held -= len(keys & shared) * layout.block * layout.token_bytes
            shared |= keys
        yield held
