"""The prefix cache: full blocks of the KV cache by what they hold, shared by requests whose tokens begin alike.

A block is known by its content (`sim.serving.contents`) and the group of layers whose keys and values it has. From the end of
the step in which it was filled, other requests find it. Each that holds it counts as a reference; without any it stays in
memory, least recently released first to be evicted where others need its place. A request frees its last block first, so that
beginnings stay longest.

A prompt finds the longest beginning of which all groups have what its next token sees: layers without a window all blocks,
those with a window of W tokens the blocks of the last W - 1 tokens. A block that the window has left is released, not lost.
Of a state there is a copy at the end of a block where a step has ended there; a prompt needs that at the end of what it finds.

With `evicted: tiers` such a block goes to the first tier, unless it is in one still, and is found there; then it is loaded
before the step that needs it. Other requests that find it meanwhile wait for it, too. The first tier keeps a copy of what is
loaded from it, others do not. With a draft model a block holds the cache of both models, and is found once both have filled it.

vLLM shares blocks by the same rules (https://docs.vllm.ai/en/latest/design/prefix_caching/ and
https://docs.vllm.ai/en/latest/design/hybrid_kv_cache_manager/); there a block can be found in the step that fills it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sim.base.units import ceil_div
from sim.machine.kv_cache import BlockGroup
from sim.serving.batching import ResolvedBatching
from sim.serving.blocks import CacheMove, KVBlocks
from sim.serving.cache import CacheUse, TierUse
from sim.serving.contents import Content, Contents
from sim.serving.sequence import Key, SequenceState, Share, Shares
from sim.serving.tiers import Tiers
from sim.workload.requests import Request


@dataclass(slots=True)
class SharedBlocks(KVBlocks):
    """Blocks of a KV cache with a prefix cache. used: bytes that sequences hold. kept: bytes of blocks that none holds.

    A block that several hold counts once: it is counted apart from what each has for itself. Windows need more care, because a
    sequence has blocks reserved that it will take when its window has left others. So a block that it has filled, or was the
    only one to find, counts within what it has reserved; if others find it meanwhile, it is counted apart as well, since they
    may hold it when that sequence has already taken another in its place.

    asked, hits: tokens of prompts that were looked up, and found. evicted: blocks. tiers: blocks in each tier; there are none
    where what is evicted is lost. fetched: tokens found in each.
    """

    asked: int = 0
    hits: int = 0
    evicted: int = 0
    kept: int = 0
    tiers: Tiers[Key] = field(init=False)
    fetched: list[int] = field(init=False)
    _contents: Contents = field(init=False)
    _holders: dict[Key, int] = field(default_factory=dict)  # of blocks that can be found: sequences that hold each as `apart`
    _reserved: set[Key] = field(default_factory=set)  # those that count within what a sequence has reserved
    _free: dict[Key, int] = field(default_factory=dict)  # bytes of those that none holds, least recently released first
    _prompts: dict[int, tuple[SequenceState, list[SequenceState]]] = field(default_factory=dict)  # by group, and its samples
    _coming: dict[Key, CacheMove] = field(default_factory=dict)  # blocks that are on their way from a tier

    def __post_init__(self) -> None:
        self._contents = Contents(self.batching.layout.block)
        self.tiers = Tiers(self.batching.tiers if self.batching.settings.kv.spills else (), lossy=True)
        self.fetched = [0] * len(self.tiers.capacity)

    @property
    def use(self) -> CacheUse:
        of_tiers = zip(self.fetched, self.tiers.taken, self.tiers.evicted, strict=True)
        return CacheUse(self.asked, self.hits, self.evicted, tuple(TierUse(*each) for each in of_tiers))

    @property
    def _groups(self) -> tuple[BlockGroup, ...]:
        return self.batching.layout.block_groups

    def admit(self, sequence: SequenceState, tokens: int, *, leave: int = 0) -> bool:
        """Allocate blocks up to so many tokens, of which those are found that are cached; these it need not prefill.

        leave: bytes that are left for others. Returns False, and changes nothing, if they do not fit.
        """
        found = self._found(sequence)
        hits = len(found) * self.batching.layout.block
        shares = [self._shares(g, sequence.cached + hits, found) for g in range(len(self._groups))]
        placed = sum(each.size for of in shares for each in of.blocks if each.apart and not self._holders.get(each.key))
        if not self.fits(placed + self._reserve(shares, tokens, sequence.pending - hits) + leave):
            return False
        if sequence.pending:
            self.asked += sequence.cached + sequence.pending
        self.hits += hits
        sequence.shares, sequence.filled = shares, len(found)
        sequence.cached, sequence.pending = sequence.cached + hits, sequence.pending - hits
        sequence.drafted += hits
        self.used += placed
        fetched = self._take(sequence)
        grown = self.grow(sequence, tokens, leave=leave)
        for tier, keys in sorted(fetched.items()):
            many = len(keys) * self.batching.layout.block
            self.fetched[tier] += many
            self._coming |= dict.fromkeys(keys, self.move("fetch", tier, sequence, many))
        return grown

    def moved(self, move: CacheMove) -> None:
        KVBlocks.moved(self, move)
        if move.swap == "fetch":
            self._coming = {key: coming for key, coming in self._coming.items() if coming is not move}

    def grow(self, sequence: SequenceState, tokens: int, *, leave: int = 0) -> bool:
        if not KVBlocks.grow(self, sequence, tokens, leave=leave):
            return False
        self._evict(sequence)
        return True

    def own(self, sequence: SequenceState, allocated: int) -> int:
        return self._reserve(sequence.shares, allocated, 0 if sequence.shared else sequence.pending)

    def allocate_samples(self, samples: Sequence[SequenceState]) -> bool:
        """Allocate everything that the samples of a prompt will ever hold; returns False if it does not fit.

        One more sequence, which is in no step, holds the full blocks of the prompt for all of them, until the last ends.
        """
        first, request, block = samples[0], samples[0].request, self.batching.layout.block
        full = (request.context + request.prompt) // block
        tokens = max(request.final, request.context + request.prompt)
        each = self._reserve([Shares(full) for _ in self._groups], tokens, 0)
        if not self.admit(first, full * block, leave=each * len(samples)):
            return False
        prompt = replace(first)
        for sample in samples:
            sample.shared, sample.allocated, sample.held, sample.filled = request.context + request.prompt, tokens, each, full
            sample.shares = [Shares(full) for _ in self._groups]
        self.used += each * len(samples)
        self._evict(first)
        self._prompts[request.group] = prompt, list(samples)
        return True

    def filled(self, sequences: Iterable[SequenceState]) -> None:
        """Let others find the blocks that sequences have filled, but those that have been there already."""
        for sequence in sequences:
            # A block has the cache of the draft model, too, which takes tokens in after the model has.
            cached = min(sequence.cached, sequence.drafted) if self.batching.drafts else sequence.cached
            if sequence.request.group in self._prompts:
                self._fill(self._prompts[sequence.request.group][0], cached)
            self._fill(sequence, cached)

    def free_unseen(self, sequences: Sequence[SequenceState]) -> None:
        for sequence in sequences:
            self._leave(sequence)
        for prompt, samples in self._prompts.values():
            prompt.cached = min(sample.cached for sample in samples if not sample.forked)
            self._leave(prompt)

    def free(self, sequence: SequenceState) -> None:
        self.used -= sequence.held
        for each in sorted((each for of in sequence.shares for each in of.blocks), key=lambda each: -each.number):
            self._release(sequence.shares[each.group], (each,))
        sequence.held = sequence.allocated = sequence.filled = 0
        sequence.shares = []
        prompt, samples = self._prompts.get(sequence.request.group, (sequence, []))
        if sequence in samples:
            samples.remove(sequence)
            if not samples:
                del self._prompts[sequence.request.group]
                self.free(prompt)

    def steady(self, sequence: SequenceState) -> int:
        fills = self.batching.layout.block - sequence.cached % self.batching.layout.block
        return min([fills, *(group.leaves(sequence.cached) for group in self._groups if group.window is not None)])

    def _fill(self, sequence: SequenceState, cached: int) -> None:
        """Let others find the blocks of a sequence that are full with so many cached tokens."""
        full = min(cached, sequence.allocated) // self.batching.layout.block
        if full <= sequence.filled:
            return
        for i in range(sequence.filled, full):
            content = self._contents.of(sequence.number, sequence.request, i)
            for g, (group, shares) in enumerate(zip(self._groups, sequence.shares, strict=True)):
                if i < shares.first or (g, content) in self._holders:
                    continue
                if not group.is_state or cached == (i + 1) * group.block:
                    self._publish(sequence, self._share((g, content), apart=group.window is None))
        sequence.filled = full

    def _leave(self, sequence: SequenceState) -> None:
        """Release the blocks of a sequence that no later query sees, and what it does not need after all."""
        for group, shares in zip(self._groups, sequence.shares, strict=True):
            first = group.seen(sequence.cached)
            if first > shares.first:
                shares.first = first
                left = list[Share]()
                while shares.blocks and shares.blocks[0].number < first:
                    left.append(shares.blocks.popleft())
                self._release(shares, reversed(left))
        more = self.own(sequence, sequence.allocated) - sequence.held
        sequence.held += more
        self.used += more
        self._evict(sequence)

    def _found(self, sequence: SequenceState) -> list[Content]:
        """The leading blocks of a sequence that it need not compute; its last token is always computed."""
        contents, found = list[Content](), 0
        if sequence.cached:
            return contents
        block, groups = self.batching.layout.block, self._groups
        runs = [0] * len(groups)  # blocks of each group that are there, and have none before them that is not
        for i in range((sequence.pending - 1) // block):
            contents.append(content := self._contents.of(sequence.number, sequence.request, i))
            whole = True
            for g, group in enumerate(groups):
                runs[g] = runs[g] + 1 if (g, content) in self._holders or self.tiers.tier_of((g, content)) >= 0 else 0
                if runs[g] < i + 1 - group.seen((i + 1) * block):
                    if group.window is None:
                        return contents[:found]
                    whole = False
            found = i + 1 if whole else found
        return contents[:found]

    def _shares(self, g: int, cached: int, found: Sequence[Content]) -> Shares:
        """The blocks of a group that a sequence with so many cached tokens holds of those that it has found."""
        first = self._groups[g].seen(cached)
        shares = Shares(first)
        for content in found[first:]:
            key = g, content
            apart = self._groups[g].window is None or bool(self._holders.get(key)) or key in self._reserved
            self._hold(shares, self._share(key, apart=apart))
        return shares

    def _reserve(self, shares: Sequence[Shares], allocated: int, pending: int) -> int:
        """Bytes that a sequence has for itself on its way to so many tokens, of which so many are to be prefilled."""
        end, most = ceil_div(allocated, self.batching.layout.block), self.batching.at_once(pending)
        return sum(group.held(of.first, end, most, apart=of.apart) for group, of in zip(self._groups, shares, strict=True))

    def _share(self, key: Key, *, apart: bool) -> Share:
        """A block as a sequence holds it."""
        group, number = self._groups[key[0]], key[1].number
        return Share(key, apart, group.bytes(number, number + 1) if group.size is None else group.size)

    def _hold(self, shares: Shares, share: Share) -> None:
        """Add a block to those that a sequence holds."""
        shares.blocks.append(share)
        if share.apart:
            shares.apart += share.size

    def _take(self, sequence: SequenceState) -> dict[int, list[Key]]:
        """Have a sequence hold the blocks that it has found; returns those that are loaded, by tier."""
        self._await(sequence)
        fetched = defaultdict[int, list[Key]](list)
        for each in (each for of in sequence.shares for each in of.blocks):
            if each.key not in self._holders:
                fetched[self._fetch(each.key)].append(each.key)
                self._holders[each.key] = 0
            self.kept -= self._free.pop(each.key, 0)
            self._count(each)
        return fetched

    def _count(self, share: Share) -> None:
        """Count a block for one more sequence."""
        if share.apart:
            self._holders[share.key] += 1
        else:
            self._reserved.add(share.key)

    def _publish(self, sequence: SequenceState, share: Share) -> None:
        """Let others find a block that a sequence has filled."""
        self._holders[share.key] = 0
        self._count(share)
        self._hold(sequence.shares[share.group], share)
        if share.apart:
            sequence.held -= share.size

    def _release(self, shares: Shares, left: Iterable[Share]) -> None:
        """Have a sequence no longer hold some blocks, which it has left in this order."""
        for share in left:
            key, size, holders = share.key, share.size, self._holders[share.key]
            if share.apart:
                holders -= 1
                self._holders[key] = holders
                shares.apart -= size
                self.used -= 0 if holders else size
            else:
                self._reserved.remove(key)
            if not holders and key not in self._reserved:
                self._free[key] = size
                self.kept += size

    def _await(self, sequence: SequenceState) -> None:
        """Have a sequence wait for blocks that it has found, and that are on their way for another."""
        keys = (each.key for of in sequence.shares for each in of.blocks)
        for move in {id(move): move for key in keys if (move := self._coming.get(key)) is not None}.values():
            move.others.append(sequence)
            sequence.moving += 1

    def _fetch(self, key: Key) -> int:
        """Take note that a block is loaded from its tier; returns that."""
        tier = self.tiers.tier_of(key)
        if tier:
            return self.tiers.take(key)
        self.tiers.touch(key)
        return tier

    def _evict(self, sequence: SequenceState) -> None:
        """Evict blocks that no sequence holds until all fit. sequence: the one that takes their place."""
        capacity = self.batching.capacity
        if capacity is None or self.used + self.kept <= capacity:
            return
        spilled = Counter[int]()
        while self.used + self.kept > capacity:
            key = next(iter(self._free))
            size = self._free.pop(key)
            self.kept -= size
            del self._holders[key]
            self.evicted += 1
            if self.tiers.tier_of(key) >= 0:
                self.tiers.touch(key)
            else:
                spilled.update(move.tier for move in self.tiers.put(key, size) or ())
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
    layout, held, shared = batching.layout, 0, set[Key]()
    contents = Contents(layout.block)
    for number, (request, tokens) in enumerate(members):
        cached = 0 if batching.settings.kv.full == "wait" else tokens - 1  # else blocks are allocated as they are needed
        held += layout.held_in_all(cached, tokens, 1)
        if batching.settings.kv.prefix_cache:
            of_prompt = [contents.of(number, request, i) for i in range(min(request.prompt - 1, tokens) // layout.block)]
            for g, group in enumerate(layout.block_groups):
                if group.is_state:  # each has one of its own
                    continue
                keys = {(g, content) for content in of_prompt[group.seen(tokens) :]}
                held -= sum(group.bytes(content.number, content.number + 1) for _, content in keys & shared)
                shared |= keys
        yield held
