"""Latencies of requests, by hand arithmetic on small logs, and by laws that hold for any log."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.analysis.requests import Distribution, Requests, jain, nearest_rank, requests
from sim.analysis.series import BINS, Levels, _integrals, batches, cached, series
from sim.base.errors import SimulationError
from sim.log.tables import EventLog, MemberTable, ServiceTable, StepTable, TaskTable
from sim.machine.machine import one_device

S = 10**12

#: (released, end, members as (sequence, context, query, emitted))
Step = tuple[int, int, list[tuple[int, int, int, int]]]


def log_of(arrival: list[int], steps: list[Step], services: tuple[tuple[int, int, int], ...] = ()) -> EventLog:
    """Log without tasks: requests come at `arrival`, and steps take them in. `services`: intervals (start, end, work)."""
    rows = [(number, *member) for number, (_, _, members) in enumerate(steps) for member in members]
    step, sequence, context, query, emitted = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    n = len(steps)
    zeros = np.zeros(n, dtype=np.int64)
    empty = np.zeros(0, dtype=np.int64)
    start, end, work = (
        np.array(column, dtype=np.int64) for column in (zip(*services, strict=True) if services else ([], [], []))
    )
    return EventLog(
        graphs=(), machine=one_device(engines=1), bandwidth=10**9,
        tasks=TaskTable(step=empty, task=empty, engine=empty, ready=empty, start=empty, loaded=empty, end=empty,
                        compute=empty, work=empty, launched=empty),
        services=ServiceTable(task=np.zeros_like(start), channel=np.zeros_like(start), start=start, end=end, work=work),
        steps=StepTable(
            sequence=zeros, token=np.arange(n), context=zeros, graph=zeros, first=zeros,
            released=np.array([s[0] for s in steps], dtype=np.int64), end=np.array([s[1] for s in steps], dtype=np.int64),
        ),
        batched=MemberTable(
            step=step, sequence=sequence, context=context, query=query, loads=context, logits=emitted, emitted=emitted,
            home=0 * emitted,
        ),
        arrival=np.array(arrival, dtype=np.int64),
    )  # fmt: skip


def metrics(arrival: list[int], steps: list[Step], **options: int) -> Requests:
    chains = np.zeros((len(steps), 7), dtype=np.int64)
    chains[:, 0] = [(end - released) // 2 for released, end, _ in steps]
    return requests(log_of(arrival, steps), chains, **options)


# Request 0 comes at 0 with a prompt of 5, in chunks of 3 and 2, and wants 3 tokens. Request 1 comes at 15 with 7 cached
# tokens, and wants 2, drafted together in one step of verification.
STEPS: list[Step] = [
    (0, 10, [(0, 0, 3, 0)]),
    (10, 20, [(0, 3, 2, 1)]),
    (20, 33, [(0, 5, 1, 1), (1, 7, 2, 2)]),
    (33, 40, [(0, 6, 1, 1)]),
]
ARRIVAL = [0, 15]


def test_by_hand() -> None:
    r = metrics(ARRIVAL, STEPS)
    assert r.ttft.tolist() == [20, 33 - 15]
    assert r.e2e.tolist() == [40, 33 - 15]
    assert r.queued.tolist() == [0, 5]
    assert r.gaps.tolist() == [13, 7, 0]  # of request 1: both tokens at 33
    assert r.of_gap.tolist() == [0, 0, 1]
    assert r.tpot.tolist() == [10, 0]  # (40 - 20) / 2
    assert r.tokens.tolist() == [3, 2]
    assert r.alone.tolist() == [5 + 5 + 6 + 3, 6]
    assert r.slowdown.tolist() == [40 / 19, 18 / 6]
    assert (r.begin, r.end, r.emitted) == (0, 40, 5)
    assert r.tokens_per_second == 5 * S / 40
    assert r.requests_per_second == 2 * S / 40
    assert r.in_system == (40 + 18) / 40
    times = r.times()
    assert times["itl"] == Distribution(count=3, mean=7, p50=7, p90=13, p99=13, largest=13)  # 20 / 3 is nearer to 7
    assert times["ttft"] == Distribution(count=2, mean=19, p50=18, p90=20, p99=20, largest=20)


def test_one_token_has_no_gap() -> None:
    r = metrics([0], [(3, 9, [(0, 4, 1, 1)])])
    assert (r.tpot.tolist(), r.gaps.tolist(), r.times()["tpot"], r.times()["itl"]) == ([-1], [], None, None)
    assert (r.ttft.tolist(), r.e2e.tolist(), r.queued.tolist()) == ([9], [9], [3])


def test_a_request_without_a_token_is_a_defect() -> None:
    with pytest.raises(SimulationError, match="sequence 1 got no token"):
        metrics([0, 0], [(3, 9, [(0, 4, 1, 1), (1, 0, 3, 0)])])


def test_warm_up() -> None:
    steps: list[Step] = [(10 * k, 10 * k + 10, [(k, 1, 1, 1)]) for k in range(4)]
    arrival = [0, 8, 20, 30]
    every = metrics(arrival, steps)
    assert every.counted.tolist() == [True] * 4
    by_number = metrics(arrival, steps, warmup_requests=2)
    by_time = metrics(arrival, steps, warmup_time=20)
    for r in (by_number, by_time):
        assert r.counted.tolist() == [False, False, True, True]
        assert (r.begin, r.end, r.emitted) == (20, 40, 2)
        assert r.tokens_per_second == 2 * S / 20
        assert r.requests_per_second == 2 * S / 20
        assert r.times()["e2e"] == Distribution(count=2, mean=10, p50=10, p90=10, p99=10, largest=10)
        assert r.in_system == 1.0
    none = metrics(arrival, steps, warmup_time=35)
    assert none.times()["e2e"] is None
    assert none.fairness() == {"tokens_per_s": None, "slowdown": None}


def test_percentiles_are_nearest_ranks() -> None:
    values = np.arange(1, 11) * 10  # the textbook example: ten values
    found = Distribution.of(values[::-1])
    assert found == Distribution(count=10, mean=55, p50=50, p90=90, p99=100, largest=100)
    for n in range(1, 300):
        for p in (50, 90, 99):
            rank = nearest_rank(p, n)
            assert Fraction(rank + 1, n) >= Fraction(p, 100) > Fraction(rank, n)


def test_jain() -> None:
    assert jain([3, 3, 3]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([1, 2, 3]) == pytest.approx(36 / (3 * 14), rel=1e-15)  # the paper's form: (sum)^2 / (n sum of squares)
    assert jain([]) is None


def test_batch_and_cache_over_time() -> None:
    log = log_of(ARRIVAL, STEPS)
    assert batches(log).value.tolist() == [1, 1, 2, 1]
    found = Levels.joined(cached(log))
    held = {}
    for start, end, value in zip(found.start.tolist(), found.end.tolist(), found.value.tolist(), strict=True):
        for time in range(start, end):
            held[time] = held.get(time, 0) + value
    # Request 0: 3 while its first chunk runs, 5 from then, 6 and 7 in the steps after. Request 1: 7 + 2 in its only step.
    assert [held[time] for time in (0, 9, 10, 19, 20, 32, 33, 39)] == [3, 3, 5, 5, 6 + 9, 6 + 9, 7, 7]


def test_a_cache_that_is_dropped_or_moved_out_is_not_held() -> None:
    """Request 0 is pre-empted after its first step: its 4 tokens are gone until it is prefilled again, or moved back in."""

    def held(steps: list[Step]) -> list[int]:
        found = Levels.joined(cached(log_of([0, 0], steps)))
        at = lambda t: int(found.value[(found.start <= t) & (t < found.end)].sum())  # noqa: E731
        return [at(t) for t in (5, 15, 25, 35)]

    other = [(1, 8, 1, 1)]
    recompute: list[Step] = [(0, 10, [(0, 3, 1, 1)]), (10, 30, other), (30, 40, [(0, 0, 5, 1)])]
    assert held(recompute) == [4, 9, 9, 5]
    swap: list[Step] = [
        (0, 10, [(0, 3, 1, 1)]), (10, 20, [(0, 4, 0, 0)]), (20, 30, other), (30, 36, [(0, 4, 0, 0)]), (36, 40, [(0, 4, 1, 1)])
    ]  # fmt: skip
    assert held(swap) == [4, 4, 9, 4]


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(0, 1000)), min_size=1, max_size=20),
    st.integers(1, 10**5),
)
def test_parts_sum_to_the_whole(intervals: list[tuple[int, int, int]], width: int) -> None:
    start, length, value = (np.array(column, dtype=np.int64) for column in zip(*intervals, strict=True))
    levels = Levels(start=start, end=start + length, value=value)
    count = -(-int((start + length).max()) // width)
    found = _integrals(levels, width, count, 0)
    assert found.sum() == (length * value).sum()
    part = count // 2
    for_one = sum(v * max(0, min(s + n, (part + 1) * width) - max(s, part * width)) for s, n, v in intervals)
    assert found[part] == for_one


def test_bandwidth_over_time() -> None:
    """A channel of 1 GB/s that gives 4 ps of work in [0, 8), and all of [8, 10): half and full bandwidth."""
    log = log_of([0], [(0, 10, [(0, 1, 1, 1)])], ((0, 8, 4), (8, 10, 2)))
    found = series(log, log.arrival, np.array([10]))
    assert found.width == 1
    assert found.bytes_per_s.sum() * 1 == 6 * 10**9
    assert found.bytes_per_s[8:].tolist() == [10**9, 10**9]
    assert found.in_system.tolist() == [1.0] * 10


def test_a_series_is_bounded() -> None:
    end = 123_456_789
    log = log_of([5], [(10, end, [(0, 2**20, 1, 1)])], ((10, end, 1000),))
    found = series(log, log.arrival, np.array([end]))
    assert len(found.batch) <= BINS
    assert found.width * len(found.batch) >= end
    assert found.batch[1:-1].tolist() == [1.0] * (len(found.batch) - 2)
    assert found.kv_tokens[3] == 2**20 + 1
    assert found.bytes_per_s.sum() * found.width == pytest.approx(1000 * 10**9, rel=1e-6)


@given(st.data())
def test_laws(data: st.DataObject) -> None:
    """E2E is TTFT and all gaps; and Little's law L = lambda W, exactly, over the whole run, counted in another way."""
    n = data.draw(st.integers(1, 5))
    arrival = [data.draw(st.integers(0, 50)) for _ in range(n)]
    steps: list[Step] = []
    now = max(arrival)
    for _ in range(data.draw(st.integers(1, 8))):
        now += data.draw(st.integers(0, 3))
        end = now + data.draw(st.integers(1, 20))
        steps.append((now, end, [(s, 0, 1, data.draw(st.integers(1, 3))) for s in range(n)]))
        now = end
    r = metrics(arrival, steps)
    gaps = np.bincount(r.of_gap, weights=r.gaps, minlength=n)
    assert (r.ttft + gaps == r.e2e).all()
    assert np.bincount(r.of_gap, minlength=n).tolist() == (r.tokens - 1).tolist()
    changes = sorted([(t, 1) for t in arrival] + [(t, -1) for t in r.last.tolist()])
    area = level = before = 0
    for time, change in changes:
        area += level * (time - before)
        level, before = level + change, time
    assert area == r.e2e.sum()
    assert r.in_system == area / r.end  # L = (n / T) (sum of stays / n)
    integral = _integrals(Levels(start=r.arrival, end=r.last, value=np.ones(n, dtype=np.int64)), 7, -(-r.end // 7), 0)
    assert integral.sum() == area
