"""Links that transfers cross several of at once: shares by hand, max-min fairness of random ones, and service over time."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.executors.reference.channel import Channel, Links
from sim.executors.reference.instant import Environment
from sim.machine.arbiters import Fifo, Priority, ProcessorSharing, Proportional, RoundRobin, Transfer, Weighted
from sim.machine.arbiters.paths import WHOLE, PathArbiter, shares_paths


def transfer(number: int, path: tuple[int, ...], work: int = 1000, **others) -> Transfer:
    return Transfer(
        program=(0, 0, number), requester=number, kind=others.pop("kind", "send"), sequence=number, token=0, work=work,
        remaining=work, order=number, path=path, **others,
    )  # fmt: skip


def shares(arbiter, paths, links=4, **others) -> list[Fraction]:
    """The share of each of some transfers, in order of arrival."""
    pending = [transfer(i, path, **others) for i, path in enumerate(paths)]
    plan = PathArbiter(arbiter, 0, links).plan(pending)
    of = {id(each): Fraction(share, plan.denominator) for each, share in plan.shares}
    return [of.get(id(each), Fraction(0)) for each in pending]


A, B, C, D = range(4)


class TestShares:
    def test_what_a_bottleneck_leaves_goes_to_others(self):
        """B is shared by three, so that A has two thirds for the one that crosses it alone."""
        third = Fraction(1, 3)
        assert shares(ProcessorSharing(), [(A, B), (A,), (B,), (B,)]) == [third, 2 * third, third, third]

    def test_a_long_path_beside_short_ones(self):
        """The parking lot: each link is shared by the long path and one short one."""
        assert shares(ProcessorSharing(), [(A, B, C), (A,), (B,), (C,)]) == [Fraction(1, 2)] * 4

    def test_levels_that_rise_in_turn(self):
        """A allows 1/4 each, then B (1 - 1/4)/2 each, then C what is left."""
        paths = [(A,), (A,), (A,), (A, B), (B,), (B, C), (C,)]
        quarter, eighth = Fraction(1, 4), Fraction(1, 8)
        assert shares(ProcessorSharing(), paths) == [quarter] * 4 + [3 * eighth, 3 * eighth, 5 * eighth]

    def test_weights_count_where_paths_meet(self):
        """A gives 3/4 and 1/4; the second leaves 3/4 of B, which the third gets, though it weighs as little."""
        paths = [(A,), (A, B), (B,)]
        assert shares(Weighted(weights=[3, 1, 1]), paths) == [Fraction(3, 4), Fraction(1, 4), Fraction(3, 4)]

    def test_of_one_link_each_is_alone(self):
        assert shares(ProcessorSharing(), [(A,), (B,), (C,)]) == [1, 1, 1]
        assert shares(Fifo(), [(A,), (B,), (C,), (A,)]) == [1, 1, 1, 0]

    def test_one_at_a_time_is_served_when_it_comes_first_on_all_links(self):
        """The second waits for A and lets none pass on B; the fourth has C and D to itself."""
        assert shares(Fifo(), [(A,), (A, B), (B,), (C, D)]) == [1, 0, 0, 1]

    def test_by_urgency(self):
        pending = [transfer(0, (A, B), kind="late"), transfer(1, (B,), kind="soon"), transfer(2, (A,), kind="late")]
        arbiter = Priority(classes=["soon", "late"])
        assert [each.program[2] for each, _ in PathArbiter(arbiter, 0, 2).plan(pending).shares] == [1]
        pending[0].in_service = True  # it goes on, and no other can begin
        assert [each.program[2] for each, _ in PathArbiter(arbiter, 0, 2).plan(pending).shares] == [0]
        arbiter = Priority(classes=["soon", "late"], preemptive=True)
        assert [each.program[2] for each, _ in PathArbiter(arbiter, 0, 2).plan(pending).shares] == [1]

    def test_who_has_all_of_its_links_gets_all_of_the_time(self):
        """The first has A and B to itself; the others share C, of which 7 ps are 3 and 4."""
        arbiter = PathArbiter(ProcessorSharing(), 0, 3)
        plan = arbiter.plan([transfer(0, (A, B)), transfer(1, (C,)), transfer(2, (C,))])
        assert arbiter.amounts(plan.shares, 7) == [7, 3, 4]
        arbiter = PathArbiter(Fifo(), 0, 3)
        plan = arbiter.plan([transfer(0, (A, B)), transfer(1, (B,)), transfer(2, (C,))])
        assert arbiter.amounts(plan.shares, 7) == [7, 7]

    def test_remainders_go_to_the_last(self):
        assert sum(shares(ProcessorSharing(), [(A,)] * 17)) == 1
        plan = PathArbiter(ProcessorSharing(), 0, 1).plan([transfer(i, (A,)) for i in range(17)])
        assert [share for _, share in plan.shares] == [WHOLE // 17] * 16 + [WHOLE - 16 * (WHOLE // 17)]

    def test_demands_of_kinds_are_weights_that_no_share_exceeds(self):
        """A link of 10 GB/s: one that draws 6 leaves 4; on A two of them and one of 2 have 14, so that each gets 5/7 of it."""
        arbiter = Proportional(bandwidth=10**10, demand={"send": "6 GB/s", "move": "2 GB/s"})
        assert shares(arbiter, [(A,), (B, C)]) == [Fraction(6, 10)] * 2
        pending = [transfer(0, (A,)), transfer(1, (A, B)), transfer(2, (A,), kind="move"), transfer(3, (B,))]
        plan = PathArbiter(arbiter, 0, 2).plan(pending)
        assert [Fraction(share, WHOLE) for _, share in plan.shares] == [
            Fraction(6, 14), Fraction(6, 14), Fraction(2, 14), 1 - Fraction(6, 14),
        ]  # fmt: skip

    def test_what_is_left_of_each_is_its_weight(self):
        """A gives 3/4 and 1/4; the second leaves 3/4 of B to the third."""
        pending = [transfer(0, (A,), 3072), transfer(1, (A, B), 1024), transfer(2, (B,), 1024)]
        plan = PathArbiter(Proportional(bandwidth=10**9), 0, 2).plan(pending)
        assert [Fraction(share, WHOLE) for _, share in plan.shares] == [Fraction(3, 4), Fraction(1, 4), Fraction(3, 4)]

    def test_weights_of_long_transfers_have_16_places(self):
        pending = [transfer(0, (A,), 2**40), transfer(1, (A,), 2**39 + 1)]
        plan = PathArbiter(Proportional(bandwidth=10**9), 0, 1).plan(pending)
        assert [Fraction(share, WHOLE) for _, share in plan.shares] == [Fraction(2, 3), Fraction(1, 3)]

    def test_others_cannot(self):
        assert not shares_paths(RoundRobin(bandwidth=10**9))
        assert not shares_paths(Proportional(bandwidth=999_999_937, demand={"send": "999 MB/s"}))
        with pytest.raises(ValueError, match=r"expected fifo, priority, .*, weighted or proportional, found RoundRobin"):
            PathArbiter(RoundRobin(bandwidth=10**9), 0, 1)


PATHS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True).map(tuple), min_size=1, max_size=12)


@given(PATHS, st.data())
def test_none_can_get_more_without_taking_from_one_with_no_more(paths, data):
    weights = data.draw(st.lists(st.integers(1, 5), min_size=len(paths), max_size=len(paths)))
    found = shares(Weighted(weights=weights), paths, links=6)
    level = [share / weight for share, weight in zip(found, weights, strict=True)]
    rounding = Fraction(len(paths) * 100, WHOLE)
    used = [sum(share for share, path in zip(found, paths, strict=True) if link in path) for link in range(6)]
    assert max(used) <= 1
    for mine, path in zip(level, paths, strict=True):
        full = [link for link in path if used[link] >= 1 - rounding]
        highest = [max(each for each, other in zip(level, paths, strict=True) if link in other) for link in full]
        assert any(mine >= each - rounding for each in highest), "no link is full on which it gets as much as any other"


def served(arbiter, requests, links=6) -> tuple[list[int], list[list[tuple[int, int, int]]]]:
    """When transfers (time, path, work) have arrived, and what each link served: (start, end, work)."""
    env, intervals = Environment(), [[] for _ in range(links)]

    def record(link, _, start, end, work):
        intervals[link].append((start, end, work))

    channel = Links(env, PathArbiter(arbiter, 0, links), record)
    ends = [0] * len(requests)

    def request(number, time, path, work):
        yield env.timeout(time)
        yield channel.request(transfer(number, path, work))
        ends[number] = env.now

    for number, each in enumerate(requests):
        env.process(request(number, *each))
    env.run()
    return ends, intervals


def exact(requests) -> list[Fraction]:
    """The same with equal sharing, as exact fractions, by filling all links at the same pace until one is full."""
    now, left, ends = Fraction(0), {}, [Fraction(0)] * len(requests)
    coming = sorted(range(len(requests)), key=lambda i: requests[i][0])
    while coming or left:
        rate, room = {}, dict.fromkeys(range(6), Fraction(1))
        while len(rate) < len(left):
            open_ = [i for i in left if i not in rate]
            crossing = {link: [i for i in open_ if link in requests[i][1]] for link in room}
            level, link = min((room[link] / len(mine), link) for link, mine in crossing.items() if mine)
            for i in crossing[link]:
                rate[i] = level
                for each in requests[i][1]:
                    room[each] -= level
        until = min([now + left[i] / rate[i] for i in left] + [Fraction(requests[i][0]) for i in coming[:1]])
        left = {i: work - rate[i] * (until - now) for i, work in left.items()}
        now = until
        for i in [i for i in left if left[i] == 0]:
            ends[i] = now
            del left[i]
        while coming and requests[coming[0]][0] == now:
            i = coming.pop(0)
            left[i] = Fraction(requests[i][2])
    return ends


#: Some transfers: when each is requested, its path, and its work.
REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 50), st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True).map(tuple), st.integers(1, 1000)
    ),
    min_size=1, max_size=8,
)  # fmt: skip


class TestService:
    def test_two_that_send_to_one(self):
        """Links out 0 and 1, in 2: they share the link in, until the shorter has ended."""
        ends, intervals = served(ProcessorSharing(), [(0, (0, 2), 100), (0, (1, 2), 300)])
        assert ends == [200, 400]
        assert intervals[2] == [(0, 200, 100), (0, 200, 100), (200, 400, 200)]
        assert intervals[0] == [(0, 200, 100)]

    def test_two_that_send_to_one_in_turn(self):
        """The second has its own link out free, and waits for the link in; the third waits behind it."""
        ends, intervals = served(Fifo(), [(0, (0, 2), 100), (10, (1, 2), 300), (20, (1, 3), 50)])
        assert ends == [100, 400, 450]
        assert intervals[1] == [(100, 400, 300), (400, 450, 50)]

    def test_a_requester_has_one_transfer_at_a_link_out(self):
        env = Environment()
        channel = Links(env, PathArbiter(ProcessorSharing(), 0, 3), lambda *_: None)
        ends = {}
        for number, (requester, path) in enumerate([(0, (0, 2)), (0, (0, 1)), (0, (1,)), (1, (0,))]):
            of = transfer(number, path, 60)
            of.requester = requester
            channel.request(of).callbacks.append(lambda _, number=number: ends.setdefault(number, env.now))
        env.run()
        assert ends == {2: 60, 0: 120, 3: 120, 1: 180}

    @given(REQUESTS)
    def test_shared_as_exact_fractions_would_have_it(self, requests):
        """Each end rounds up, and each of some cuts may lose a picosecond of each transfer, which may delay others in turn."""
        ends, intervals = served(ProcessorSharing(), requests)
        for mine, best in zip(ends, exact(requests), strict=True):
            assert abs(mine - best) <= 8 * len(requests) ** 2
        self.conserved(requests, intervals)

    @given(REQUESTS, st.sampled_from([Fifo(), ProcessorSharing(), Priority(), Weighted(weights=[3, 2, 1])]))
    def test_bytes_are_conserved_on_each_link(self, requests, arbiter):
        _, intervals = served(arbiter, requests)
        self.conserved(requests, intervals)

    @staticmethod
    def conserved(requests, intervals):
        for link, mine in enumerate(intervals):
            assert sum(work for *_, work in mine) == sum(work for _, path, work in requests if link in path)
            for start, end in {(start, end) for start, end, _ in mine}:
                assert sum(work for at, _, work in mine if at == start) <= end - start


def test_one_link_is_a_channel():
    """The same ends as of a channel of its own, for shares that are exact."""
    requests = [(0, (0,), 100), (10, (0,), 300), (20, (0,), 50), (20, (0,), 77)]
    assert served(ProcessorSharing(), requests)[0] == alone(ProcessorSharing(), requests)
    assert served(Fifo(), requests)[0] == alone(Fifo(), requests)


def alone(arbiter, requests) -> list[int]:
    env, ends = Environment(), [0] * len(requests)
    channel = Channel(env, arbiter, lambda *_: None)

    def request(number, time, work):
        yield env.timeout(time)
        yield channel.request(transfer(number, (), work))
        ends[number] = env.now

    for number, (time, _, work) in enumerate(requests):
        env.process(request(number, time, work))
    env.run()
    return ends
