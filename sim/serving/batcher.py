"""Batching: what each step of a loop does, by policy, token budget, prefill chunks, drafts, and capacity of the KV cache.

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
5. Moves of caches and blocks are steps of their own. `moves: between`: of this loop, so that all wait. `beside`: of another
   (`sim.serving.movers.Mover`), while sequences that need none of them go on. A sequence takes part in steps again when all of
   its moves have ended, and blocks that one gives up can be used when they are out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.mapping.steps import Swap
from sim.serving.arrivals import Arrivals
from sim.serving.batch import Batch, Member
from sim.serving.batching import ResolvedBatching
from sim.serving.blocks import CacheMove, KVBlocks
from sim.serving.composer import Composer
from sim.serving.drafting import draft_steps
from sim.serving.policies import BATCHING_POLICIES, BatchingPolicy
from sim.serving.prefix import blocks_of
from sim.serving.queue import Queue, Reason
from sim.serving.routed import Inbox
from sim.serving.sequence import SequenceState
from sim.serving.tiers import Tiers


@dataclass(slots=True, eq=False)
class Batcher:
    """Makes up the steps of one loop.

    arrivals: may be shared by several loops, each of which serves one request at a time. device: the first one of those that
    its steps run on. hands_over: it prefills; `prefilled` are sequences of its replica whose prompt is still to be sent to
    others that decode, and their batchers. waiting: requests to be admitted, those that were pre-empted first. running:
    admitted sequences, in order of admission. swapped: those whose cache is out of the memory, or on its way, the first to
    return first. blocks: the KV cache, with the moves that are still to be made. tiers: where swapped caches are.
    queue: what requests wait for before their first step.
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
    queue: Queue = field(default_factory=Queue)
    _unbegun: list[SequenceState] = field(default_factory=list)  # admitted, and in no step yet
    _moving: CacheMove | None = None  # the move that is the step in progress
    _short: bool = False  # sequences wait for blocks that others give up
    _in_step: list[SequenceState] = field(default_factory=list)  # the sequences of the members of the step in progress
    _drafts: deque[Batch] = field(default_factory=deque)  # steps of the draft model still to be made
    _verifying: Batch | None = None  # the step that comes after them
    _last: Batch | None = None  # the step that `next` returned last, unless it was a swap
    _decoding_on: bool = False  # that step decodes one token of each member, as the one before it did
    _admitted: bool = False  # requests joined before that step
    _policy: BatchingPolicy = field(init=False)
    _composer: Composer = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = blocks_of(self.batching)
        self.tiers = Tiers(self.batching.tiers or (None,))
        self._composer = Composer(self.batching)
        self._policy = BATCHING_POLICIES.make(self.batching.settings.policy, {})

    def next(self, now: int) -> Batch | None:
        """The next step at this time, None if there is nothing to do before the next arrival."""
        if self._verifying is not None:
            return self._next_of_round()
        self._queue_arrivals(now)
        self._preempt_until_all_fit()
        if self.batching.beside or not self.blocks.moves:
            self._swap_in()
        reason = self._admit(now) if self.batching.beside or not self.blocks.moves else Reason.MOVES
        moving = bool(self.blocks.moves) and not self.batching.beside
        if self.waiting:
            self.queue.blocked(now, Reason.MOVES if moving else reason)
        if moving:
            self._note_holds(now, moving=True)
            return self._move_step()
        if self._last is not None and self._decodes_on(self._last):
            self._last, self._decoding_on = self._last.decoded_on(), True
            return self._last
        members, self._in_step = self._composer.members(self.running)
        self._last, self._decoding_on = None, False
        if members:
            self._last = Batch(members, forks=self._forks(members), device=self.device, to=self._receivers(members))
        self._note_holds(now)
        if self._last is not None and self.batching.drafts:
            self._verifying = self._last
            self._drafts += self._draft(self._last)
            return self._next_of_round()
        return self._last

    def ended(self, batch: Batch, now: int, steps: int = 1) -> None:
        """Take note that the step that `next` returned last has ended.

        steps: that it and those after it have ended in which its members decoded on, so many in all.
        """
        if self._moving is not None:
            self.moved(self._moving)
            self._moving = None
            return
        if batch.shape.draft:
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
        if not self.batching.by_layer:
            return sequence.cached
        return sequence.cached - sequence.fed if self.batching.follows else 0

    def handed_over(self, sequence: SequenceState, now: int) -> None:
        """Take note that all of the cache of a sequence has been sent to replicas that decode."""
        assert isinstance(self.arrivals, Inbox)
        self.blocks.free(sequence)
        self.arrivals.hand_over(sequence, now)

    def _receivers(self, members: list[Member]) -> tuple[int, ...]:
        """The first device of the replica that decodes each member, where a step sends what it stores."""
        if not (self.hands_over and self.batching.by_layer):
            return ()
        assert isinstance(self.arrivals, Inbox)
        return tuple(self.arrivals.receiver(member.sequence) * self.batching.devices for member in members)

    def steps_ahead(self) -> int:
        """After `next`: how many steps would follow that one in which its members, and no others, decode one token each.

        So many do if no request arrives before they begin (`until`). It may be fewer than there are.
        """
        last, settings = self._last, self.batching.settings
        if last is None or self.swapped or self.blocks.moving or self._is_given_more or not self._decodes_on(last):
            return 0
        frees = bool(self.waiting) and self.batching.layout.windowed
        if self.batching.capacity is not None and (settings.kv.full != "wait" or frees):
            return 0  # blocks are allocated or freed meanwhile
        if self.waiting and self._admitted and len(self.running) < self.batching.sequences:
            return 0  # the policy is asked about another batch than before
        many = min(sequence.request.tokens - sequence.generated for sequence in self.running)
        many = min(many, *(self.blocks.steady(sequence) for sequence in self.running))
        return many - 1

    @property
    def parts(self) -> Sequence[Batcher]:
        """The batchers that make up steps of this loop: itself, or those of devices that have sequences of their own."""
        return (self,)

    @property
    def next_arrival(self) -> int | None:
        """The time of the next arrival that could give it something to do; None if there is none, or others must end first."""
        return None if self.hands_over and self.waiting else self.arrivals.next

    @property
    def listens(self) -> bool:
        """Whether the end of a step of another loop may give it something to do: requests that it brings, or blocks."""
        return bool(self.blocks.moving) or (self._is_given_more and self.next_arrival is None)

    @property
    def queued(self) -> bool:
        """Whether moves wait for the loop that makes them beside the steps of this one."""
        return self.batching.beside and bool(self.blocks.moves)

    @property
    def over(self) -> bool:
        """Whether it has nothing to do any more."""
        return not (self.waiting or self.running or self.swapped or self._is_given_more) and self.arrivals.next is None

    @property
    def _is_given_more(self) -> bool:
        """Whether requests come at times that are not known yet."""
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
            if not self.waiting[-1].begun:
                self.queue.joined[number] = now

    def _admit(self, now: int) -> Reason:
        """Admit requests as the policy chooses them, until it stops or one does not fit; returns what the others wait for."""
        remaining = len(self.running)
        self._admitted = False
        while self.waiting:
            if self.swapped or self._short:
                return Reason.KV_BLOCKS
            if len(self.running) == self.batching.sequences:
                return Reason.MAX_BATCH
            chosen = self._policy.choose(self.waiting, remaining)
            if chosen is None:
                return Reason.POLICY
            samples = self._samples(self.waiting[chosen])
            if len(self.running) + len(samples) > self.batching.sequences:
                return Reason.MAX_BATCH
            if not self._allocate(samples):
                return Reason.KV_BLOCKS
            for sequence in samples:
                self.waiting.remove(sequence)
                self.running.append(sequence)
                if not sequence.begun and sequence not in self._unbegun:
                    self.queue.admit(sequence.number, now)
                    self._unbegun.append(sequence)
            self._admitted = True
        return Reason.STEP

    def _note_holds(self, now: int, *, moving: bool = False) -> None:
        """Note what requests wait for that are admitted and not in the step made up last. moving: one for which all wait."""
        if not self._unbegun:
            return
        members = set[int]()
        if self._last is not None and not moving:
            members = {sequence.number for sequence in self._in_step}.union(self._last.forks)
        for sequence in self._unbegun:
            if sequence.number in members:
                sequence.begun = True
                self.queue.begin(sequence.number, now)
            elif sequence.moving or moving:
                self.queue.hold(sequence.number, now, Reason.MOVES)
            elif sequence not in self.running or sequence.stalled:
                self.queue.hold(sequence.number, now, Reason.KV_BLOCKS)
            else:
                self.queue.hold(sequence.number, now, Reason.PROMPT if sequence.forked else Reason.MAX_TOKENS)
        self._unbegun = [sequence for sequence in self._unbegun if not sequence.begun]

    def _samples(self, chosen: SequenceState) -> list[SequenceState]:
        """All samples of a waiting request's prompt, which are admitted together; a request without others alone."""
        group = chosen.request.group
        return [chosen] if group < 0 else [sequence for sequence in self.waiting if sequence.request.group == group]

    def _allocate(self, samples: list[SequenceState]) -> bool:
        """Allocate the blocks that a request, or all samples of a prompt, need to be admitted; False if they do not fit."""
        first, request = samples[0], samples[0].request
        if request.group < 0:
            whole = self.batching.settings.kv.full == "wait" and not self.hands_over
            return self.blocks.admit(
                first, request.final if whole else first.cached + (first.pending or self._composer.query(first))
            )
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
        owed = 0  # bytes for sequences that wait until others have given them up
        for sequence in self.running.copy():
            sequence.stalled = False
            while not (sequence.pending or sequence.moving or sequence.stalled):  # one of which they are once pre-empted
                tokens = sequence.cached + self._composer.query(sequence)
                if self.blocks.grow(sequence, tokens, leave=owed):
                    break
                lacks = self.blocks.lacks(sequence, tokens)
                if self.blocks.fits(owed + lacks - sum(each.held for each in self.swapped)) or self.running[-1].moving:
                    sequence.stalled, owed = True, owed + lacks
                else:
                    self._preempt(self.running[-1])
        self._short = owed > 0

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        sequence.stalled = False
        if self.batching.settings.kv.full == "swap" and sequence.cached and self._put(sequence):
            self.swapped.appendleft(sequence)
            if not self.batching.beside:
                self.blocks.free(sequence)
            return
        self.blocks.free(sequence)
        # Prefill all that was cached, and the token to be fed in next, which gives the one after it.
        sequence.pending = sequence.cached + (sequence.pending or 1)
        sequence.cached = sequence.drafted = sequence.fed = 0
        self.waiting.appendleft(sequence)

    def _put(self, sequence: SequenceState) -> bool:
        """Have the cache of a sequence move out to a tier, and colder ones to make space there; False if no tier has any."""
        moves = self.tiers.put(sequence, self.batching.layout.held_in_all(sequence.cached, sequence.cached, 1))
        for move in moves or ():
            swap: Swap = "out" if move.item is sequence else "spill"
            self.blocks.move(swap, move.tier, move.item, move.item.cached, drafted=move.item.drafted)
        return moves is not None

    def _swap_in(self) -> None:
        """Have swapped sequences run again, as long as their cache and their next tokens fit."""
        while self.swapped and len(self.running) < self.batching.sequences and not self._short:
            sequence = self.swapped[0]
            tokens = sequence.cached + (sequence.pending or self._composer.query(sequence))
            if sequence.moving or not self.blocks.grow(sequence, tokens):
                break
            self.swapped.popleft()
            self.running.append(sequence)
            self.blocks.move("in", self.tiers.take(sequence), sequence, sequence.cached, drafted=sequence.drafted)

    def _move_step(self) -> Batch:
        """The step that makes the next move."""
        self._moving = self.blocks.moves.popleft()
        self._in_step, self._last, self._decoding_on = [], None, False
        return self._moving.step(self.device)

    def moved(self, move: CacheMove) -> None:
        """Take note that a move has ended."""
        self.blocks.moved(move)
        if move.swap == "out" and move.last and self.batching.beside:
            self.blocks.free(move.sequence)

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

    def _decodes_on(self, last: Batch) -> bool:
        """Whether all members of the last step, and no others, decode one more token, so that composing would repeat it."""
        if self._in_step != self.running or self.batching.speculation is not None or any(last.shape.several):
            return False
        return not any(sequence.pending for sequence in self.running)
