"""A channel shared equally does what the channel that asks its arbiter does: the same ends, the same record, row by row."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.hardware.arbiters import Derated, Efficiency, EqualShares, Fifo, ProcessorSharing, Transfer, Weighted, equal_shares
from sim.hardware.channel import Channel
from sim.hardware.fair import FairChannel
from sim.hardware.instant import Environment

caps = st.sampled_from(((1, 1), (1, 2), (2, 5), (2, 4), (3, 65536), (65535, 65536)))
curves = st.dictionaries(
    st.integers(1, 9), st.sampled_from((Fraction(1), Fraction(27, 50), Fraction(2, 3), Fraction(1, 7))), min_size=1, max_size=3
)
arbiters = st.one_of(
    st.builds(ProcessorSharing, cap=caps),
    st.builds(lambda cap, curve: Derated(ProcessorSharing(cap=cap), Efficiency(curve)), caps, curves),
)
#: instant, requester, work: small numbers meet at one instant, and floors leave much over
requests = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 9), st.one_of(st.integers(1, 9), st.integers(1, 10**6))), max_size=25
)


def serve(channel: Channel, requests: list[tuple[int, int, int]]) -> list[int]:
    """When each has ended."""
    env, ends = channel.env, [-1] * len(requests)

    def issue(number: int, instant: int, requester: int, work: int):
        yield env.timeout(instant)
        transfer = Transfer((0, number), requester, "", 0, 0, work, work)
        channel.request(transfer, lambda: ends.__setitem__(number, env.now))

    for number, request in enumerate(requests):
        env.process(issue(number, *request))
    env.run()
    assert not channel.pending
    return ends


@settings(max_examples=400, deadline=None)
@given(arbiter=arbiters, requests=requests, latency=st.integers(0, 3))
def test_it_is_the_same_to_the_picosecond(arbiter: EqualShares, requests: list[tuple[int, int, int]], latency: int):
    asked: list[tuple[int, ...]] = []
    expected = serve(
        Channel(Environment(), arbiter, latency=latency, record=lambda t, *rest: asked.append((sum(t.row), *rest))), requests
    )
    found: list[tuple[int, ...]] = []

    def record(rows, start, end, work, last):
        found.extend((row, start, end, work) for row in rows[:-1])
        found.append((rows[-1], start, end, last))

    assert serve(FairChannel(Environment(), arbiter, latency=latency, record=record), requests) == expected
    assert found == asked


@given(arbiter=arbiters, n=st.integers(1, 20))
def test_a_rate_is_what_the_arbiter_plans(arbiter: EqualShares, n: int):
    shares, denominator, _ = arbiter.plan([Transfer((0, i), i, "", 0, 0, 1, 1, order=i) for i in range(n)])
    assert {Fraction(share, denominator) for _, share in shares} == {Fraction(*arbiter.rate(n))}


def test_only_equal_shares_have_a_rate():
    curve = Efficiency({1: Fraction(1, 2)})
    for arbiter in (Fifo(), Weighted(weights={"a": 2})):
        assert equal_shares(arbiter) is None
        assert equal_shares(Derated(arbiter, curve)) is None
    fair = Derated(ProcessorSharing(), curve)
    assert equal_shares(fair) is fair


def test_hand_arithmetic_of_the_last():
    """In the first 10 ps three get 3 each, and the last the 1 that the floors leave over, until another is the last."""
    found = []
    channel = FairChannel(Environment(), ProcessorSharing(), record=lambda rows, *rest: found.append((rows.tolist(), *rest)))
    assert serve(channel, [(0, 0, 4), (0, 1, 9), (0, 2, 9), (10, 3, 4)]) == [14, 26, 25, 23]
    assert found == [
        ([0, 1, 2], 0, 10, 3, 4),  # 1, 6, 5 are left
        ([0, 1, 2, 3], 10, 14, 1, 1),  # 0, 5, 4, 3
        ([1, 2, 3], 14, 23, 3, 3),  # 2, 1, 0
        ([1, 2], 23, 25, 1, 1),
        ([1], 25, 26, 1, 1),
    ]
