"""Who takes part in the next step: batching, prefill, speculation, and admission by room in the KV cache. No clock, no events.

A `Batcher` is a state machine that a decode loop asks for its next step and tells when that has ended. It never looks ahead:
what it answers depends on the requests that have arrived, and on the steps that have ended.

1. Requests wait in order of arrival. `static` admits only when the batch has run out; `continuous` before every step.
2. A sequence that decodes feeds in its last token, and with speculation the drafts of the next ones.
3. What is left of the token budget goes to prefill, whole or in chunks, in order of admission.
4. The KV cache is paged. `full: wait` sets blocks aside for all that a request will ever hold. `recompute` and `swap` admit
   a request as soon as its prompt fits; when a sequence then finds no block for its next tokens, the one admitted last gives up
   all of its own, to be prefilled again, or moved out and back in through the channel.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.base.errors import ConfigError
from sim.base.kernel import kernel, launch, loaded
from sim.base.philox import four_draws, highest_bits
from sim.base.units import ceil_div, format_bytes
from sim.mapping.steps import Shape
from sim.serving.policies import BATCHING_POLICIES, BatchingPolicy
from sim.workload.requests import Request


class Member(NamedTuple):
    """One sequence in a step.

    context: its tokens in the KV cache. query: tokens that it feeds in. loads: cached tokens that it loads itself. logits:
    rows that are wanted. emitted: output tokens that the step gives it. leader: member that loads what they share, or -1.
    """

    sequence: int
    context: int
    query: int
    loads: int
    logits: int
    emitted: int
    leader: int = -1


#: What a member that decodes one token adds to its row for the next step: a token in its cache, and one more to load.
ONE_MORE = np.array([name in ("context", "loads") for name in Member._fields], dtype=np.int64)


class Batch:
    """The members of a step, as a table int64 [member, field of Member].

    swap: their cache moves, and nothing else happens. forks: sequences that take no part, and get their first token from the
    logits of another sample of their prompt. emitted: output tokens that it gives. Of all members together: context, tokens
    that they feed in, logits. shape: all that the structure of its graph depends on.
    """

    __slots__ = ("_members", "context", "emitted", "forks", "logits", "shape", "swap", "table", "tokens")

    def __init__(
        self, members: Sequence[Member], swap: Literal["", "out", "in"] = "", forks: tuple[int, ...] = ()
    ) -> None:  # fmt: skip
        self._members: tuple[Member, ...] | None = tuple(members)
        _, context, query, _, logits, emitted, leader = zip(*members, strict=True)
        words = np.fromiter(chain.from_iterable(members), dtype=np.int64, count=len(members) * len(Member._fields))
        self.table: npt.NDArray[np.int64] = words.reshape(len(members), -1)
        self.swap, self.forks = swap, forks
        self.context, self.tokens, self.logits = sum(context), sum(query), sum(logits)
        self.emitted = sum(emitted) + len(forks)
        leaders = leader if max(leader) >= 0 else ()
        self.shape = Shape(several=tuple(q > 1 for q in query), logits=self.logits > 0, leaders=leaders, swap=swap)

    def __len__(self) -> int:
        """Number of members."""
        return len(self.table)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members, one by one."""
        if self._members is None:
            self._members = tuple(map(Member._make, self.table.tolist()))
        return self._members

    def decoded_on(self) -> Batch:
        """The step after this one, where all members have decoded one token and decode another."""
        made = Batch.__new__(Batch)
        made._members, made.table = None, self.table + ONE_MORE
        made.swap, made.forks, made.shape, made.emitted = "", (), self.shape, self.emitted
        made.context, made.tokens, made.logits = self.context + len(self.table), self.tokens, self.logits
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """`draft` tokens are guessed before each step, which verifies them. acceptance: the probability that a guess is right, each
    independently, or numbers of guesses accepted, step by step, over and over.
    """

    draft: int
    acceptance: float | tuple[int, ...]

    def accepted(self, drafts: Sequence[int], *, seed: int, sequences: Sequence[int], steps: Sequence[int]) -> list[int]:
        """Of each member of a step, how many of its guesses are right before one is wrong.

        drafts: how many guesses it has. steps: how many steps it has decoded before.
        """
        if not isinstance(self.acceptance, float):
            given = self.acceptance
            return [min(most, given[step % len(given)]) for most, step in zip(drafts, steps, strict=True)]
        # Keyed by what the step is; the raw stream, which NumPy promises to keep, against an integer threshold.
        found = np.array(drafts, dtype=np.int64)
        keys = np.array([(sequence << 32) | step for sequence, step in zip(sequences, steps, strict=True)], dtype=np.int64)
        launch(right_before_wrong, compiled=loaded())(
            found, keys, seed, int(self.acceptance * 2**53), np.zeros(8, dtype=np.int64)
        )
        return list(found.tolist())


