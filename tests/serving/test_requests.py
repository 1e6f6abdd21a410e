"""Request metrics of whole runs: queues with closed formulas, and invariants of any run."""

from __future__ import annotations

import numpy as np
import pytest

import sim
from sim.analysis.series import Levels, batches, cached
from sim.render.trace.layout import Layout
from sim.runs.run import run
from sim.runs.workload import requests
from sim.scenario import from_dict

S, MS = 10**12, 10**9


def simulated(workload: dict[str, object], *, seed: int = 0, **others: object) -> sim.Result:
    model = {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}
    return run(from_dict({"model": model, "workload": workload, "seed": seed, **others}))


def queue(arrivals: dict[str, object], count: int, seed: int, **report: object) -> sim.Result:
    """One engine that serves each request in 4 ms, in order of arrival."""
    return run(
        from_dict(
            {
                "model": {"graph": [{"name": "work", "duration": "4 ms"}]},
                "workload": {"generate": {"count": count, "arrivals": arrivals}},
                "hardware": {"engines": {"count": 1}},
                "scheduler": "earliest",
                "seed": seed,
                "report": report,
            }
        )
    )


def test_a_constant_service_waits_as_pollaczek_and_khinchin_say() -> None:
    """M/D/1: W = D + rho D / (2 (1 - rho)); at rho = 0.6 that is 4 + 3 ms. L = lambda W = 0.15 / ms * 7 ms."""
    stays, numbers = [], []
    for seed in range(3):
        result = queue({"process": "poisson", "rate": "150/s"}, 3000, seed, warmup_requests=100)
        stays.append(result.requests.e2e[result.requests.counted].mean() / MS)
        numbers.append(result.requests.in_system)
    assert np.mean(stays) == pytest.approx(7.0, rel=0.05)
    assert np.mean(numbers) == pytest.approx(1.05, rel=0.07)


def test_bursts_wait_longer_and_even_gaps_not_at_all() -> None:
    """Kingman's bound: W_q <= lambda (variance of gaps + of service) / (2 (1 - rho)); here rho = 0.6, service constant."""
    even = queue({"process": "constant", "rate": "150/s"}, 500, 0).requests
    assert even.e2e.tolist() == [4 * MS] * 500
    gap = 1000 / 150  # ms
    waits = []
    for cv in (1, 2):
        result = queue({"process": "gamma", "cv": cv, "rate": "150/s"}, 2000, 1).requests
        waits.append((result.e2e - 4 * MS).mean() / MS)
        assert waits[-1] <= (cv * gap) ** 2 / gap / (2 * 0.4)
    assert waits[1] > 2.5 * waits[0]


def test_equal_requests_that_share_alike_are_treated_alike() -> None:
    result = simulated({"sequences": [{"context": 64, "tokens": 4, "count": 4}], "batching": "static"})
    assert result.requests.fairness() == {"tokens_per_s": 1.0, "slowdown": 1.0}


@pytest.mark.parametrize(
    "workload",
    [
        {"batching": "independent"},
        {"batching": {"policy": "continuous", "max_batch": 3}, "prefill": {"chunk": 100}},
        {"batching": {"policy": "static", "max_batch": 4}},
        {"batching": "continuous", "speculative": {"draft": 3, "acceptance": 0.7}},
    ],
    ids=["independent", "chunked", "static", "speculative"],
)
def test_what_holds_of_any_run(workload: dict[str, object]) -> None:
    generate = {
        "count": 8,
        "arrivals": {"process": "poisson", "rate": "300/s"},
        "tokens": {"distribution": "uniform", "min": 1, "max": 9},
        "prompt": {"distribution": "uniform", "min": 1, "max": 300},
        "context": {"distribution": "uniform", "min": 0, "max": 50},
    }
    result = simulated({"generate": generate, **workload}, seed=2)
    r, asked = result.requests, requests(result.scenario)
    assert r.tokens.tolist() == [request.tokens for request in asked]
    assert r.arrival.tolist() == [request.arrival for request in asked]
    assert (r.ttft + np.bincount(r.of_gap, weights=r.gaps, minlength=8) == r.e2e).all()
    log = result.log
    begin = [log.steps.released[log.members.step[log.members.sequence == number]].min() for number in range(8)]
    assert r.queued.tolist() == [start - arrival for start, arrival in zip(begin, r.arrival.tolist(), strict=True)]
    assert (r.slowdown > 0.999).all()
    assert sum(r.e2e.tolist()) == pytest.approx(r.in_system * r.end)
    # The cache never holds more than all that was asked for, and is empty in the end.
    found = Levels.joined(cached(result.log))
    assert 0 < found.value.max() <= sum(request.context + request.prompt + request.tokens for request in asked)
    assert found.end.max() == result.makespan
    assert result.series.batch.max() <= 8
    batching = workload["batching"]
    assert batches(result.log).value.max() <= (batching.get("max_batch", 8) if isinstance(batching, dict) else 8)
    moved = result.series.bytes_per_s.sum() * result.series.width / S
    assert moved == pytest.approx(sum(result.metrics.delivered) * result.log.bandwidth / S, rel=1e-6)


def test_a_step_that_verifies_gives_its_tokens_at_once() -> None:
    """Drafts of 3, of which 2 are right each time: steps of 3 tokens, so gaps are 0, 0, g, 0, 0, g, ..."""
    workload = {
        "sequences": [{"context": 100, "tokens": 9}], "speculative": {"draft": 3, "acceptance": [2]}, "batching": "continuous",
    }  # fmt: skip
    r = simulated(workload).requests
    ends = simulated(workload).log.steps.end
    assert len(ends) == 3
    assert r.gaps.tolist() == [0, 0, ends[1] - ends[0], 0, 0, ends[2] - ends[1], 0, 0]


def test_a_closed_loop_has_as_many_requests_as_users() -> None:
    result = simulated({"sequences": [{"context": 50, "tokens": 3, "count": 12}], "batching": "continuous", "concurrency": 4})
    r = result.requests
    assert sorted(r.arrival.tolist())[:4] == [0] * 4
    assert set(r.arrival.tolist()[4:]) <= set(r.last.tolist())
    assert r.in_system == pytest.approx(4.0)  # 12 alike: they end four by four
    thinking = {"users": 4, "think": "1 ms"}
    r = simulated(
        {"sequences": [{"context": 50, "tokens": 3, "count": 12}], "batching": "continuous", "concurrency": thinking}
    ).requests
    assert {t - MS for t in r.arrival.tolist()[4:]} <= set(r.last.tolist())
    assert r.in_system < 4


def test_counters_of_the_trace() -> None:
    result = simulated(
        {"generate": {"count": 5, "prompt": 20, "tokens": 3}, "batching": {"policy": "continuous", "max_batch": 2}}
    )
    layout = Layout(result.log)
    layout.machine()
    counters = {counter.track: counter for counter in layout.counters()}
    by_name = {track.name: counters[track.uuid] for track in layout.tracks.all if track.uuid in counters}
    batch, cache = by_name["batch size"], by_name["KV cache"]
    assert set(batch.value.tolist()) == {0, 1, 2}
    assert cache.value.max() == 2 * (20 + 2)  # the last token is never fed in
    assert batch.value[-1] == cache.value[-1] == 0


def test_one_sequence_has_no_counters_of_requests() -> None:
    result = simulated({"sequences": [{"context": 5, "tokens": 2}]})
    layout = Layout(result.log)
    layout.machine()
    assert "batch size" not in {track.name for track in layout.tracks.all}
