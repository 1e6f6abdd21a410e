"""Random arrivals: means within their own confidence interval (99.9 %, fixed seeds). Unit of time: the mean service time."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest

from sim.machine.arbiters import Fifo, Priority, ProcessorSharing, RoundRobin
from tests.theory.harness import MEAN, SECOND_MOMENT, Estimate, estimate, poisson, pool_waits, sizes, sojourns

COUNT = 20_000

#: Offered load, and number of transfers: a heavier load needs longer runs.
LOADS = [(0.7, 2 * COUNT), pytest.param(0.9, 50 * COUNT, marks=pytest.mark.slow)]


def draw(seed: int, rho: float, law: str, count: int = COUNT) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(seed)
    return poisson(rng, count, rho), sizes(rng, count, law)


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival at M/M/c waits (Erlang, 1917)."""
    rho = offered / servers
    top = offered**servers / factorial(servers) / (1 - rho)
    return top / (sum(offered**k / factorial(k) for k in range(servers)) + top)


@pytest.mark.parametrize("law", ["exponential", "deterministic", "two_point"])
@pytest.mark.parametrize(("rho", "count"), LOADS)
def test_fifo_is_m_g_1(law, rho, count, oracle):
    """Pollaczek-Khinchine: Wq = lambda E[S^2] / (2 (1 - rho)); M/M/1 and M/D/1 are special cases."""
    arrivals, works = draw(1, rho, law, count)
    waits = [(t - x) / MEAN for t, x in zip(sojourns(Fifo(), arrivals, works), works, strict=True)]
    name = {"exponential": "M/M/1", "deterministic": "M/D/1", "two_point": "M/G/1"}[law]
    oracle(f"{name} fifo, rho {rho}: Wq", rho * SECOND_MOMENT[law] / (2 * (1 - rho)), estimate(waits))


@pytest.mark.parametrize(("servers", "rho"), [(2, 0.7), (4, 0.8)])
def test_engine_pool_is_m_m_c(servers, rho, oracle):
    """Erlang C: Wq = C(c, a) / (c mu - lambda)."""
    arrivals, works = draw(2, servers * rho, "exponential", 3 * COUNT)
    waits = [wait / MEAN for wait in pool_waits(servers, arrivals, works)]
    expected = erlang_c(servers, servers * rho) / (servers * (1 - rho))
    oracle(f"M/M/{servers} engine pool, rho {rho}: Wq", expected, estimate(waits))


@pytest.mark.parametrize("law", ["exponential", "deterministic", "two_point"])
@pytest.mark.parametrize(("rho", "count"), LOADS)
def test_processor_sharing_does_not_depend_on_the_size_distribution(law, rho, count, oracle):
    """M/G/1-PS: E[T] = E[S] / (1 - rho) for all distributions (Kleinrock, 1967; Sakata et al., 1969)."""
    arrivals, works = draw(3, rho, law, count)
    times = [t / MEAN for t in sojourns(ProcessorSharing(), arrivals, works)]
    oracle(f"M/G/1 processor sharing, {law}, rho {rho}: E[T]", 1 / (1 - rho), estimate(times))


def test_processor_sharing_slows_all_sizes_by_the_same_factor(oracle):
    """E[T | x] = x / (1 - rho)."""
    rho = 0.6
    arrivals, works = draw(4, rho, "two_point", COUNT)
    times = sojourns(ProcessorSharing(), arrivals, works)
    for size in sorted(set(works)):
        chosen = [t / MEAN for t, x in zip(times, works, strict=True) if x == size]
        oracle(f"processor sharing, rho {rho}: E[T | x = {size / MEAN}]", size / MEAN / (1 - rho), estimate(chosen))


@pytest.mark.parametrize("ports", [2, 4])
def test_capped_sharing_is_m_m_r(ports, oracle):
    """With a cap of 1/R, up to R transfers do not slow each other: M/M/R with servers of rate 1/R each."""
    rho = 0.7
    arrivals, works = draw(5, rho, "exponential")
    times = [t / MEAN for t in sojourns(ProcessorSharing(cap=(1, ports)), arrivals, works)]
    expected = ports + erlang_c(ports, ports * rho) / (1 - rho)
    oracle(f"caps as M/M/{ports}, rho {rho}: E[T]", expected, estimate(times))


SHARES = (0.2, 0.3, 0.25)  # load of each class, the most urgent first
NAMES = ("high", "mid", "low")


def by_class(preemptive: bool) -> list[tuple[str, Estimate]]:
    rng = np.random.default_rng(6)
    count = 2 * COUNT
    arrivals, works = poisson(rng, count, sum(SHARES)), sizes(rng, count, "two_point")
    kinds = [NAMES[k] for k in rng.choice(3, count, p=np.array(SHARES) / sum(SHARES))]
    times = sojourns(Priority(classes=NAMES, preemptive=preemptive), arrivals, works, kinds)
    waits = {name: [] for name in NAMES}
    for kind, t, x in zip(kinds, times, works, strict=True):
        waits[kind].append((t if preemptive else t - x) / MEAN)
    return [(name, estimate(waits[name])) for name in NAMES]


def test_priority_without_preemption(oracle):
    """Cobham (1954): W_k = R0 / ((1 - sigma_{k-1}) (1 - sigma_k)), R0 = sum of lambda_i E[S^2] / 2."""
    residual = sum(SHARES) * SECOND_MOMENT["two_point"] / 2
    for k, (name, measured) in enumerate(by_class(preemptive=False)):
        expected = residual / ((1 - sum(SHARES[:k])) * (1 - sum(SHARES[: k + 1])))
        oracle(f"priority, non-pre-emptive, {name}: Wq", expected, measured)


def test_priority_with_preemption(oracle):
    """T_k = E[S] / (1 - sigma_{k-1}) + R_k / ((1 - sigma_{k-1}) (1 - sigma_k)), R_k = sum_{i <= k} lambda_i E[S^2] / 2."""
    for k, (name, measured) in enumerate(by_class(preemptive=True)):
        before, with_own = sum(SHARES[:k]), sum(SHARES[: k + 1])
        residual = with_own * SECOND_MOMENT["two_point"] / 2
        expected = 1 / (1 - before) + residual / ((1 - before) * (1 - with_own))
        oracle(f"priority, pre-emptive resume, {name}: E[T]", expected, measured)


@pytest.mark.slow
def test_round_robin_with_small_bursts_is_processor_sharing(oracle):
    rho = 0.7
    arrivals, works = draw(7, rho, "exponential")
    times = [t / MEAN for t in sojourns(RoundRobin(bandwidth=1, burst=MEAN // 100), arrivals, works)]
    oracle(f"round robin, bursts of 1/100, rho {rho}: E[T]", 1 / (1 - rho), estimate(times))