@kernel
def right_before_wrong(drafts: Any, keys: Any, seed: int, threshold: int, words: Any) -> None:
    """Replace numbers of guesses [member] by how many of them are right before one is wrong.

    keys: what each draws by, beside the seed. A guess is right if the 53 highest bits of its draw are below the threshold.
    words: scratch of 8.
    """
    for member in range(drafts.shape[0]):
        draw, right = 0, True
        while right and draw < drafts[member]:
            if draw % 4 == 0:
                four_draws(words, seed, keys[member], 1 + draw // 4)
            right = highest_bits(words, draw % 4) < threshold
            if right:
                draw += 1
        drafts[member] = draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How steps are made up; see the scenario for each. tokens: the budget of a step. chunk: of a prompt, None for whole.
    blocks: of the KV cache, of `block` tokens each, None for as many as it takes.
    """

    policy: str = "independent"
    sequences: int = 1
    tokens: int | None = None
    chunk: int | None = None
    blocks: int | None = None
    block: int = 16
    full: Literal["wait", "recompute", "swap"] = "wait"
    speculation: Speculation | None = None
    seed: int = 0

    @property
    def alone(self) -> bool:
        """Whether each request is served in a loop of its own."""
        return BATCHING_POLICIES.get(self.policy).alone


@dataclass(slots=True, eq=False)
class _Sequence:
    """A request on its way. cached: tokens in its KV cache. pending: tokens to prefill before it decodes (the last gives an
    output token), 0 if it decodes. decoded: its steps since, whatever
    came between. forked: waits for the first of its group. blocks: those it holds itself.
    """

    number: int
    request: Request
    cached: int
    pending: int
    generated: int = 0
    decoded: int = 0
    blocks: int = 0
    forked: bool = False
    shared: int = 0  # cached tokens that it shares with its group


class Arrivals:
    """When requests come: at their own time, or (closed loop) so many at once, the next when one has ended and its user has
    thought. Samples of one prompt come together, and have ended when the last has. `times` says when each comes, as far as
    that is known. only: this request alone.
    """

    def __init__(
        self, requests: Sequence[Request], *, only: int | None = None, concurrency: int | None = None, think: int = 0
    ) -> None:
        self.requests, self.think = requests, think
        self.times: dict[int, int] = {}
        numbers = range(len(requests)) if only is None else (only,)
        self._open: deque[int] = deque()  # in order of arrival
        together = groupby(numbers, key=lambda i: requests[i].group if requests[i].group >= 0 else -1 - i)
        self._backlog = deque([[*group] for _, group in together] if concurrency is not None else [])
        self._samples: Counter[int] = Counter()  # group -> samples that have come and not ended
        for number in sorted(numbers, key=lambda i: (requests[i].arrival, i)) if concurrency is None else ():
            self._come([number], requests[number].arrival)
        for _ in range(min(concurrency or 0, len(self._backlog))):
            self._come(self._backlog.popleft(), 0)

    def _come(self, numbers: Sequence[int], time: int) -> None:
        for number in numbers:
            self.times[number] = time
            self._open.append(number)
            self._samples[self.requests[number].group] += 1

    @property
    def next(self) -> int | None:
        """When the next one comes, None if nobody does until one has ended."""
        return self.times[self._open[0]] if self._open else None

    def take(self, now: int) -> int | None:
        """The number of one that has come by now."""
        return self._open.popleft() if self._open and self.times[self._open[0]] <= now else None

    def ended(self, number: int, now: int) -> None:
        """A request has ended."""
        group = self.requests[number].group
        self._samples[group] -= 1
        if self._backlog and not (group >= 0 and self._samples[group]):
            # Think times are all alike, so who ends first also comes back first.
            self._come(self._backlog.popleft(), now + self.think)


@dataclass(slots=True, eq=False)
class Batcher:
    """Makes up the steps of one loop. `arrivals` may be shared by several loops, each of which serves one at a time."""

    batching: Batching
    arrivals: Arrivals
    waiting: deque[_Sequence] = field(default_factory=deque)
    running: list[_Sequence] = field(default_factory=list)
    swapped: deque[_Sequence] = field(default_factory=deque)
    used: int = 0  # blocks
    _moves: deque[tuple[_Sequence, Literal["out", "in"]]] = field(default_factory=deque)
    _batch: list[_Sequence] = field(default_factory=list)
    _held: dict[int, int] = field(default_factory=dict)  # group -> how many of its samples still need its shared blocks
    _last: Batch | None = None  # the step that `next` gave last, if it was no move
    _steady: bool = False  # it decodes one token of each, as the one before it
    _policy: BatchingPolicy = field(init=False)

    def __post_init__(self) -> None:
        self._policy = BATCHING_POLICIES.make(self.batching.policy, {})

    def next(self, now: int) -> Batch | None:
        """The next step at this time, None if there is nothing to do before the next arrival."""
        self._arrive(now)
        self._make_room()
        if not self._moves:
            self._bring_back()
        if self._moves:
            sequence, direction = self._moves.popleft()
            self._batch, self._last, self._steady = [], None, False
            member = Member(sequence.number, sequence.cached, 0, sequence.cached, 0, 0)
            return Batch((member,), direction)
        self._admit()
        last = self._last
        if last is not None and self._decodes_on(last):
            self._last, self._steady = last.decoded_on(), True
            return self._last
        members, self._batch = self._compose()
        self._last, self._steady = Batch(members, forks=self._forks(members)) if members else None, False
        return self._last

    def _decodes_on(self, last: Batch) -> bool:
        """Whether the next step is the last one again, of members that decode one token each: `_compose` would say the same."""
        if self._batch != self.running or self.batching.speculation is not None or any(last.shape.several):
            return False
        return not any(sequence.pending for sequence in self.running)

    def _forks(self, members: list[Member]) -> tuple[int, ...]:
        """Samples whose prompt will be in the cache when these members have ended."""
        ending = {
            sequence.request.group
            for member, sequence in zip(members, self._batch, strict=True)
            if sequence.request.group >= 0 and sequence.pending == member.query
        }
        return tuple(s.number for s in self.running if s.forked and s.request.group in ending) if ending else ()

    def ended(self, batch: Batch, now: int) -> None:
        """The step that `next` gave last has ended."""
        if batch.swap:
            return
        if self._steady:
            for sequence in self._batch:
                sequence.generated += 1
                sequence.cached += 1
                sequence.decoded += 1
        else:
            self._count(batch)
        for sequence in [s for s in self.running if s.generated >= s.request.tokens and not s.forked]:
            self.running.remove(sequence)
            self._free(sequence)
            self.arrivals.ended(sequence.number, now)

    def _count(self, batch: Batch) -> None:
        """Count what a step has given its members."""
        for member, sequence in zip(batch.members, self._batch, strict=True):
            sequence.generated += member.emitted
            if sequence.pending:
                sequence.pending -= member.query
                sequence.cached += member.query
                if not sequence.pending and sequence.request.group >= 0:
                    self._fork(sequence)
            else:
                sequence.cached += member.emitted
                sequence.decoded += 1

    # Room

    def _room(self, blocks: int) -> bool:
        return self.batching.blocks is None or self.used + blocks <= self.batching.blocks

    def _blocks(self, sequence: _Sequence, tokens: int) -> int:
        """How many of its own blocks a sequence needs to hold so many tokens: blocks it shares in full are its group's."""
        block = self.batching.block
        return ceil_div(tokens, block) - sequence.shared // block

    def _grow(self, sequence: _Sequence, tokens: int) -> bool:
        """Give a sequence the blocks that it needs, if there are so many."""
        wanted = max(0, self._blocks(sequence, tokens) - sequence.blocks)
        if not self._room(wanted):
            return False
        sequence.blocks += wanted
        self.used += wanted
        return True

    def _free(self, sequence: _Sequence) -> None:
        self.used -= sequence.blocks
        sequence.blocks = 0
        group = sequence.request.group
        if group >= 0:
            self._held[group] -= 1
            if not self._held[group]:
                self.used -= self._shared_blocks(sequence)

    def _shared_blocks(self, sequence: _Sequence) -> int:
        request = sequence.request
        return (request.context + request.prompt) // self.batching.block

    def _make_room(self) -> None:
        """See that all who decode can hold what their next step adds; who came last makes room."""
        if self.batching.full == "wait":
            return
        for sequence in self.running.copy():
            while sequence in self.running and not sequence.pending:
                if self._grow(sequence, sequence.cached + self._query(sequence)):
                    break
                self._preempt(self.running[-1])

    def _preempt(self, sequence: _Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        if self.batching.full == "swap" and sequence.cached:
            self._moves.append((sequence, "out"))
            self.swapped.appendleft(sequence)
        else:
            # All that was cached, and the token to be fed in next, which gives the one after it.
            sequence.pending = sequence.cached + (sequence.pending or 1)
            sequence.cached = 0
            self.waiting.appendleft(sequence)

    def _bring_back(self) -> None:
        while self.swapped and len(self.running) < self.batching.sequences:
            sequence = self.swapped[0]
            if not self._grow(sequence, sequence.cached + (sequence.pending or self._query(sequence))):
                break
            self.swapped.popleft()
            self.running.append(sequence)
            self._moves.append((sequence, "in"))

    # Admission

    def _arrive(self, now: int) -> None:
        while not self._policy.alone or not (self.waiting or self.running):
            number = self.arrivals.take(now)
            if number is None:
                return
            request = self.arrivals.requests[number]
            self.waiting.append(_Sequence(number, request, request.context, request.prompt))

    def _admit(self) -> None:
        left = len(self.running)
        while self.waiting and not self.swapped and len(self.running) < self.batching.sequences:
            chosen = self._policy.choose(self.waiting, left)
            if chosen is None:
                return
            group = self._group(chosen)
            if len(self.running) + len(group) > self.batching.sequences or not self._take_blocks(group):
                return
            for sequence in group:
                self.waiting.remove(sequence)
                self.running.append(sequence)

    def _group(self, chosen: int) -> list[_Sequence]:
        """The waiting sequence of this index, with all samples of its prompt."""
        first = self.waiting[chosen]
        if first.request.group < 0:
            return [first]
        return [s for s in self.waiting if s.request.group == first.request.group]

    def _take_blocks(self, group: list[_Sequence]) -> bool:
        first, request = group[0], group[0].request
        if request.group < 0:
            held = request.final if self.batching.full == "wait" else first.cached + (first.pending or self._query(first))
            return self._grow(first, held)
        for sequence in group:
            sequence.shared = request.context + request.prompt
        own = [self._blocks(sequence, max(sequence.request.final, sequence.shared)) for sequence in group]
        if not self._room(sum(own) + self._shared_blocks(first)):
            return False
        self.used += sum(own) + self._shared_blocks(first)
        self._held[request.group] = len(group)
        for sequence, blocks in zip(group, own, strict=True):
            sequence.blocks = blocks
            sequence.forked = bool(request.prompt) and sequence is not first
        return True

    def _fork(self, first: _Sequence) -> None:
        """The prompt of a group is in the cache: its other samples go on from there, each with a first token of its own."""
        for sequence in self.running:
            if sequence.forked and sequence.request.group == first.request.group:
                sequence.forked, sequence.pending, sequence.cached = False, 0, first.cached
                sequence.generated += 1

    # The step

    def _query(self, sequence: _Sequence) -> int:
        """Tokens that a decoding sequence feeds in: the last one, and drafts of no more than it still needs."""
        left = sequence.request.tokens - sequence.generated
        return 1 + (min(self.batching.speculation.draft, left - 1) if self.batching.speculation is not None else 0)

    def _compose(self) -> tuple[list[Member], list[_Sequence]]:
        """Decodes first, then prefills, each in order of admission."""
        batching, budget = self.batching, self.batching.tokens
        chosen, queries = list[_Sequence](), list[int]()
        for sequence in self.running:
            if sequence.pending or sequence.forked:
                continue
            query = self._query(sequence)
            if budget is not None:
                if query > budget:
                    continue
                budget -= query
            chosen.append(sequence)
            queries.append(query)
        members = self._decodes(chosen, queries)
        for sequence in self.running:
            if not sequence.pending or sequence.forked:
                continue
            query = sequence.pending if batching.chunk is None else min(sequence.pending, batching.chunk)
            if budget is not None:
                query = min(query, budget) if batching.chunk is not None else query
                if not query or query > budget:
                    break
                budget -= query
            last = int(query == sequence.pending)
            members.append(Member(sequence.number, sequence.cached, query, sequence.cached, last, last))
            chosen.append(sequence)
        return members, chosen

    def _decodes(self, sequences: Sequence[_Sequence], queries: Sequence[int]) -> list[Member]:
        """Members that decode. The first of a group loads what its samples share."""
        emitted, speculation, members = queries, self.batching.speculation, list[Member]()
        if speculation is not None:
            drafts, numbers, steps = (
                [query - 1 for query in queries],
                [s.number for s in sequences],
                [s.decoded for s in sequences],
            )
            accepted = speculation.accepted(drafts, seed=self.batching.seed, sequences=numbers, steps=steps)
            emitted = [1 + right for right in accepted]
        leaders: dict[int, int] = {}
        for number, (sequence, query, given) in enumerate(zip(sequences, queries, emitted, strict=True)):
            leader, loads = -1, sequence.cached
            if sequence.shared and leaders.setdefault(sequence.request.group, number) != number:
                leader, loads = leaders[sequence.request.group], sequence.cached - sequence.shared
            members.append(Member(sequence.number, sequence.cached, query, loads, query, given, leader))
        return members


def loops(batching: Batching, requests: Sequence[Request], *, concurrency: int | None = None, think: int = 0) -> list[Batcher]:
    """The loops of a run: one for all requests, or for each request one, or `concurrency` that serve one at a time.

    think: ps from the end of a request to the next, where `concurrency` limits them.
    """
    if not batching.alone:
        return [Batcher(batching, Arrivals(requests, concurrency=concurrency, think=think))]
    if concurrency is not None:
        arrivals = Arrivals(requests, concurrency=concurrency, think=think)
        return [Batcher(batching, arrivals) for _ in range(min(concurrency, len(requests)))]
    return [Batcher(batching, Arrivals(requests, only=number)) for number in range(len(requests))]


def feasible(batching: Batching, requests: Sequence[Request], token_bytes: int) -> None:
    """Raises ConfigError for a request that could never be served. token_bytes: of the KV cache of one token."""

    def size(blocks: int) -> str:
        tokens = blocks * batching.block
        return f"{blocks:,} block{'s' if blocks > 1 else ''} ({tokens:,} tokens, {format_bytes(tokens * token_bytes)})"

    groups = Counter(request.group for request in requests if request.group >= 0)
    for group, samples in groups.items():
        if samples > batching.sequences:
            message = f"expected at most max_batch {batching.sequences} samples, found {samples}"
            raise ConfigError("workload.sequences", message)
        request = next(request for request in requests if request.group == group)
        shared, final = request.context + request.prompt, max(request.final, request.context + request.prompt)
        blocks = shared // batching.block + samples * (ceil_div(final, batching.block) - shared // batching.block)
        if batching.blocks is not None and blocks > batching.blocks:
            raise ConfigError(
                "workload.batching.kv",
                f"{samples} samples of one prompt end in {size(blocks)}, more than the {size(batching.blocks)} of the KV cache",
            )
    for number, request in enumerate(requests):
        blocks = ceil_div(request.final, batching.block)
        if batching.blocks is not None and blocks > batching.blocks:
            raise ConfigError(
                "workload.batching.kv",
                f"sequence {number} ends with {request.final:,} tokens in {size(blocks)}, more than the "
                f"{size(batching.blocks)} of the KV cache",
            )
        again = batching.full == "recompute" and batching.blocks is not None
        whole = request.final if again else request.prompt
        if batching.tokens is not None and batching.chunk is None and whole > batching.tokens:
            raise ConfigError(
                "workload.batching.max_tokens",
                f"expected at least {whole}, for sequence {number} is prefilled as a whole"
                f"{' even after it was dropped' if again else ''}, found {batching.tokens}; chunks would fit",
            )
