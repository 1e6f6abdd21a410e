"""Deterministic cases, in integers: equal to theory, not close to it."""

from __future__ import annotations

from fractions import Fraction
from heapq import heappop, heappush

import numpy as np
import pytest

from sim.machine.arbiters import (
    Derated,
    Efficiency,
    Fifo,
    Priority,
    ProcessorSharing,
    Proportional,
    RoundRobin,
    Weighted,
    water_fill,
)
from tests.theory.harness import MEAN, closed_loop, poisson, pool_waits, sizes, sojourns

FLOWS = [3_000_000, 1_000_000, 7_000_000, 2_000_000]  # ps of work; all arrive at 0
HUNDRED_GB = 100_000_000_000


def test_fifo_follows_lindley(oracle):
    """Path by path: W' = max(0, W + S - A) (Lindley, 1952), for 20,000 transfers."""
    rng = np.random.default_rng(11)
    arrivals, works = poisson(rng, 20_000, 0.95), sizes(rng, 20_000, "exponential")
    waits, wait = [], 0
    for i, instant in enumerate(arrivals):
        wait = max(0, wait + works[i - 1] - (instant - arrivals[i - 1])) if i else 0
        waits.append(wait)
    measured = [t - x for t, x in zip(sojourns(Fifo(), arrivals, works), works, strict=True)]
    assert measured == waits
    oracle("fifo, 20,000 transfers, rho 0.95: sum of waits [ps]", sum(waits), sum(measured))


@pytest.mark.parametrize("engines", [1, 3])
def test_engine_pool_follows_kiefer_and_wolfowitz(engines, oracle):
    """Path by path: each task starts on the engine that is free first (Kiefer and Wolfowitz, 1955)."""
    rng = np.random.default_rng(12)
    arrivals, works = poisson(rng, 10_000, 0.9 * engines), sizes(rng, 10_000, "two_point")
    free, waits = [0] * engines, []
    for instant, work in zip(arrivals, works, strict=True):
        first = free.index(min(free))
        start = max(instant, free[first])
        waits.append(start - instant)
        free[first] = start + work
    measured = pool_waits(engines, arrivals, works)
    assert measured == waits
    oracle(f"{engines} engines, 10,000 tasks, rho 0.9: sum of waits [ps]", sum(waits), sum(measured))


def test_simultaneous_flows_share_as_they_should(oracle):
    """F_k = [sum_{j < k} b_j + (n - k + 1) b_k] / B for n flows b_1 <= ... <= b_n that start together."""
    ends = dict(zip(FLOWS, sojourns(ProcessorSharing(), [0] * 4, FLOWS), strict=True))
    for k, flow in enumerate(sorted(FLOWS)):
        expected = sum(sorted(FLOWS)[:k]) + (len(FLOWS) - k) * flow
        oracle(f"simultaneous flows, flow {k + 1} of 4: end [ps]", expected, ends[flow])


