"""The channel, the routes over several, and the engine pool."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.executors.reference.channel import Channel, Channels
from sim.executors.reference.instant import Environment
from sim.machine.arbiters import (
    ARBITERS,
    Arbiter,
    Derated,
    Efficiency,
    Fifo,
    Plan,
    Priority,
    ProcessorSharing,
    RoundRobin,
    Transfer,
    Weighted,
    water_fill,
)
from sim.machine.routes import ROUTES, Route, stripe
from sim.mapping.tasks import CLASS_BIT
from tests.theory.harness import Engines

Record = list[tuple[str, int, int, int]]


def serve(arbiter: Arbiter, *requests: tuple[int, int, int], latency: int = 0) -> tuple[dict[str, int], Record]:
    """Ends by name, and service intervals, of requests (instant, requester, work) named a, b, c, ..."""
    env, services, ends = Environment(), [], {}
    channel = Channel(env, arbiter, lambda t, start, end, work: services.append((t.kind, start, end, work)), latency=latency)

    def issue(name: str, number: int, instant: int, requester: int, work: int):
        yield env.timeout(instant)
        yield channel.request(Transfer((0, 0, number), requester, name, 0, 0, work, work))
        ends[name] = env.now

    for number, (name, request) in enumerate(zip("abcdefgh", requests, strict=False)):
        env.process(issue(name, number, *request))
    env.run()
    assert not channel.pending
    return ends, services


class TestChannel:
    def test_a_requester_has_one_transfer_at_the_channel(self):
        """b waits behind a at the same port although the channel could share; c has its own port."""
        ends, _ = serve(ProcessorSharing(), (0, 0, 10), (0, 0, 10), (0, 1, 40))
        assert ends == {"a": 20, "b": 40, "c": 60}

    def test_a_queue_is_served_in_order_of_arrival(self):
        ends, _ = serve(Fifo(), (5, 0, 10), (0, 0, 10), (1, 0, 10))
        assert ends == {"b": 10, "c": 20, "a": 30}

    def test_equal_arrivals_go_in_program_order(self):
        assert [name for name, *_ in serve(Fifo(), (3, 9, 1), (3, 1, 1), (3, 4, 1))[1]] == ["a", "b", "c"]

    def test_transfers_that_reach_the_head_together_reach_the_channel_in_program_order(self):
        """a and b share and end together; c has waited behind b, d behind a."""
        ends, services = serve(ProcessorSharing(), (0, 0, 10), (0, 1, 10), (1, 1, 5), (1, 0, 5))
        assert ends == {"a": 20, "b": 20, "c": 30, "d": 30}
        assert [name for name, *_ in services] == ["a", "b", "c", "d"]

    def test_ends_round_up_and_the_last_share_takes_the_rest(self):
        """Three shares of 1/3: 10 ps of work each end at 30; after 10 ps of 7 they have 3, 3 and 4 of it."""
        assert serve(ProcessorSharing(), (0, 0, 10), (0, 1, 10), (0, 2, 10))[0] == {"a": 30, "b": 30, "c": 30}
        _, services = serve(ProcessorSharing(), (0, 0, 10), (0, 1, 10), (0, 2, 10), (10, 3, 10))
        assert [work for *_, work in services[:3]] == [3, 3, 4]
        assert serve(ProcessorSharing(cap=(2, 3)), (0, 0, 5))[0] == {"a": 8}  # 7.5 ps

    def test_latency_delays_and_occupies_nothing(self):
        ends, services = serve(Fifo(), (0, 0, 10), (0, 1, 10), latency=7)
        assert ends == {"a": 17, "b": 27}
        assert services == [("a", 7, 17, 10), ("b", 17, 27, 10)]

    def test_an_arrival_that_changes_nothing_does_not_split_an_interval(self):
        _, services = serve(Fifo(), (0, 0, 10), (4, 1, 10))
        assert services == [("a", 0, 10, 10), ("b", 10, 20, 10)]

    def test_a_turn_that_began_alone_ends_with_the_burst_in_which_another_arrives(self):
        """b arrives in the third burst of a, which began at 0: a stops at 30, b has its 10, and a goes on alone to its end."""
        ends, services = serve(RoundRobin(bandwidth=1, burst=10), (0, 0, 100), (25, 1, 10))
        assert ends == {"a": 110, "b": 40}
        assert [service for service in services if service[0] == "b"] == [("b", 30, 40, 10)]
        assert sum(work for name, _, end, work in services if name == "a" and end <= 30) == 30

    def test_hand_arithmetic_of_the_last_share(self):
        """In the first 10 ps three get 3 each, and the last the 1 that the floors leave over, until another is the last."""
        ends, services = serve(ProcessorSharing(), (0, 0, 4), (0, 1, 9), (0, 2, 9), (10, 3, 4))
        assert ends == {"a": 14, "b": 26, "c": 25, "d": 23}
        assert services == [
            ("a", 0, 10, 3), ("b", 0, 10, 3), ("c", 0, 10, 4),  # 1, 6, 5 are left
            ("a", 10, 14, 1), ("b", 10, 14, 1), ("c", 10, 14, 1), ("d", 10, 14, 1),  # 0, 5, 4, 3
            ("b", 14, 23, 3), ("c", 14, 23, 3), ("d", 14, 23, 3),  # 2, 1, 0
            ("b", 23, 25, 1), ("c", 23, 25, 1),
            ("b", 25, 26, 1),
        ]  # fmt: skip

    def test_what_floors_leave_over_ends_no_transfer(self):
        """At 5 the last of three is owed 5 - 1 - 1 of the 2 that it lacks, and was to end at 6: 1 stays, and it goes on."""
        ends, services = serve(ProcessorSharing(), (0, 0, 9), (0, 1, 9), (0, 2, 2), (5, 3, 9))
        assert [service for service in services if service[0] == "c"] == [("c", 0, 5, 1), ("c", 5, 9, 1)]
        assert ends["c"] == 9
        assert all(start < end for _, start, end, _ in services)

    def test_a_transfer_is_in_service_until_the_plan_after_its_last(self):
        """Non-pre-emptive arbiters rely on it: b, more urgent, waits for a, although the turn of a is over at 4."""

        class Turns(Priority):
            def plan(self, pending):
                asked.append([(t.kind, t.in_service, t.remaining) for t in pending])
                return super().plan(pending)._replace(quantum=4)

        asked = []
        ends, _ = serve(Turns(classes=["b"]), (0, 0, 6), (1, 1, 2))
        assert ends == {"a": 6, "b": 8}
        assert asked == [
            [("a", False, 6)],
            [("a", True, 6), ("b", False, 2)],  # at 1; work is credited when the plan changes
            [("a", True, 1), ("b", False, 2)],  # at 5: a turn of 4 began at 1
            [("b", False, 2)],
        ]  # fmt: skip

    def test_impossible_values_are_refused(self):
        with pytest.raises(ValueError, match="expected 0 or more, found -1"):
            Channel(Environment(), Fifo(), print, latency=-1)
        with pytest.raises(ValueError, match="expected at least 1 ps of work"):
            serve(Fifo(), (0, 0, 0))

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(1, 30)), min_size=1, max_size=8),
        st.sampled_from(
            [
                Fifo(), ProcessorSharing(cap=(2, 7)), RoundRobin(bandwidth=1, burst=3), Weighted(weights={"a": 3, "b": 2}),
                Derated(ProcessorSharing(), Efficiency({1: Fraction(1, 2), 3: Fraction(1)})),
            ]
        ),
    )  # fmt: skip
    def test_work_conserves_and_none_is_faster_than_the_channel(self, requests, arbiter):
        ends, services = serve(arbiter, *requests)
        for name, (instant, _, work) in zip("abcdefgh", requests, strict=False):
            assert sum(amount for who, *_, amount in services if who == name) == work
            assert ends[name] >= instant + work
        assert all(work <= end - start for _, start, end, work in services)


class TestChannels:
    def transfers(self, route: str, *transfers: Transfer) -> tuple[list[int], list[tuple[int, int]]]:
        env, services, ends = Environment(), [], []
        channels = [Channel(env, Fifo(), lambda t, start, end, work, n=n: services.append((n, work))) for n in range(2)]
        both = Channels(env, channels, route)
        for transfer in transfers:
            both.request(transfer).callbacks.append(lambda _: ends.append(env.now))
        env.run()
        return ends, sorted(services)

    def transfer(self, work: int, sequence: int = 0, moves: str = "weight") -> Transfer:
        return Transfer((sequence, 0, 0), sequence, "load", sequence, 0, work, work, moves=CLASS_BIT[moves])

    def test_interleaved_ends_with_its_last_part(self):
        assert self.transfers("interleaved", self.transfer(7)) == ([4], [(0, 4), (1, 3)])
        assert self.transfers("interleaved", self.transfer(1)) == ([1], [(0, 1)])

    def test_by_sequence(self):
        ends, services = self.transfers("sequence", self.transfer(7, 0), self.transfer(5, 1), self.transfer(2, 2))
        assert (ends, services) == ([5, 7, 9], [(0, 2), (0, 7), (1, 5)])

    def test_by_class(self):
        """Weights and activations on channel 0, the KV cache on channel 1."""
        of = [self.transfer(work, i, moves) for i, (work, moves) in enumerate(
            [(1, "weight"), (2, "kv_read"), (3, "kv_write"), (4, "act_read")])]  # fmt: skip
        assert self.transfers("class", *of)[1] == [(0, 1), (0, 4), (1, 2), (1, 3)]

    @given(st.integers(1, 10**15), st.integers(1, 64))
    def test_stripes_sum_to_the_whole(self, work, count):
        parts = [stripe(work, count, i) for i in range(count)]
        assert sum(parts) == work
        assert max(parts) - min(parts) <= 1
        assert max(parts) == -(-work // count)

    def test_refuses_an_unknown_route(self):
        env = Environment()
        with pytest.raises(ValueError, match="interleaved, sequence, class, found 'random'"):
            Channels(env, [Channel(env, Fifo(), print)], "random")
        assert list(ROUTES) == list(get_args(Route))


class TestArbiters:
    @given(st.lists(st.integers(1, 10**12), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 9))
    def test_water_filling(self, weights, num, more):
        """Shares sum to 1, or all are at the cap; none is above it; a share below it is the full share by weight."""
        shares, whole = water_fill(weights, (num, num + more))
        cap = [share * (num + more) >= num * whole for share in shares]
        assert all(share * (num + more) <= num * whole for share in shares)
        assert sum(shares) == whole or all(cap)
        below = [(share, weight) for share, weight, full in zip(shares, weights, cap, strict=True) if not full]
        assert all(share * below[0][1] == below[0][0] * weight for share, weight in below)

    def test_equal_weights_are_processor_sharing(self):
        for n in range(1, 9):
            pending = [Transfer((0, 0, i), i, "load", 0, 0, 9, 9) for i in range(n)]
            fair, weighted = (a.plan(pending) for a in (ProcessorSharing(cap=(2, 7)), Weighted(weights=[5], cap=(2, 7))))
            shares = [[share * other.denominator for _, share in plan.shares] for plan, other in
                      ((fair, weighted), (weighted, fair))]  # fmt: skip
            assert shares[0] == shares[1]

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("priority", {"classes": []}, "classes: expected 'age' or a list of kinds of transfers"),
            ("priority", {"classes": ["a", "a"]}, "classes: expected each kind once, as a text, found 'a'"),
            ("priority", {"preemptive": "yes"}, "preemptive: expected true or false, found 'yes'"),
            ("round_robin", {"bandwidth": 1, "burst": 0}, "burst: expected a whole number from 1 on, found 0"),
            ("round_robin", {"bandwidth": 1, "burst": "4 KB/s"}, "burst: unknown unit 'KB/s'"),
            ("weighted", {"weights": {"a": 1, "0": 2}}, "weights: expected whole numbers by kind"),
            ("weighted", {"weights": {"a": 1.5}}, "weights.a: expected a whole number from 1 on, found 1.5"),
            ("proportional", {"bandwidth": 1, "demand": {"a": 3}}, "demand.a: expected a bandwidth with its unit"),
        ],
    )  # fmt: skip
    def test_options_are_checked(self, name, options, message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            ARBITERS.get(name)(**options)

    def test_a_plan_of_no_bandwidth_lost_is_left_alone(self):
        pending = [Transfer((0, 0, 0), 0, "load", 0, 0, 9, 9)]
        derated = Derated(Fifo(cap=(1, 4)), Efficiency({1: Fraction(1, 2)}))
        assert derated.plan(pending) == Plan(((pending[0], 1),), 4)  # the port is slower than the channel at its worst


class TestEnginePool:
    def test_lowest_rank_to_lowest_engine_then_program_order(self):
        engines = Engines(2, [5, 5, 5], rank=[1, 0, 1])
        engines.offer(2, 1, 0)
        tasks = engines.run()
        assert [(t.engine, t.start, t.end) for t in tasks] == [(1, 0, 5), (0, 0, 5), (0, 5, 10)]

    def test_a_limit_keeps_engines_idle(self):
        engines = Engines(4, [3, 3, 3], limit=2)
        engines.offer(0, 1, 2)
        assert [(t.engine, t.start) for t in engines.run()] == [(0, 0), (1, 0), (0, 3)]

    def test_a_chain_stays_on_its_engine(self):
        """2 continues 1: it waits for engine 1 although engine 0 is idle, and 3, which is not bound, takes engine 0."""
        engines = Engines(2, [2, 5, 1, 4], chain=[0, 1, 1, 3], then={0: (2, 3)})
        engines.offer(0, 1)
        assert [(t.engine, t.start) for t in engines.run()] == [(0, 0), (1, 0), (1, 5), (0, 2)]

    def test_an_engine_takes_the_first_of_tasks_bound_to_it_and_of_unbound_ones(self):
        """At 2 both are free: 2 is bound to engine 0, which takes 3, of a lower rank. Then nothing is left for engine 1."""
        engines = Engines(2, [2, 2, 1, 4], chain=[0, 1, 0, 3], rank=[0, 0, 1, 0], then={0: (2, 3)})
        engines.offer(0, 1)
        assert [(t.engine, t.start) for t in engines.run()] == [(0, 0), (1, 0), (0, 6), (0, 2)]

    @pytest.mark.parametrize(("overlap", "ends"), [(False, [9, 7]), (True, [5, 4])])
    def test_an_engine_loads_and_computes(self, overlap, ends):
        """0 loads for 4 and computes for 5, 1 loads for 4 and computes for 3. Overlapping, each ends with the later."""
        engines = Engines(2, [5, 3], work=[4, 4], load=4, overlap=overlap)
        engines.offer(0, 1)
        tasks = engines.run()
        assert [(t.start, t.loaded) for t in tasks] == [(0, 4)] * 2
        assert [t.end for t in tasks] == ends


def test_a_failing_process_fails_the_run_with_its_own_error():
    env = Environment()

    def process():
        yield env.timeout(3)
        raise ArithmeticError("a defect")

    env.process(process())
    with pytest.raises(ArithmeticError, match="a defect"):
        env.run()
    assert env.now == 3
