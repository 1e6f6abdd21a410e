"""Batching: the members of each step, by policy, token budget, prefill chunks, drafts, and capacity of the KV cache.

A `Batcher` is a state machine without a clock. A decode loop asks it for the next step (`next`) and reports when that step has
ended (`ended`). It never looks ahead: its answers depend on the requests that have arrived and the steps that have ended.

1. Requests wait in order of arrival. `static` admits only when the batch has run out; `continuous` before every step.
2. A sequence that decodes feeds in its last token, and with speculation the drafts of the next ones.
   Where a draft model makes these, its steps come before that step (`sim.serving.drafting`).
3. What is left of the token budget goes to prefill, whole or in chunks, in order of admission. A whole prompt that decodes
   leave too little for comes first in the next step, where they take what it leaves; so the first in line waits for one step
   at most. After such a step decodes come first again.
4. The KV cache is paged. `full: wait` allocates blocks for all that a request will ever hold. `recompute` and `swap` admit a
   request as soon as its prompt fits; when a sequence then finds no block for its next tokens, the one admitted last is
   pre-empted: it gives up all of its blocks, to be prefilled again, or swapped out and back in through the channel. Swapped
   caches are in tiers (`sim.serving.tiers`); where none has space, the sequence is prefilled again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sim.base.errors import SimulationError
from sim.mapping.steps import Swap
from sim.serving.arrivals import Arrivals
from sim.serving.batch import Batch, Member
from sim.serving.batching import ResolvedBatching
from sim.serving.blocks import KVBlocks
from sim.serving.drafting import draft_steps
from sim.serving.policies import BATCHING_POLICIES, BatchingPolicy
from sim.serving.prefix import blocks_of
from sim.serving.routed import Front, Inbox
from sim.serving.sequence import SequenceState
from sim.serving.speculation import accepted
from sim.serving.tiers import Tiers
from sim.workload.requests import Request


def loops(
    batching: ResolvedBatching, requests: Sequence[Request], *, concurrency: int | None = None, think: int = 0
) -> list[Batcher]:
    """The loops of a run: one for all requests, or some that take them in turn, or some for each replica, or for each request
    one, or `concurrency` that serve one at a time. Those of a replica alone have the numbers from `batching.first_loop` on.

    think: ps from the end of a request to the next, where `concurrency` limits them.
    """
    if batching.only is not None:
        mine, device = batching.only.requests, batching.only.replica * batching.devices
        return [Batcher(batching, Arrivals(requests, only=mine[i :: batching.loops]), device) for i in range(batching.loops)]
    if batching.replicas > 1:
        return _of_replicas(batching, Front(Arrivals(requests, concurrency=concurrency, think=think), batching))
    if not batching.settings.alone and (count := batching.loops_of(len(requests))) > 1:
        return [Batcher(batching, Arrivals(requests, only=range(i, len(requests), count))) for i in range(count)]
    if not batching.settings.alone:
        return [Batcher(batching, Arrivals(requests, concurrency=concurrency, think=think))]
    if concurrency is not None:
        arrivals = Arrivals(requests, concurrency=concurrency, think=think)
        return [Batcher(batching, arrivals) for _ in range(min(concurrency, len(requests)))]
    return [Batcher(batching, Arrivals(requests, only=(number,))) for number in range(len(requests))]


def stretches(batcher: Batcher, now: int) -> Iterator[tuple[Batch, int]]:
    """The steps of a loop whose requests have all come: the first of those in which its members decode on, and how many.

    Raises SimulationError if requests wait and none can be served.
    """
    while (batch := batcher.next(now)) is not None:
        many = batcher.steps_ahead() + 1
        yield batch, many
        batcher.ended(batch, now, many)
    if batcher.arrivals.next is not None:
        raise SimulationError(f"{len(batcher.waiting)} requests wait and none can be served")


def _of_replicas(batching: ResolvedBatching, front: Front) -> list[Batcher]:
    """The loops of all replicas; after these those that hand over what some have prefilled, each of their batchers in turn."""
    inboxes = front.pool.inboxes if front.pool is front.decoding else [*front.pool.inboxes, *front.decoding.inboxes]
    prefilling = batching.prefilling * batching.loops
    found = [
        Batcher(batching, inbox, i // batching.loops * batching.devices, hands_over=i < prefilling)
        for i, inbox in enumerate(inboxes)
    ]
    for i in range(prefilling):  # micro-batches of a replica hand over in order of their ends
        found[i].prefilled = found[i // batching.loops * batching.loops].prefilled
    return found + [
        HandOver(batching, of.arrivals, of.device, prefilled=of.prefilled)
        for of in found[: prefilling : batching.loops]
        for _ in range(batching.hand_overs)
    ]


@dataclass(slots=True, eq=False)
class Batcher:
    """Makes up the steps of one loop.

    arrivals: may be shared by several loops, each of which serves one request at a time. device: the first one of those that
    its steps run on. hands_over: it prefills; `prefilled` are sequences of its replica whose prompt is still to be sent to
    others that decode, and their batchers. waiting: requests to be admitted, those that were pre-empted first. running:
    admitted sequences, in order of admission. swapped: those whose cache is out of the memory, the first to return first.
    blocks: the KV cache. tiers: where swapped caches are.
    """

    batching: ResolvedBatching
    arrivals: Arrivals | Inbox
    device: int = 0
    hands_over: bool = False
    prefilled: deque[tuple[SequenceState, Batcher]] = field(default_factory=deque)
    waiting: deque[SequenceState] = field(default_factory=deque)
    running: list[SequenceState] = field(default_factory=list)
    swapped: deque[SequenceState] = field(default_factory=deque)
    blocks: KVBlocks = field(init=False)
    tiers: Tiers[SequenceState] = field(init=False)
    _swaps: deque[tuple[SequenceState, Swap, int]] = field(default_factory=deque)  # moves still to be made, each over a link
    _in_step: list[SequenceState] = field(default_factory=list)  # the sequences of the members of the step in progress
    _drafts: deque[Batch] = field(default_factory=deque)  # steps of the draft model still to be made
    _verifying: Batch | None = None  # the step that comes after them
    _last: Batch | None = None  # the step that `next` returned last, unless it was a swap
    _overdue: SequenceState | None = None  # a prompt for which decodes left too little in the last step
    _decoding_on: bool = False  # that step decodes one token of each member, as the one before it did
    _admitted: bool = False  # requests joined before that step
    _policy: BatchingPolicy = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = blocks_of(self.batching)
        self.tiers = Tiers(self.batching.tiers or (None,))
        self._policy = BATCHING_POLICIES.make(self.batching.settings.policy, {})

    def next(self, now: int) -> Batch | None:
        """The next step at this time, None if there is nothing to do before the next arrival."""
        if self._verifying is not None:
            return self._next_of_round()
        self._queue_arrivals(now)
        self._preempt_until_all_fit()
        if not self._swaps:
            self._swap_in()
        if self._swaps:
            return self._swap_step()
        self._admit()
        if self.blocks.moves:
            return self._move_step()
        if self._last is not None and self._decodes_on(self._last):
            self._last, self._decoding_on = self._last.decoded_on(), True
            return self._last
        members, self._in_step = self._compose()
        self._last, self._decoding_on = (
            Batch(members, forks=self._forks(members), device=self.device) if members else None,
            False,
        )
        if self._last is not None and self.batching.drafts:
            self._verifying = self._last
            self._drafts += self._draft(self._last)
            return self._next_of_round()
        return self._last

    def ended(self, batch: Batch, now: int, steps: int = 1) -> None:
        """Take note that the step that `next` returned last has ended.

        steps: that it and those after it have ended in which its members decoded on, so many in all.
        """
        if batch.swap or batch.shape.draft:
            return
        decoded = steps
        if not self._decoding_on:
            self._update(batch)
            decoded -= 1
        if decoded:
            for sequence in self._in_step:
                sequence.generated += decoded
                sequence.cached += decoded
                sequence.decoded += decoded
        self.blocks.filled(self._in_step)
        if steps > 1:
            self._last, self._decoding_on = batch.decoded_on(steps - 1), True
        for sequence in [s for s in self.running if s.generated >= s.request.tokens and not s.forked]:
            self.running.remove(sequence)
            self.blocks.free(sequence)
            self.arrivals.ended(sequence.number, now)
        if self.hands_over:
            for sequence in [s for s in self.running if not s.pending]:
                self.running.remove(sequence)
                if self.unsent(sequence):
                    self.prefilled.append((sequence, self))
                else:
                    self.handed_over(sequence, now)
        if self.batching.layout.windowed:
            self.blocks.free_unseen(self.running)

    def unsent(self, sequence: SequenceState) -> int:
        """Tokens in the cache of a sequence that no step has sent to other replicas."""
        return sequence.cached - (sequence.fed if self.batching.by_layer else 0)

    def handed_over(self, sequence: SequenceState, now: int) -> None:
        """Take note that all of the cache of a sequence has been sent to replicas that decode."""
        assert isinstance(self.arrivals, Inbox)
        self.blocks.free(sequence)
        self.arrivals.hand_over(sequence, now)

    def steps_ahead(self) -> int:
        """After `next`: how many steps would follow that one in which its members, and no others, decode one token each.

        So many do if no request arrives before they begin (`until`). It may be fewer than there are.
        """
        last, settings = self._last, self.batching.settings
        if last is None or self._swaps or self.swapped or self.listens or not self._decodes_on(last):
            return 0
        frees = bool(self.waiting) and self.batching.layout.windowed
        if self.batching.capacity is not None and (settings.kv.full != "wait" or frees):
            return 0  # blocks are allocated or freed meanwhile
        if self.waiting and self._admitted and len(self.running) < self.batching.sequences:
            return 0  # the policy is asked about another batch than before
        many = min(sequence.request.tokens - sequence.generated for sequence in self.running)
        if settings.kv.prefix_cache:  # blocks can be found from the end of the step that fills them
            block = settings.kv.block
            many = min(many, *(block - sequence.cached % block for sequence in self.running))
        return many - 1

    @property
    def next_arrival(self) -> int | None:
        """The time of the next arrival that could give it something to do; None if there is none, or others must end first."""
        return None if self.hands_over and self.waiting else self.arrivals.next

    @property
    def listens(self) -> bool:
        """Whether a step of another loop may bring it requests when it ends, so that it goes on where it has nothing to do."""
        return isinstance(self.arrivals, Inbox) and self.arrivals.more

    @property
    def until(self) -> int | None:
        """The time from which the next step may have other members, because a request has arrived; None if none is to come."""
        return None if self._policy.alone else self.arrivals.next

    def _update(self, batch: Batch) -> None:
        """Update the sequences of the step that has ended."""
        for member, sequence in zip(batch.members, self._in_step, strict=True):
            sequence.generated += member.emitted
            if sequence.pending:
                sequence.pending -= member.query
                sequence.cached += member.query
                sequence.fed += member.query
                if not sequence.pending and sequence.request.group >= 0:
                    self._fork(sequence)
            else:
                sequence.cached += member.emitted
                sequence.decoded += 1
                sequence.drafted = min(sequence.drafted, sequence.cached)

    # Admission

    def _queue_arrivals(self, now: int) -> None:
        while not self._policy.alone or not (self.waiting or self.running):
            number = self.arrivals.take(now)
            if number is None:
                return
            self.waiting.append(self.arrivals.state(number))

    def _admit(self) -> None:
        """Admit requests as the policy chooses them, until it stops or one does not fit."""
        remaining = len(self.running)
        self._admitted = False
        while self.waiting and not self.swapped and len(self.running) < self.batching.sequences:
            chosen = self._policy.choose(self.waiting, remaining)
            if chosen is None:
                return
            samples = self._samples(self.waiting[chosen])
            if len(self.running) + len(samples) > self.batching.sequences or not self._allocate(samples):
                return
            for sequence in samples:
                self.waiting.remove(sequence)
                self.running.append(sequence)
            self._admitted = True

    def _samples(self, chosen: SequenceState) -> list[SequenceState]:
        """All samples of a waiting request's prompt, which are admitted together; a request without others alone."""
        group = chosen.request.group
        return [chosen] if group < 0 else [sequence for sequence in self.waiting if sequence.request.group == group]

    def _allocate(self, samples: list[SequenceState]) -> bool:
        """Allocate the blocks that a request, or all samples of a prompt, need to be admitted; False if they do not fit."""
        first, request = samples[0], samples[0].request
        if request.group < 0:
            whole = self.batching.settings.kv.full == "wait" and not self.hands_over
            return self.blocks.admit(first, request.final if whole else first.cached + (first.pending or self._query(first)))
        if not self.blocks.allocate_samples(samples):
            return False
        for sequence in samples:
            sequence.forked = bool(request.prompt) and sequence is not first
        return True

    # Pre-emption

    def _preempt_until_all_fit(self) -> None:
        """Allocate blocks for the next tokens of all that decode; while they do not fit, pre-empt the one admitted last."""
        if self.batching.settings.kv.full == "wait":
            return
        for sequence in self.running.copy():
            while sequence in self.running and not sequence.pending:
                if self.blocks.grow(sequence, sequence.cached + self._query(sequence)):
                    break
                self._preempt(self.running[-1])

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self.blocks.free(sequence)
        if self.batching.settings.kv.full == "swap" and sequence.cached and self._put(sequence):
            self.swapped.appendleft(sequence)
        else:
            # Prefill all that was cached, and the token to be fed in next, which gives the one after it.
            sequence.pending = sequence.cached + (sequence.pending or 1)
            sequence.cached = sequence.drafted = sequence.fed = 0
            self.waiting.appendleft(sequence)

    def _put(self, sequence: SequenceState) -> bool:
        """Have the cache of a sequence move out to a tier, and colder ones to make space there; False if no tier has any."""
        moves = self.tiers.put(sequence, self.batching.layout.held_in_all(sequence.cached, sequence.cached, 1))
        for move in moves or ():
            self._swaps.append((move.item, "out" if move.item is sequence else "spill", move.tier))
        return moves is not None

    def _swap_in(self) -> None:
        """Have swapped sequences run again, as long as their cache and their next tokens fit."""
        while self.swapped and len(self.running) < self.batching.sequences:
            sequence = self.swapped[0]
            if not self.blocks.grow(sequence, sequence.cached + (sequence.pending or self._query(sequence))):
                break
            self.swapped.popleft()
            self.running.append(sequence)
            self._swaps.append((sequence, "in", self.tiers.take(sequence)))

    def _swap_step(self) -> Batch:
        """The step that makes the next move."""
        sequence, swap, tier = self._swaps.popleft()
        self._in_step, self._last, self._decoding_on = [], None, False
        member = Member(sequence.number, sequence.cached, 0, sequence.cached, 0, 0)
        return Batch((member,), swap, tier=tier, device=self.device)

    def _move_step(self) -> Batch:
        """The step that makes the next move of blocks."""
        swap, tier, number, tokens = self.blocks.moves.popleft()
        self._in_step, self._last, self._decoding_on = [], None, False
        return Batch((Member(number, tokens, 0, tokens, 0, 0),), swap, tier=tier, device=self.device)

    # Drafts

    def _draft(self, batch: Batch) -> list[Batch]:
        """The steps of the draft model before a step."""
        members = list(zip(batch.members, self._in_step, strict=True))
        drafting = [(sequence, member.query - 1) for member, sequence in members if not sequence.pending]
        return draft_steps(drafting, [sequence for _, sequence in members if sequence.pending], self.device)

    def _next_of_round(self) -> Batch:
        """The next step of the draft model, or the one that it drafts for."""
        if self._drafts:
            return self._drafts.popleft()
        batch, self._verifying = self._verifying, None
        assert batch is not None
        return batch

    # Samples of one prompt

    def _forks(self, members: list[Member]) -> tuple[int, ...]:
        """Samples whose prompt will be in the cache when these members have ended."""
        prefilled = {
            sequence.request.group
            for member, sequence in zip(members, self._in_step, strict=True)
            if sequence.request.group >= 0 and sequence.pending == member.query
        }
        return tuple(s.number for s in self.running if s.forked and s.request.group in prefilled) if prefilled else ()

    def _fork(self, first: SequenceState) -> None:
        """Let the other samples of a prompt go on from it, each with a first token of its own; `first` has prefilled it."""
        for sequence in self.running:
            if sequence.forked and sequence.request.group == first.request.group:
                sequence.forked, sequence.pending, sequence.cached = False, 0, first.cached
                sequence.generated += 1

    # The members of a step

    def _decodes_on(self, last: Batch) -> bool:
        """Whether all members of the last step, and no others, decode one more token, so that `_compose` would repeat it."""
        if self._in_step != self.running or self.batching.speculation is not None or any(last.shape.several):
            return False
        return not any(sequence.pending for sequence in self.running)

    def _compose(self) -> tuple[list[Member], list[SequenceState]]:
        """The members of a step and their sequences: decodes first, then prefills, each in order of admission."""
        overdue, self._overdue = self._overdue, None
        kept = overdue.pending if overdue is not None and overdue in self.running else 0
        decoding, drafting, budget = self._choose_decodes(kept)
        prefilling, chunks = self._choose_prefills(budget, may_wait=bool(kept) or not decoding)
        members = self._decodes(decoding, drafting)
        for sequence, query in zip(prefilling, chunks, strict=True):
            last = int(query == sequence.pending)
            members.append(Member(sequence.number, sequence.cached, query, sequence.cached, last, last))
        return members, decoding + prefilling

    def _choose_decodes(self, kept: int) -> tuple[list[SequenceState], list[int], int | None]:
        """The sequences that decode, the tokens that each feeds in, and what is left of the budget (None if unbounded).

        kept: tokens of the budget that they leave to prefill.
        """
        budget = self.batching.settings.max_tokens
        chosen, queries = list[SequenceState](), list[int]()
        for sequence in self.running:
            if sequence.pending or sequence.forked:
                continue
            query = self._query(sequence)
            if budget is not None:
                if query > budget - kept:
                    continue
                budget -= query
            chosen.append(sequence)
            queries.append(query)
        return chosen, queries, budget

    def _choose_prefills(self, budget: int | None, *, may_wait: bool) -> tuple[list[SequenceState], list[int]]:
        """The sequences that are prefilled, and the tokens of each: none after the first that does not fit the budget.

        may_wait: that one need not come first in the next step.
        """
        chunk = self.batching.prefill.chunk
        chosen, queries = list[SequenceState](), list[int]()
        for sequence in self.running:
            if not sequence.pending or sequence.forked:
                continue
            query = sequence.pending if chunk is None else min(sequence.pending, chunk)
            if budget is not None:
                query = min(query, budget) if chunk is not None else query
                if not query or query > budget:
                    self._overdue = None if may_wait or chosen or chunk is not None else sequence
                    break
                budget -= query
            chosen.append(sequence)
            queries.append(query)
        return chosen, queries

    def _query(self, sequence: SequenceState) -> int:
        """Tokens that a decoding sequence feeds in: the last one, and no more drafts than it still needs tokens after it."""
        missing = sequence.request.tokens - sequence.generated
        return 1 + (min(self.batching.speculation.draft, missing - 1) if self.batching.speculation is not None else 0)

    def _decodes(self, sequences: Sequence[SequenceState], queries: Sequence[int]) -> list[Member]:
        """Members that decode. The first sample of a prompt loads the cache that all samples in the step share."""
        members = list[Member]()
        leaders: dict[int, int] = {}  # group -> member
        decoding = zip(sequences, queries, self._emitted(sequences, queries), strict=True)
        for number, (sequence, query, emitted) in enumerate(decoding):
            leader, loads = -1, sequence.cached
            if sequence.shared and leaders.setdefault(sequence.request.group, number) != number:
                leader, loads = leaders[sequence.request.group], sequence.cached - sequence.shared
            members.append(Member(sequence.number, sequence.cached, query, loads, query, emitted, leader))
        return members

    def _emitted(self, sequences: Sequence[SequenceState], queries: Sequence[int]) -> Sequence[int]:
        """Output tokens of sequences that decode: one each, and the drafts that are accepted."""
        speculation = self.batching.speculation
        if speculation is None:
            return queries
        right = accepted(
            speculation.acceptance, [query - 1 for query in queries], seed=self.batching.seed,
            sequences=[s.number for s in sequences], steps=[s.decoded for s in sequences],
        )  # fmt: skip
        return [1 + count for count in right]


@dataclass(slots=True, eq=False)
class HandOver(Batcher):
    """One of the loops that hand over what a replica has prefilled: steps that send one KV cache each through the link.

    They send all of it, but for what steps have sent layer by layer, to the replica that a router chooses now. When all has
    been sent, blocks are freed, and the request is given to that replica.
    """

    _sending: tuple[SequenceState, Batcher] | None = None

    def next(self, now: int) -> Batch | None:
        if not self.prefilled:
            return None
        self._sending = self.prefilled.popleft()
        sequence, _ = self._sending
        assert isinstance(self.arrivals, Inbox)
        many, to = self.unsent(sequence), self.arrivals.receiver(sequence.number) * self.batching.devices
        return Batch((Member(sequence.number, many, 0, many, 0, 0),), "send", device=self.device, to=to)

    def ended(self, batch: Batch, now: int, steps: int = 1) -> None:
        assert self._sending is not None
        sequence, of = self._sending
        of.handed_over(sequence, now)

    def steps_ahead(self) -> int:
        return 0

    @property
    def next_arrival(self) -> int | None:
        return None

    @property
    def until(self) -> int | None:
        return None
