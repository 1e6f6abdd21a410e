"""Replicas that are simulated as runs of their own, and joined: all of it is that of one simulation of all."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import sim
from sim.analysis.requests import Distribution
from sim.base.processes import Work
from sim.executors import Executor
from sim.render.summary import summary
from sim.runs.apart import Apart, together
from sim.runs.plan import plan
from sim.runs.run import run
from sim.scenario import Scenario, from_dict
from tests.executors import assert_same

TOGETHER = Apart(least=2**62)


def pickled(work: Work[Any, Any], items: Iterable[Any]) -> Iterator[Any]:
    """Work as a process does it: items and results are copies."""
    there = pickle.loads(pickle.dumps(work))
    return (pickle.loads(pickle.dumps(there(pickle.loads(pickle.dumps(item))))) for item in items)


def scenario(data: int, workload: dict[str, Any], **changed: Any) -> Scenario:
    """Two layers of Llama 3.2 1B on small devices, behind a router."""
    return from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
        "hardware": {
            "engines": {"count": 2}, "memory": {"bandwidth": "2 TB/s"}, "devices": {"count": data},
            "energy": {"flop": "0.761 pJ/FLOP", "byte": "34.567 pJ/B", "static": {"device": "99.999 W", "engine": "1.234 W"}},
        },
        "workload": {"batching": {"policy": "continuous", "max_batch": 3}, **workload},
        "mapping": {"heads": "fused", "softmax": "online", "parallel": {"data": data}}, **changed,
    })  # fmt: skip


def assert_equal(one: sim.Result, other: sim.Result) -> None:
    """All that a run gives but the time that it took: each row, each sum, each percentile."""
    assert_same(one.log, other.log)
    left, right = (summary(each) for each in (one, other))
    for each in (left, right):
        each.pop("timing", None)
    assert left == right
    assert (one.bounds, one.checks, one.metrics.channel_busy) == (other.bounds, other.checks, other.metrics.channel_busy)
    assert (one.log.cache, one.requests.times()) == (other.log.cache, other.requests.times())
    np.testing.assert_array_equal(one.series.bytes_per_s, other.series.bytes_per_s)
    for table in ("tokens", "by_step"):
        np.testing.assert_array_equal(getattr(one.breakdown, table), getattr(other.breakdown, table))
    assert (one.energy is None) == (other.energy is None)
    if one.energy is not None and other.energy is not None:
        assert (one.energy.total, one.energy.channels) == (other.energy.total, other.energy.channels)
        for table in ("by_step", "by_part", "by_kind", "by_sequence", "engines"):
            np.testing.assert_array_equal(getattr(one.energy, table), getattr(other.energy, table))
    assert (one.window is None) == (other.window is None)
    if one.window is not None and other.window is not None:
        assert_same(one.window, other.window)


@st.composite
def drawn(draw: st.DrawFn) -> Scenario:
    """Prompts in chunks or whole, drafts, samples, conversations' beginnings, full caches, hosts, and what is recorded."""
    full, drafts = draw(st.sampled_from(("wait", "recompute", "swap"))), draw(st.booleans())
    request = {"prompt": st.sampled_from((1, 19, 40)), "tokens": st.integers(1, 6)}
    request["arrival"] = st.builds("{} us".format, st.integers(0, 300))
    if full == "wait" and not drafts:
        request["samples"] = st.integers(1, 2)
    workload: dict[str, Any] = {
        "sequences": draw(st.lists(st.fixed_dictionaries(request), min_size=1, max_size=8)),
        "router": draw(st.sampled_from(("round_robin", "prefix_hash"))),
        "batching": {
            "policy": draw(st.sampled_from(("static", "continuous"))), "max_batch": draw(st.integers(2, 4)),
            "kv": {"capacity": "512 KiB", "full": full, **({"moves": "between"} if full == "swap" else {})},
        },
        "step_overhead": draw(st.sampled_from(("0 us", "3 us"))),
        "prefill": {"chunk": draw(st.sampled_from((None, 16)))},
    }  # fmt: skip
    if drafts:
        workload["speculative"] = {"draft": 2, "acceptance": 0.5}
    record = draw(st.sampled_from(("all", "steps", "none")))
    window = {} if record == "all" else {"trace": {"window": {"start": "50 us", "end": "90 us"}}}
    return scenario(draw(st.integers(2, 4)), workload, record=record, **window)


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
@given(drawn())
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.explicit, Phase.generate]
)  # fmt: skip
def test_apart_they_are_what_they_are_together(executor: Executor, given: Scenario) -> None:
    assert together(plan(given).setup) == ""
    assert_equal(run(given, executor=executor, apart=TOGETHER), run(given, executor=executor, apart=Apart(pickled, 0)))


def test_percentiles_are_of_all_requests() -> None:
    """One replica has short prompts, the other long ones: the mean of their medians would be neither's."""
    requests = [{"prompt": 200 * (1 + i % 2 * i), "tokens": 2, "arrival": f"{i} us"} for i in range(9)]
    given = scenario(2, {"sequences": requests})
    found = run(given, apart=Apart(pickled, 0))
    assert found.requests.times()["ttft"] == Distribution.of(found.requests.ttft)
    assert_equal(run(given, apart=TOGETHER), found)


@pytest.mark.parametrize(
    ("workload", "hardware", "parallel", "why"),
    [
        ({"router": "least_loaded"}, {}, {}, "the router least_loaded looks at what each of them has to do"),
        ({"router": "prefix_aware"}, {}, {}, "the router prefix_aware looks at"),
        ({"concurrency": {"users": 2}}, {}, {}, "a user's next request depends on when the last one ended"),
        (
            {"batching": {"policy": "continuous", "kv": {"capacity": "1 MiB", "full": "swap"}}},
            {},
            {},
            "caches are moved",
        ),
        ({}, {"link": {"bandwidth": "50 GB/s"}}, {"prefill": 1}, "some replicas prefill for the others"),
        ({}, {"count": 4, "link": {"bandwidth": "50 GB/s"}}, {"pipeline": 2}, "links between their devices"),
    ],
)
def test_what_depends_on_others_stays_together(
    workload: dict[str, Any], hardware: dict[str, Any], parallel: dict[str, int], why: str
) -> None:
    given = from_dict({
        "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
        "hardware": {"engines": {"count": 2}, "devices": {"count": 2} | hardware},
        "workload": {"sequences": [{"prompt": 9, "tokens": 2}] * 3, "batching": "continuous"} | workload,
        "mapping": {"parallel": {"data": 2} | parallel},
    })  # fmt: skip
    assert (together(plan(given).setup) or "").startswith(why)

    def never(work: Work[Any, Any], items: Iterable[Any]) -> Iterator[Any]:
        raise AssertionError("replicas ran apart")

    assert run(given, apart=Apart(never, 0)).makespan > 0


def test_progress_counts_all_tokens() -> None:
    given, told = scenario(3, {"sequences": [{"prompt": 4, "tokens": i} for i in (2, 3, 4, 5)]}), list[tuple[int, int]]()
    run(given, apart=Apart(pickled, 0), on_progress=lambda done, in_all, now: told.append((done, in_all)))
    assert told == [(2 + 5, 14), (10, 14), (14, 14)]
