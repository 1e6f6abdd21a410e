"""Batching as a state machine: what is conserved whatever the policy, and small cases by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.base.errors import InputError
from sim.base.kernel import launch
from sim.machine.kv_cache import KVLayout, LayerGroup
from sim.serving.batch import Batch, Member
from sim.serving.batcher import Batcher
from sim.serving.batching import ResolvedBatching
from sim.serving.limits import check_feasible
from sim.serving.loops import loops
from sim.serving.policies import BATCHING_POLICIES, Waiting
from sim.serving.settings import Batching, Prefill, Speculative
from sim.serving.speculation import accepted, count_accepted
from sim.workload.requests import Request


def resolved(
    policy: str, *, sequences: int = 1, blocks: int | None = None, chunk: int | None = None,
    speculation: Speculative | None = None, seed: int = 0, max_tokens: int | None = None,
    groups: tuple[LayerGroup, ...] = (LayerGroup(None, 100),), tiers: tuple[int | None, ...] = (), **kv: object,
) -> ResolvedBatching:  # fmt: skip
    """blocks: of a model whose tokens take 100 B. tiers: blocks of each. kv: settings of the KV cache, such as `block`. Swaps
    are steps of the loop, unless these say otherwise.
    """
    moving = kv.get("full") == "swap" or kv.get("evicted") == "tiers"
    batching = Batching(policy=policy, max_tokens=max_tokens, kv={"moves": "between", **kv} if moving else kv)
    layout = KVLayout(batching.kv.block, groups)
    return ResolvedBatching(
        settings=batching, prefill=Prefill(chunk=chunk), speculation=speculation,
        sequences=sequences, layout=layout, capacity=None if blocks is None else blocks * layout.block * 100, seed=seed,
        tiers=tuple(None if each is None else each * layout.block * 100 for each in tiers),
    )  # fmt: skip


def drive(batchers: list[Batcher], took: int = 10) -> list[tuple[int, Batch]]:
    """Run loops to the end on an imaginary machine where each step takes `took`; returns (start, batch) in order of start."""
    steps: list[tuple[int, Batch]] = []
    clock = [0] * len(batchers)
    while clock:
        i = clock.index(min(clock))
        now, batcher = clock[i], batchers[i]
        batch = batcher.next(now)
        if batch is not None:
            steps.append((now, batch))
            batcher.ended(batch, now + took)
            clock[i] += took
        elif batcher.arrivals.next is not None:
            assert batcher.arrivals.next > now, "somebody waits and nothing happens"
            clock[i] = batcher.arrivals.next
        else:
            assert not batcher.waiting
            assert not batcher.running
            assert not batcher.swapped
            del clock[i], batchers[i]
    return steps


def feasible(batching: ResolvedBatching, asked: list[Request]) -> bool:
    """Whether requests can be served at all."""
    try:
        check_feasible(batching, asked)
    except InputError:
        return False
    return True


def emitted(steps: list[tuple[int, Batch]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for _, batch in steps:
        for member in batch.members:
            total[member.sequence] += member.emitted
        total.update(batch.forks)
    return total


requests = st.lists(
    st.builds(
        Request,
        context=st.integers(0, 40), prompt=st.integers(0, 50), tokens=st.integers(1, 12), arrival=st.integers(0, 200),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


#: Layers of a model whose tokens take 100 B: without windows, with both kinds, and with windows alone.
GROUPS = (
    (LayerGroup(None, 100),), (LayerGroup(None, 30), LayerGroup(9, 70)), (LayerGroup(1, 10), LayerGroup(21, 90)),
)  # fmt: skip


@st.composite
def batchings(draw: st.DrawFn) -> ResolvedBatching:
    most = draw(st.integers(1, 6))
    speculation = draw(
        st.none() | st.builds(Speculative, draft=st.integers(1, 4), acceptance=st.floats(0, 1) | st.just((1, 0, 3)))
    )
    wide = 1 + (speculation.draft if speculation is not None else 0)
    chunk = draw(st.none() | st.integers(1, 30))
    return resolved(
        policy=draw(st.sampled_from(["static", "continuous"])),
        sequences=most,
        max_tokens=draw(st.none() | st.integers(max(most * wide, 0 if chunk else 110), 150)),
        chunk=chunk,
        blocks=draw(st.none() | st.integers(13, 40)),
        block=8,
        full=draw(st.sampled_from(["wait", "recompute", "swap"])),
        speculation=speculation,
        seed=draw(st.integers(0, 9)),
        groups=draw(st.sampled_from(GROUPS)),
    )


@st.composite
def samples(draw: st.DrawFn) -> list[Request]:
    """Some requests, each with one sample or several."""
    asked = []
    for number, request in enumerate(draw(requests)[:4]):
        several = draw(st.integers(1, 3))
        asked += [replace(request, group=number if several > 1 else -1)] * several
    return asked


def drive_ahead(batcher: Batcher, most: int = 100) -> list[tuple[int, Batch]]:
    """As `drive`, where no more than so many steps in which the members decode on follow one without being asked for."""
    now, steps = 0, list[tuple[int, Batch]]()
    while (batch := batcher.next(now)) is not None or batcher.arrivals.next is not None:
        if batch is None:
            now = batcher.arrivals.next or 0
            continue
        until, begun = batcher.until, len(steps)
        for step in range(1 + min(most, batcher.steps_ahead())):
            if step and until is not None and now >= until:
                break
            steps.append((now, batch.decoded_on(step)))
            now += 10
        batcher.ended(batch, now, len(steps) - begun)
    return steps


def members_of(steps: list[tuple[int, Batch]]) -> list[tuple[int, tuple[Member, ...]]]:
    return [(time, batch.members) for time, batch in steps]


@settings(max_examples=400, deadline=None)
@given(samples() | requests, batchings(), st.none() | st.integers(1, 4), st.integers(0, 12))
def test_steps_ahead_are_those_that_would_be_asked_for(
    asked: list[Request], batching: ResolvedBatching, concurrency: int | None, most: int
) -> None:  # fmt: skip
    assume(feasible(batching, asked))
    assume(batching.settings.kv.full == "wait" or all(request.group < 0 for request in asked))
    (batcher,) = loops(batching, asked, concurrency=concurrency)
    one_by_one = drive(loops(batching, asked, concurrency=concurrency))
    assert members_of(drive_ahead(batcher, most)) == members_of(one_by_one)
    assert batcher.blocks.used == 0


@pytest.mark.parametrize(
    "options",
    [
        {"full": "recompute"},  # one is pre-empted when the other needs a second page of 8 tokens
        {"full": "swap"},
        {"full": "wait", "groups": (LayerGroup(4, 100),)},  # with 11 tokens the window of 4 has left the first page
    ],
)
def test_steps_in_which_pages_change_are_asked_for(options: dict[str, Any]) -> None:
    batching = resolved(policy="continuous", sequences=3, block=8, blocks=3, **options)
    asked = [Request(context=6, prompt=0, tokens=10, arrival=0)] * 3
    one_by_one = members_of(drive(loops(batching, asked)))
    assert len({len(members) for _, members in one_by_one}) > 1
    assert members_of(drive_ahead(loops(batching, asked)[0])) == one_by_one


class OneMoreEachStep:
    """A policy for three requests at once, of which each step admits one more."""

    alone = False

    def choose(self, waiting: Sequence[Waiting], running: int) -> int | None:
        return 0 if len(waiting) > 2 - running else None


def test_a_policy_that_may_admit_in_the_next_step_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BATCHING_POLICIES, "make", lambda name, options: OneMoreEachStep())
    asked = [Request(context=8, prompt=0, tokens=5, arrival=0)] * 3
    batching = resolved(policy="continuous", sequences=4)
    one_by_one = members_of(drive(loops(batching, asked)))
    assert [len(members) for _, members in one_by_one] == [1, 2, 3, 3, 3, 2, 1]
    assert members_of(drive_ahead(loops(batching, asked)[0])) == one_by_one


def test_how_many_steps_are_ahead():
    """Three sequences, of which the first ends after 5 tokens; a request that comes in the second step may join the third."""
    asked = [Request(context=8, prompt=0, tokens=tokens, arrival=0) for tokens in (5, 9, 9)]
    (batcher,) = loops(resolved(policy="continuous", sequences=4), [*asked, replace(asked[0], arrival=15)])
    first = batcher.next(0)
    assert first is not None
    assert (batcher.steps_ahead(), batcher.until) == (4, 15)
    batcher.ended(first, 20, 2)
    joined = batcher.next(20)
    assert joined is not None
    assert [member.context for member in joined.members] == [10, 10, 10, 8]
    assert (batcher.steps_ahead(), batcher.until) == (2, None)


def test_a_whole_prompt_waits_for_one_step_of_decodes():
    """Prompts as long as the budget, beside a sequence that decodes on: each comes first a step after it was first in line."""
    asked = [Request(context=0, prompt=0, tokens=9, arrival=0), *[Request(context=0, prompt=8, tokens=1, arrival=0)] * 2]
    steps = drive(loops(resolved(policy="continuous", sequences=3, max_tokens=8), asked))
    members = [[(member.sequence, member.query) for member in batch.members] for _, batch in steps]
    decode = [(0, 1)]
    assert members == [decode, [(1, 8)], decode, [(2, 8)], *[decode] * 7]


def test_decodes_take_what_an_overdue_prompt_leaves():
    """6 of 8 tokens beside 3 that decode: two of them go on in the step of the prompt, those admitted first."""
    asked = [*[Request(context=0, prompt=0, tokens=3, arrival=0)] * 3, Request(context=0, prompt=6, tokens=1, arrival=0)]
    steps = drive(loops(resolved(policy="continuous", sequences=4, max_tokens=8), asked))
    members = [[(member.sequence, member.query) for member in batch.members] for _, batch in steps]
    assert members[:3] == [[(0, 1), (1, 1), (2, 1)], [(0, 1), (1, 1), (3, 6)], [(0, 1), (1, 1), (2, 1)]]


@settings(max_examples=200, deadline=None)
@given(
    samples(), st.integers(3, 6), st.none() | st.integers(24, 60), st.none() | st.integers(1, 4), st.sampled_from(GROUPS)
)  # fmt: skip
def test_every_sample_gets_all_its_tokens(
    asked: list[Request], most: int, blocks: int | None, concurrency: int | None, groups: tuple[LayerGroup, ...]
) -> None:  # fmt: skip
    batching = resolved(policy="continuous", sequences=most, blocks=blocks, block=8, groups=groups)
    assume(feasible(batching, asked))
    (batcher,) = batchers = loops(batching, asked, concurrency=concurrency)
    steps = drive(batchers)
    assert emitted(steps) == Counter({i: request.tokens for i, request in enumerate(asked)})
    assert batcher.blocks.used == 0
    prompts = {(r.group if r.group >= 0 else -1 - i): r.prompt for i, r in enumerate(asked)}
    decoded = sum(request.tokens - bool(request.prompt) for request in asked)
    assert sum(m.query for _, batch in steps for m in batch.members) == sum(prompts.values()) + decoded


def in_use(batcher: Batcher, batch: Batch) -> int:
    """Bytes of the pages that some query of a step sees or fills, each page of a shared prompt counted once."""
    layout, fed = batcher.batching.layout, {m.sequence: m.query for m in batch.members}
    total = 0
    for group in layout.groups:
        pages = set[tuple[str, int, int]]()
        for s in batcher.running:
            first = 0 if group.window is None else max(0, s.cached - (group.window - 1))
            for page in {t // layout.block for t in range(first, s.cached + fed.get(s.number, 0))} if not s.forked else ():
                shared = page < s.shared // layout.block
                pages.add(("prompt", s.request.group, page) if shared else ("own", s.number, page))
        total += len(pages) * layout.block * group.bytes
    return total


@settings(max_examples=300, deadline=None)
@given(samples() | requests, batchings())
def test_all_pages_in_use_are_allocated(asked: list[Request], batching: ResolvedBatching) -> None:
    """In every step; where pages come as they are needed and nothing is prefilled or drafted, no others are allocated."""
    assume(feasible(batching, asked))
    full = batching.settings.kv.full
    assume(full == "wait" or all(request.group < 0 for request in asked))
    (batcher,) = loops(batching, asked)
    now = 0
    while (batch := batcher.next(now)) is not None or batcher.arrivals.next is not None:
        if batch is None:
            now = batcher.arrivals.next or 0
            continue
        needed = in_use(batcher, batch)
        assert needed <= batcher.blocks.used <= (batching.capacity or batcher.blocks.used)
        if full != "wait" and batching.speculation is None and all(m.query == 1 and m.logits for m in batch.members):
            alone = len(batch) == len(batcher.running)
            assert not alone or batch.swap or needed == batcher.blocks.used
        now += 10
        batcher.ended(batch, now)
    assert batcher.blocks.used == 0


@settings(max_examples=300, deadline=None)
@given(requests, batchings(), st.none() | st.integers(1, 4))
def test_everybody_gets_all_their_tokens(asked: list[Request], batching: ResolvedBatching, concurrency: int | None) -> None:
    check_feasible(batching, asked)
    batchers = loops(batching, asked, concurrency=concurrency)
    (batcher,) = batchers
    steps = drive(batchers)
    assert emitted(steps) == Counter({i: request.tokens for i, request in enumerate(asked)})
    assert batcher.blocks.used == 0
    cached = {i: request.context for i, request in enumerate(asked)}
    prefilled: Counter[int] = Counter()
    for _, batch in steps:
        assert len({m.sequence for m in batch.members}) == len(batch.members) <= batching.sequences
        if batching.settings.max_tokens is not None:
            assert sum(m.query for m in batch.members) <= batching.settings.max_tokens
        for m in batch.members:
            if batching.settings.kv.full == "recompute":
                assert m.context in (cached[m.sequence], 0)  # kept, or dropped
            else:
                assert m.context == cached[m.sequence]
            prefill = m.context < asked[m.sequence].context + asked[m.sequence].prompt
            prefilled[m.sequence] += m.query if prefill else 0
            if not batch.swap:
                cached[m.sequence] = m.context + (m.query if prefill or m.emitted == 0 else m.emitted)
                if batching.settings.kv.full == "recompute" and m.logits < m.query:  # a chunk
                    cached[m.sequence] = m.context + m.query
    if batching.settings.kv.full != "recompute":
        assert cached == {i: request.final for i, request in enumerate(asked)}
        assert prefilled == Counter({i: request.prompt for i, request in enumerate(asked)})


@settings(max_examples=200, deadline=None)
@given(requests, st.integers(1, 5), st.integers(13, 30), st.sampled_from(["wait", "recompute", "swap"]))
def test_never_more_blocks_than_there_are(asked: list[Request], most: int, blocks: int, full: str) -> None:
    batching = resolved(policy="continuous", sequences=most, blocks=blocks, block=8, full=full)
    steps = drive(loops(batching, asked))
    for _, batch in steps:
        if not batch.swap:
            after = sum(-(-(m.context + m.query) // 8) for m in batch.members)
            assert after <= blocks


def test_static_waits_for_the_batch_to_run_out_and_continuous_does_not() -> None:
    asked = [
        Request(context=1, tokens=3, arrival=0),
        Request(context=1, tokens=1, arrival=0),
        Request(context=1, tokens=1, arrival=5),
    ]
    who = {
        policy: [[m.sequence for m in batch.members] for _, batch in drive(loops(resolved(policy=policy, sequences=2), asked))]
        for policy in ("static", "continuous")
    }
    assert who["static"] == [[0, 1], [0], [0], [2]]
    assert who["continuous"] == [[0, 1], [0, 2], [0]]


def test_chunks_share_the_budget_with_those_that_decode() -> None:
    asked = [Request(context=4, tokens=4, arrival=0), Request(context=0, prompt=7, tokens=1, arrival=0)]
    steps = drive(loops(resolved(policy="continuous", sequences=2, max_tokens=4, chunk=4), asked))
    assert [[m.query for m in batch.members] for _, batch in steps] == [[1, 3], [1, 3], [1, 1], [1]]
    assert [[m.emitted for m in batch.members] for _, batch in steps] == [[1, 0], [1, 0], [1, 1], [1]]


def test_who_came_last_makes_room() -> None:
    asked = [Request(context=7, tokens=3, arrival=0), Request(context=7, tokens=3, arrival=0)]

    def queries(full: str) -> list[tuple[str, list[tuple[int, int, int]]]]:
        batching = resolved(policy="continuous", sequences=2, blocks=3, block=4, full=full)
        return [
            (batch.swap, [(m.sequence, m.context, m.query) for m in batch.members])
            for _, batch in drive(loops(batching, asked))
        ]

    alone = [("", [(0, 7, 1)]), ("", [(0, 8, 1)]), ("", [(0, 9, 1)])]
    assert queries("wait") == [*alone, ("", [(1, 7, 1)]), ("", [(1, 8, 1)]), ("", [(1, 9, 1)])]
    batching = resolved(policy="continuous", sequences=2, blocks=5, block=4, full="recompute")
    steps = [
        [(m.sequence, m.context, m.query) for m in batch.members] for _, batch in drive(loops(batching, asked))
    ]  # two blocks each to start with, a third each from 9 tokens on: there are five
    assert steps == [[(0, 7, 1), (1, 7, 1)], [(0, 8, 1)], [(0, 9, 1)], [(1, 0, 9)], [(1, 9, 1)]]
    batching = resolved(policy="continuous", sequences=2, blocks=5, block=4, full="swap")
    moves = [
        (batch.swap, [(m.sequence, m.context, m.query) for m in batch.members]) for _, batch in drive(loops(batching, asked))
    ]
    assert moves == [
        ("", [(0, 7, 1), (1, 7, 1)]), ("out", [(1, 8, 0)]), ("", [(0, 8, 1)]), ("", [(0, 9, 1)]),
        ("in", [(1, 8, 0)]), ("", [(1, 8, 1)]), ("", [(1, 9, 1)]),
    ]  # fmt: skip


@pytest.mark.parametrize("full", ["recompute", "swap"])
def test_a_block_is_taken_when_a_token_needs_it(full: str) -> None:
    """Two sequences that end with 7 tokens each fit two blocks of 8, and neither is ever pre-empted."""
    asked = [Request(context=4, tokens=4, arrival=0)] * 2
    batching = resolved(policy="continuous", sequences=2, blocks=2, block=8, full=full)
    steps = [[(m.sequence, m.context) for m in batch.members] for _, batch in drive(loops(batching, asked))]
    assert steps == [[(0, context), (1, context)] for context in (4, 5, 6, 7)]


def test_samples_share_the_prompt() -> None:
    asked = [Request(context=0, prompt=10, tokens=2, arrival=0, group=0)] * 3
    batching = resolved(policy="continuous", sequences=3, blocks=2 + 3, block=4)  # ten tokens: two full blocks, and one each
    check_feasible(batching, asked)
    first, second = (batch for _, batch in drive(loops(batching, asked)))
    assert [m.sequence for m in first.members] == [0]
    assert first.forks == (1, 2)
    assert [(m.sequence, m.context, m.loads, m.leader) for m in second.members] == [
        (0, 10, 10, -1),
        (1, 10, 0, 0),
        (2, 10, 0, 0),
    ]
    much = r"3 samples of one prompt end in 5 blocks \(20 tokens, 2.000 kB\), more than the 4 blocks \(16 tokens, 1.600 kB\)"
    with pytest.raises(InputError, match=much):
        check_feasible(resolved(policy="continuous", sequences=3, blocks=4, block=4), asked)


@pytest.mark.parametrize(
    ("prompt", "tokens", "needed"),
    [(10, 8, 2 + 3 * 3), (8, 1, 2)],  # 17 tokens in 5 blocks, of which the prompt fills 2; 8 tokens in 2, all shared
)
def test_samples_are_refused_from_one_block_too_few(prompt: int, tokens: int, needed: int) -> None:
    asked = [Request(context=0, prompt=prompt, tokens=tokens, arrival=0, group=0)] * 3
    enough, too_few = (resolved(policy="continuous", sequences=3, blocks=blocks, block=4) for blocks in (needed, needed - 1))
    check_feasible(enough, asked)
    (batcher,) = batchers = loops(enough, asked)
    batch = batcher.next(0)
    assert batch is not None
    assert batcher.blocks.used == needed * 4 * 100
    batcher.ended(batch, 10)
    drive(batchers)
    assert batcher.blocks.used == 0
    with pytest.raises(InputError, match=f"3 samples of one prompt end in {needed} blocks"):
        check_feasible(too_few, asked)


def test_closed_loop_keeps_so_many_on_the_way() -> None:
    asked = [Request(context=1, tokens=1 + i % 3, arrival=0) for i in range(10)]
    for policy in ("independent", "continuous"):
        batchers = loops(resolved(policy=policy, sequences=9), asked, concurrency=3, think=7)
        arrivals = batchers[0].arrivals
        steps = drive(batchers.copy())
        assert emitted(steps) == Counter({i: request.tokens for i, request in enumerate(asked)})
        ends: dict[int, int] = {}
        for start, batch in steps:
            ends |= {m.sequence: start + 10 for m in batch.members}
        came = arrivals.times
        assert [came[i] for i in range(3)] == [0, 0, 0]
        # Each of the others comes as long after an end as its user thinks.
        assert sorted(came[i] for i in range(3, 10)) == sorted(end + 7 for end in sorted(ends.values())[:7])
        for time in sorted(came.values()):
            assert sum(came[i] <= time < ends[i] for i in came) <= 3


def test_a_conversation_goes_on_with_its_next_turn_in_a_closed_loop() -> None:
    """Steps take 10 ps and think times 5. The turns of conversation 0 last 1, 2 and 1 steps, that of 1 one step."""
    turns = [
        Request(context=1, tokens=tokens, arrival=0, conversation=number) for number, tokens in ((0, 1), (0, 2), (0, 1), (1, 1))
    ]
    one_user = [*turns, Request(context=1, tokens=1, arrival=0)]
    for policy in ("independent", "continuous"):
        batchers = loops(resolved(policy=policy, sequences=9), one_user, concurrency=1, think=5)
        steps = drive(batchers.copy())
        assert emitted(steps) == Counter({0: 1, 1: 2, 2: 1, 3: 1, 4: 1})
        assert batchers[0].arrivals.times == {0: 0, 1: 15, 2: 40, 3: 55, 4: 70}
    (batcher,) = batchers = loops(resolved(policy="continuous", sequences=9), turns, concurrency=2, think=5)
    drive(batchers)
    assert batcher.arrivals.times == {0: 0, 3: 0, 1: 15, 2: 40}  # no turn before the one that it answers has ended


def test_samples_come_and_go_together_in_a_closed_loop() -> None:
    asked = [Request(context=1, prompt=0, tokens=2, arrival=0)]
    asked += [Request(context=0, prompt=10, tokens=tokens, arrival=0, group=1) for tokens in (3, 5, 4)]
    asked += [Request(context=1, prompt=0, tokens=9, arrival=0), Request(context=1, prompt=0, tokens=1, arrival=0)]
    (batcher,) = batchers = loops(resolved(policy="continuous", sequences=9), asked, concurrency=2, think=5)
    steps = drive(batchers)
    assert emitted(steps) == Counter({i: request.tokens for i, request in enumerate(asked)})
    assert batcher.blocks.used == 0
    # The first ends at 20, so the fifth comes at 25. All samples have ended at 50, so the last comes at 55.
    assert batcher.arrivals.times == {0: 0, 1: 0, 2: 0, 3: 0, 4: 25, 5: 55}
    assert steps[0][1].forks == (2, 3)


def test_acceptance_is_geometric_up_to_the_drafts() -> None:
    drafts, p, steps = 4, 0.7, 20_000
    counts = Counter(accepted(p, [drafts] * steps, seed=1, sequences=[0] * steps, steps=range(steps)))
    for right in range(drafts + 1):
        expected = p**right * (1 - p) if right < drafts else p**drafts
        sigma = (expected * (1 - expected) / steps) ** 0.5
        assert abs(counts[right] / steps - expected) < 4 * sigma
    assert accepted(1.0, [2, 1], seed=0, sequences=[0, 1], steps=[0, 0]) == [2, 1]
    assert accepted(0.0, [2, 0], seed=0, sequences=[0, 1], steps=[0, 0]) == [0, 0]
    assert accepted((3, 0, 9), [4, 4, 4, 4, 2], seed=0, sequences=[0] * 5, steps=range(5)) == [3, 0, 4, 3, 0]


@pytest.mark.parametrize("compiled", [False, True])
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2**20), st.integers(0, 2**20)), max_size=5),
    st.integers(0, 2**63 - 1), st.floats(0, 1),
)  # fmt: skip
def test_guesses_are_right_by_the_raw_stream_of_numpy(
    compiled: bool, members: list[tuple[int, int, int]], seed: int, acceptance: float
) -> None:  # fmt: skip
    """Draws are keyed by the sequence and its number of decode steps, and do not depend on other members."""
    threshold = int(acceptance * 2**53)
    drafts = np.array([drafts for drafts, *_ in members], dtype=np.int64)
    keys = np.array([(sequence << 32) | step for _, sequence, step in members], dtype=np.int64)
    expected = []
    for most, key in zip(drafts.tolist(), keys.tolist(), strict=True):
        raw = np.random.Philox(key=np.array([seed, key], dtype=np.uint64)).random_raw(most)
        expected.append(next((i for i, bits in enumerate(raw.tolist()) if bits >> 11 >= threshold), most))
    launch(count_accepted, compiled=compiled)(drafts, keys, seed, threshold, np.zeros(8, dtype=np.int64))
    assert drafts.tolist() == expected


@settings(max_examples=200, deadline=None)
@given(samples() | requests, batchings(), st.none() | st.integers(1, 4))
def test_a_step_that_goes_on_is_the_one_that_would_be_made_up(
    asked: list[Request], batching: ResolvedBatching, concurrency: int | None
) -> None:  # fmt: skip
    """Where all decode on, the next step follows from the last one; made up from the sequences, it is the same."""
    assume(feasible(batching, asked))
    (short,), (long,) = (loops(batching, asked, concurrency=concurrency) for _ in range(2))
    now, going = 0, True
    while going:
        long._last = None
        first, second = short.next(now), long.next(now)
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert (first.members, first.swap, first.forks) == (second.members, second.swap, second.forks)
            assert (first.shape, first.emitted, first.context) == (second.shape, second.emitted, second.context)
            assert first.table.tolist() == [list(member) for member in first.members]
            now += 10
            short.ended(first, now)
            long.ended(second, now)
        elif short.arrivals.next is not None:
            now = short.arrivals.next
        else:
            going = False


def test_what_can_never_be_served_is_refused() -> None:
    asked = [Request(context=30, tokens=3, arrival=0)]
    much = r"sequence 0 ends with 33 tokens in 5 blocks \(40 tokens, 4.000 kB\), more than the 4 blocks \(32 tokens, 3.200 kB\)"
    with pytest.raises(InputError, match=much):
        check_feasible(resolved(policy="continuous", blocks=4, block=8), asked)
    with pytest.raises(InputError, match="at least 64, because sequence 0 is prefilled as a whole, found 32"):
        check_feasible(resolved(policy="continuous", max_tokens=32), [Request(context=0, prompt=64, tokens=1, arrival=0)])


def test_what_is_dropped_is_prefilled_with_all_that_it_had() -> None:
    """A prompt of 30 fits a budget of 32 tokens. Dropped before its last token, of 6, it is prefilled with 35."""
    asked = [Request(context=0, prompt=30, tokens=6, arrival=0)]
    for full, blocks in (("recompute", None), ("wait", 9), ("swap", 9)):
        check_feasible(resolved(policy="continuous", max_tokens=32, blocks=blocks, block=8, full=full), asked)
    message = "at least 35, because sequence 0 is prefilled as a whole even after it was dropped, found 34; .*prefill.chunk"
    with pytest.raises(InputError, match=message):
        check_feasible(resolved(policy="continuous", max_tokens=34, blocks=9, block=8, full="recompute"), asked)
    check_feasible(resolved(policy="continuous", max_tokens=35, blocks=9, block=8, full="recompute"), asked)
    check_feasible(resolved(policy="continuous", max_tokens=4, chunk=4, blocks=9, block=8, full="recompute"), asked)