def test_weighted_flows_end_in_order_of_work_per_weight(oracle):
    """Generalized processor sharing: until flow k ends, all remaining flows have received b_k / w_k per unit of weight."""
    weights = [1, 2, 3, 4]
    kinds = [f"kind {w}" for w in weights]
    arbiter = Weighted(weights=dict(zip(kinds, weights, strict=True)))
    flows = [12_000_000 * w // d for w, d in zip(weights, (2, 3, 1, 4), strict=True)]
    ends = sojourns(arbiter, [0] * 4, flows, kinds)
    for i, end in enumerate(ends):
        level = Fraction(flows[i], weights[i])
        expected = sum(min(Fraction(flow), level * w) for flow, w in zip(flows, weights, strict=True))
        oracle(f"weighted flows, weight {weights[i]}: end [ps]", expected, end)


def test_water_filling_by_hand(oracle):
    """Weights 6, 2, 1, 1 and a cap of 2/5: the first stays at 2/5, the others share 3/5 as 2 : 1 : 1."""
    shares, denominator = water_fill([6, 2, 1, 1], (2, 5))
    for share, expected in zip(shares, (Fraction(2, 5), Fraction(3, 10), Fraction(3, 20), Fraction(3, 20)), strict=True):
        oracle(f"water filling, cap 2/5: share of {expected}", expected, Fraction(share, denominator))
    assert water_fill([5, 5], (1, 4)) == ([1, 1], 4)  # the ports are the limit


def test_proportional_to_what_is_outstanding_all_end_together(oracle):
    """Shares b_i / sum b: each flow takes sum b / B, the aggressive one too."""
    for flow, end in zip(FLOWS, sojourns(Proportional(bandwidth=HUNDRED_GB), [0] * 4, FLOWS), strict=True):
        oracle(f"proportional to outstanding, flow of {flow // 1_000_000} us: end [ps]", sum(FLOWS), end)


def test_proportional_to_demand_slows_all_by_the_same_factor(oracle):
    """Demands of 3/4, 1/2 and 1/4 of the channel: every flow runs at 2/3 of what it would alone."""
    demand = {"a": "75 GB/s", "b": "50 GB/s", "c": "25 GB/s"}
    flows = [3_000_000, 2_000_000, 1_000_000]
    arbiter = Proportional(bandwidth=HUNDRED_GB, demand=demand)
    for kind, end in zip(demand, sojourns(arbiter, [0] * 3, flows, list(demand)), strict=True):
        oracle(f"proportional to demand, {demand[kind]}: end [ps]", 4_000_000 * Fraction(3, 2), end)


@pytest.mark.parametrize("engines", [1, 2, 4, 8])
def test_closed_loop(engines, oracle):
    """FIFO attains min(N / (Z + D), 1 / D); sharing that starts together stays in lockstep, N / (Z + N D)."""
    think, load, rounds = 3_000_000, 1_000_000, 200
    makespan = closed_loop(Fifo(), engines, think, load, rounds)
    # The last engine begins when the others have loaded; then one round takes Z + D, or N D if the channel is the limit.
    expected = (engines - 1) * load + (rounds - 1) * max(think + load, engines * load) + load + think
    oracle(f"closed loop, fifo, N = {engines}, 200 rounds: makespan [ps]", expected, makespan)
    makespan = closed_loop(ProcessorSharing(), engines, think, load, rounds)
    oracle(f"closed loop, sharing, N = {engines}, 200 rounds: makespan [ps]", rounds * (think + engines * load), makespan)


def test_lockstep_costs_7_quarters(oracle):
    """At N = 4, Z = 3, D = 1: 1.0 against 4/7 tasks per D. The start is taken out: what 400 rounds add to 200."""
    added = [closed_loop(a(), 4, 3_000, 1_000, 400) - closed_loop(a(), 4, 3_000, 1_000, 200) for a in (Fifo, ProcessorSharing)]
    oracle("closed loop, fifo: tasks per D", 1, Fraction(4 * 200 * 1_000, added[0]))
    oracle("closed loop, sharing: tasks per D", Fraction(4, 7), Fraction(4 * 200 * 1_000, added[1]))
    oracle("lockstep: sharing takes, of the time of fifo", Fraction(7, 4), Fraction(added[1], added[0]))


@pytest.mark.parametrize("burst", [1_000_000, 100_000, 10_000, 1_000])
def test_round_robin_tends_to_processor_sharing(burst):
    """No flow ends later or earlier than with fair sharing by more than a round of bursts."""
    fair = sojourns(ProcessorSharing(), [0, 0, 500, 700], FLOWS)
    turns = sojourns(RoundRobin(bandwidth=1, burst=burst), [0, 0, 500, 700], FLOWS)
    assert max(abs(a - b) for a, b in zip(fair, turns, strict=True)) <= len(FLOWS) * burst


def test_round_robin_in_hand_made_turns(oracle):
    """Works 3, 1, 2 in bursts of 1: a b c a c a."""
    ends = sojourns(RoundRobin(bandwidth=1, burst=1_000), [0, 0, 0], [3_000, 1_000, 2_000])
    for name, expected, end in zip("abc", (6_000, 2_000, 5_000), ends, strict=True):
        oracle(f"round robin by hand, flow {name}: end [ps]", expected, end)


def test_priority_by_hand(oracle):
    """A low transfer of 10 from 0, a high one of 4 from 3."""
    for preemptive, expected in ((False, (10, 11)), (True, (14, 4))):
        ends = sojourns(Priority(classes=["high"], preemptive=preemptive), [0, 3_000], [10_000, 4_000], ["low", "high"])
        for name, time, end in zip(("low", "high"), expected, ends, strict=True):
            oracle(f"priority by hand, {'pre-emptive' if preemptive else 'waiting'}, {name}: T [ps]", time * 1_000, end)


def test_efficiency_of_a_raspberry_pi_5(oracle):
    """Each of n equal flows takes n b / (B e(n)); 9.26, 13.23, 11.59 of 17.07 GB/s at 1, 2 and 4 threads, linear between."""
    measured = {n: Fraction(rate, 1707) for n, rate in ((1, 926), (2, 1323), (4, 1159))}
    curve = Efficiency(measured)
    for n, share in {**measured, 3: (measured[2] + measured[4]) / 2, 8: measured[4]}.items():
        oracle(f"efficiency with {n} transfers", share, curve.at(n))
        ends = sojourns(Derated(ProcessorSharing(), curve), [0] * n, [926 * 1323 * 1159] * n)
        exact = n * 926 * 1323 * 1159 / share
        oracle(f"{n} flows on such a channel: end [ps]", -(-exact.numerator // exact.denominator), max(ends))


def test_latency_is_pipelined(oracle):
    """n consecutive transfers take L + n b, not n (L + b)."""
    ends = sojourns(Fifo(), [0] * 5, [MEAN] * 5, latency=100_000)
    oracle("fifo with latency, the last of 5: end [ps]", 100_000 + 5 * MEAN, ends[-1])


def test_processor_sharing_follows_its_virtual_time(oracle):
    """Path by path: a transfer ends when the service that each one has received since its arrival equals its work.

    Up to the floors of the channel: at each change of the plan they move up to 1 ps from each transfer to the last one.
    """
    rng = np.random.default_rng(13)
    arrivals, works = poisson(rng, 10_000, 0.9), sizes(rng, 10_000, "exponential")
    measured = sojourns(ProcessorSharing(), arrivals, works)
    expected = virtual_time(arrivals, works)
    assert max(abs(a - b) for a, b in zip(measured, expected, strict=True)) < MEAN / 100
    share = sum(expected)
    oracle(
        "processor sharing, 10,000 transfers, rho 0.9: sum of T / itself, to 1e-5", 1, Fraction(round(sum(measured) / share, 5))
    )


def virtual_time(arrivals: list[int], works: list[int]) -> list[float]:
    """Sojourn times under processor sharing, from the service that an always present transfer would have received."""
    ends, heap, service, now, following = [0.0] * len(works), [], 0.0, 0.0, 0
    while heap or following < len(works):
        next_end = now + (heap[0][0] - service) * len(heap) if heap else float("inf")
        if following < len(works) and arrivals[following] <= next_end:
            service += (arrivals[following] - now) / len(heap) if heap else 0.0
            now = arrivals[following]
            heappush(heap, (service + works[following], following))
            following += 1
        else:
            service, i = heappop(heap)
            now, ends[i] = next_end, next_end - arrivals[i]
    return ends
