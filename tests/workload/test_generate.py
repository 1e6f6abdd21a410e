"""Requests from random numbers: rates, bounds, and that one quantity leaves the others alone."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import mean, median, pstdev

import pytest

from sim.base.errors import InputError
from sim.runs.workload import requests
from sim.scenario import from_dict, parse
from sim.workload.requests import Request

S = 10**12


def made(text: str, seed: int = 0) -> list[Request]:
    return requests(parse(f"{{model: {{config: llama-3.2-1b}}, seed: {seed}, workload: {{generate: {text}}}}}"))


def gaps(found: list[Request]) -> list[int]:
    return [b.arrival - a.arrival for a, b in pairwise(found)]


def test_all_at_once_and_constant() -> None:
    assert made("{count: 3, prompt: 5, context: 2, tokens: 7}") == [Request(arrival=0, context=2, prompt=5, tokens=7)] * 3
    found = made("{count: 4, arrivals: {process: constant, rate: 3/s}}")
    assert [r.arrival for r in found] == [0, S // 3, 2 * S // 3, S]  # from the exact k/rate: thirds do not add up errors


@pytest.mark.parametrize(
    ("arrivals", "cv"), [("process: poisson", 1), ("process: gamma, cv: 0.5", 0.5), ("process: gamma, cv: 3", 3)]
)
def test_gaps_have_the_rate_and_the_variation(arrivals: str, cv: float) -> None:
    n = 3001
    found = gaps(made(f"{{count: {n}, arrivals: {{{arrivals}, rate: 2.5/s}}}}"))
    assert abs(mean(found) - S / 2.5) < 4 * cv * S / 2.5 / math.sqrt(n)
    assert pstdev(found) / mean(found) == pytest.approx(cv, rel=0.12)


def test_a_poisson_process_has_as_much_variance_as_mean() -> None:
    """Counts in equal windows: the index of dispersion is 1; that of gamma gaps tends to cv^2 (renewal theory)."""
    for arrivals, expected in (("process: poisson", 1.0), ("process: gamma, cv: 2", 4.0)):
        found = made(f"{{count: 4000, arrivals: {{{arrivals}, rate: 10/s}}}}")
        windows = [0] * int(found[-1].arrival // (8 * S))
        for request in found:
            if request.arrival // (8 * S) < len(windows):
                windows[request.arrival // (8 * S)] += 1
        assert pstdev(windows) ** 2 / mean(windows) == pytest.approx(expected, rel=0.5)


def test_lengths() -> None:
    found = made(
        "{count: 4000, prompt: {distribution: lognormal, median: 400, sigma: 0.8}, "
        "tokens: {distribution: uniform, min: 3, max: 6}}"
    )
    assert median(r.prompt for r in found) == pytest.approx(400, rel=0.05)
    assert mean(r.prompt for r in found) == pytest.approx(400 * math.exp(0.32), rel=0.06)
    assert {r.tokens for r in found} == {3, 4, 5, 6}
    clipped = made("{count: 500, prompt: {distribution: lognormal, mean: 400, p90: 900, min: 100, max: 800}}")
    assert (min(r.prompt for r in clipped), max(r.prompt for r in clipped)) == (100, 800)


def test_one_quantity_leaves_the_others() -> None:
    one = made(
        "{count: 20, arrivals: {process: poisson, rate: 1/s}, prompt: 5, tokens: {distribution: uniform, min: 1, max: 99}}"
    )
    other = made(
        "{count: 30, arrivals: {process: poisson, rate: 1/s}, prompt: {distribution: lognormal, mean: 9, sigma: 1}, "
        "tokens: {distribution: uniform, min: 1, max: 99}}"
    )
    assert [(r.arrival, r.tokens) for r in one] == [(r.arrival, r.tokens) for r in other[:20]]
    twice = made("{count: 20, arrivals: {process: poisson, rate: 2/s}}")
    assert all(abs(r.arrival - 2 * t.arrival) <= 20 for r, t in zip(one, twice, strict=True))  # the same gaps, at half the size
    assert made("{count: 20, arrivals: {process: poisson, rate: 1/s}}", seed=1) != made(
        "{count: 20, arrivals: {process: poisson, rate: 1/s}}"
    )


def test_the_first_requests_never_change() -> None:
    found = made(
        "{count: 3, arrivals: {process: gamma, rate: 4/s, cv: 2}, prompt: {distribution: lognormal, median: 512, p99: 4096}, "
        "context: {distribution: uniform, min: 0, max: 1000}, tokens: {distribution: lognormal, mean: 200, sigma: 0.6}}",
        seed=3,
    )  # fmt: skip
    assert [(r.arrival, r.context, r.prompt, r.tokens) for r in found] == FIRST


FIRST = [(0, 136, 710, 216), (806427463, 127, 2781, 161), (862760574, 801, 902, 80)]


def test_a_scenario_survives_being_written_out() -> None:
    text = "{model: {config: llama-3.2-1b}, workload: {generate: {count: 3, tokens: {distribution: uniform, min: 1, max: 5}}}}"
    scenario = parse(text)
    assert from_dict(scenario.to_dict()) == scenario
    assert scenario.workload.sequences is None


def test_too_slow() -> None:
    with pytest.raises(
        InputError, match=r"workload.generate.arrivals: so slow that the last request comes after more than 1,000,000 s"
    ):
        made("{count: 99, arrivals: {process: constant, rate: 0.00001/s}}")


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        ("{generate: {count: 4}, sequences: [{}]}", "expected only one of the keys 'sequences', 'generate' and 'trace'"),
        ("{generate: {count: 4}, trace: x.csv}", "found 'generate' and 'trace'"),
        ("{sequences: null}", "expected the key 'sequences', 'generate' or 'trace'"),
        ("{generate: {}}", "workload.generate: the key 'count' is missing"),
        ("{generate: {count: 100001}}", "workload.generate.count: expected a number from 1 to 100000, found 100001"),
        ("{generate: {count: 1, arrivals: {process: poisson}}}", "arrivals: expected the key 'rate' with process poisson"),
        ("{generate: {count: 1, arrivals: {rate: 1/s}}}", "expected no rate where all requests arrive at once"),
        ("{generate: {count: 1, arrivals: {process: poisson, rate: 5}}}", "such as '2/s', found the bare number 5"),
        ("{generate: {count: 1, arrivals: {process: poisson, rate: 5/s, cv: 2}}}", "expected cv only with process gamma"),
        ("{generate: {count: 1, arrivals: {process: poison, rate: 5/s}}}", "(did you mean 'poisson'?)"),
        ("{generate: {count: 1, tokens: 0}}", "workload.generate.tokens: expected a number from 1 to 10000000, found 0"),
        (
            "{generate: {count: 1, tokens: {distribution: uniform, min: 0, max: 3}}}",
            "tokens: expected at least 1 token, found 0",
        ),
        (
            "{generate: {count: 1, prompt: {distribution: uniform, min: 4, max: 3}}}",
            "expected a max of at least the min, 4, found 3",
        ),
        ("{generate: {count: 1, prompt: {distribution: uniform, min: 4}}}", "expected the key 'max' with distribution uniform"),
        (
            "{generate: {count: 1, prompt: {distribution: constant, value: 4, max: 9}}}",
            "expected no 'max' with distribution constant",
        ),
        (
            "{generate: {count: 1, prompt: {distribution: lognormal, mean: 4, median: 3, sigma: 1}}}",
            "found 'median' and 'mean'",
        ),
        ("{generate: {count: 1, prompt: {distribution: lognormal, mean: 4, p99: 900}}}", "expected a p99 of at most 59.8"),
        (
            "{generate: {count: 1, prompt: {distribution: lognormal, mean: -4, sigma: 1}}}",
            "prompt.mean: expected a number above 0",
        ),
        ("{concurrency: 0}", "workload.concurrency: expected a number from 1 to 100000, found 0"),
        ("{concurrency: many}", "expected a number of users, or a mapping with the key 'users', found 'many'"),
        ("{concurrency: 2, sequences: [{arrival: 1 s}]}", "expected either arrival times or the key 'concurrency'"),
        ("{concurrency: 2, generate: {count: 9, arrivals: {process: poisson, rate: 1/s}}}", "expected either arrival times"),
    ],
)
def test_refused_workloads(workload: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(f"model: {{config: llama-3.2-1b}}\nworkload: {workload}", "x.yaml")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("x.yaml:2:")


def test_a_closed_loop_by_its_number_of_users() -> None:
    assert (
        parse("{model: {config: llama-3.2-1b}, workload: {concurrency: 4}}").workload.concurrency
        == parse("{model: {config: llama-3.2-1b}, workload: {concurrency: {users: 4, think: 0 s}}}").workload.concurrency
    )
