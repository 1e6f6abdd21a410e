"""Relations that must hold between runs that differ in one thing, whatever the scenario."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from sim.base.errors import InputError
from sim.executors.size import tasks_in_all
from sim.runs.plan import plan
from sim.runs.result import Result
from sim.runs.run import run
from sim.scenario import from_dict
from tests.executors.scenarios import SCHEDULERS, TOKEN_BYTES, sequences_of, served

LARGE = 5_000  # tasks

few = settings(max_examples=3, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=60)


def result(data: dict[str, Any]) -> Result:
    """A run of a scenario; one that is refused, or large, does not count."""
    try:
        scenario = from_dict(data)
        if tasks_in_all(plan(scenario).setup)[0] > LARGE:
            reject()
        return run(scenario)
    except InputError:
        reject()


def moved(found: Result) -> tuple[int, int]:
    return found.metrics.bytes_read, found.metrics.bytes_written


# Twice the rates, half the time. Amounts are even and one picosecond each at the slower rates, so that nothing is rounded.


@st.composite
def even_graphs(draw: st.DrawFn) -> list[dict[str, Any]]:
    ops: list[dict[str, Any]] = []
    for i in range(draw(st.integers(1, 8))):
        inputs = draw(st.lists(st.sampled_from([op["name"] for op in ops]), unique=True, max_size=3)) if ops else []
        op = {"name": f"op {i}", "inputs": inputs, "flops": 2 * draw(st.integers(1, 50))}
        ops.append(op | draw(st.fixed_dictionaries({}, optional={"weight": st.integers(1, 60).map(lambda n: f"{2 * n} B")})))
    return ops


def machine(engines: int, arbiter: str, latency: int, overhead: int, factor: int) -> dict[str, Any]:
    """All rates are `factor` TFLOP/s and TB/s, and all times 2 ps / `factor`."""
    return {
        "engines": {"count": engines, "flops": f"{factor} TFLOP/s", "overhead": f"{overhead * 2 // factor} ps"},
        "memory": {"bandwidth": f"{factor} TB/s", "arbiter": arbiter, "latency": f"{latency * 2 // factor} ps"},
    }


@settings(few, max_examples=15)
@given(
    even_graphs(), st.integers(1, 4), st.sampled_from(("fifo", "priority", "round_robin")), st.integers(0, 9),
    st.integers(0, 9), st.sampled_from(SCHEDULERS), st.sampled_from(("prefetch", "stream", "blocking")), st.integers(0, 50),
)  # fmt: skip
def test_twice_the_rates_half_the_time(
    graph: list[dict[str, Any]],
    engines: int,
    arbiter: str,
    latency: int,
    overhead: int,
    scheduler: str,
    execution: str,
    late: int,
) -> None:
    logs = []
    for factor in (1, 2):
        sequences = [{"tokens": 2, "arrival": f"{late * number * 2 // factor} ps"} for number in range(3)]
        logs.append(
            result(
                {
                    "model": {"graph": graph}, "workload": {"sequences": sequences}, "scheduler": scheduler,
                    "hardware": machine(engines, arbiter, latency, overhead, factor), "mapping": {"execution": execution},
                }
            ).log
        )  # fmt: skip
    slow, fast = logs
    for column in ("ready", "start", "loaded", "end"):
        assert np.array_equal(getattr(slow.tasks, column), 2 * getattr(fast.tasks, column)), column
    assert np.array_equal(slow.tasks.engine, fast.tasks.engine)


def bytes_do_not_depend_on_policies(data: dict[str, Any], arbiter: str, scheduler: str) -> None:
    """Compare runs where each sequence has steps of its own: in shared steps, time decides how often weights are read."""
    data = deepcopy(data)
    data["workload"]["batching"] = "independent"
    other = deepcopy(data) | {"scheduler": scheduler}
    other["hardware"]["memory"]["arbiter"] = arbiter
    assert moved(result(data)) == moved(result(other))


def alone(data: dict[str, Any]) -> dict[str, Any]:
    """The first sequence of a workload, by itself, without limits of batches."""
    data = deepcopy(data)
    assume("sequences" in data["workload"])
    first = {name: value for name, value in data["workload"]["sequences"][0].items() if name not in ("count", "samples")}
    data["workload"] |= {"sequences": [first]}
    data["workload"].pop("concurrency", None)
    data["hardware"]["memory"]["arbiter"] = "fifo"
    return data


def a_batch_of_one_is_a_run_of_one(data: dict[str, Any]) -> None:
    runs = []
    for policy in ("independent", "static", "continuous"):
        data = alone(data)
        data["workload"]["batching"] = policy
        runs.append(result(data))
    plain, *batched = runs
    for each in batched:
        assert each.makespan == plain.makespan
        assert moved(each) == moved(plain)
        assert np.array_equal(each.log.tasks.end, plain.log.tasks.end)


def a_chunk_as_long_as_the_prompt_is_the_whole(data: dict[str, Any], more: int) -> None:
    data = deepcopy(data)
    assume("sequences" in data["workload"])
    longest = max(each.get("prompt", 0) for each in data["workload"]["sequences"])
    assume(longest)
    data["workload"].pop("prefill", None)
    data["workload"]["batching"].pop("max_tokens", None)  # a budget cuts prompts that may come in parts, and delays others
    whole = result(data)
    data["workload"]["prefill"] = {"chunk": longest + more}
    chunked = result(data)
    assert np.array_equal(whole.log.tasks.end, chunked.log.tasks.end)
    assert moved(whole) == moved(chunked)


def no_request_is_lost(data: dict[str, Any]) -> None:
    """Every request ends, with the tokens that it wants; in steps together, KV caches stay within the capacity."""
    found = result(data)
    assert len(found.requests) == sequences_of(data["workload"])
    if "sequences" in data["workload"]:
        wanted = [[each["tokens"]] * (each["count"] * each.get("samples", 1)) for each in data["workload"]["sequences"]]
        assert sorted(found.requests.tokens.tolist()) == sorted(chain.from_iterable(wanted))
    assert (found.requests.e2e > 0).all()
    kv = data["workload"]["batching"].get("kv")
    if kv is not None and data["model"]["config"] in TOKEN_BYTES:
        assert found.series.kv_bytes.max(initial=0) <= int(kv["capacity"].removesuffix(" B"))


@few
@given(served(), st.sampled_from(("fifo", "processor_sharing", "round_robin")), st.sampled_from(SCHEDULERS), st.integers(0, 3))
def test_some(data: dict[str, Any], arbiter: str, scheduler: str, more: int) -> None:
    bytes_do_not_depend_on_policies(data, arbiter, scheduler)
    no_request_is_lost(data)


@few
@given(served())
def test_some_alone(data: dict[str, Any]) -> None:
    a_batch_of_one_is_a_run_of_one(data)


@few
@given(served(), st.integers(0, 3))
def test_some_prompts(data: dict[str, Any], more: int) -> None:
    a_chunk_as_long_as_the_prompt_is_the_whole(data, more)


@pytest.mark.slow
@many
@given(served(), st.sampled_from(("fifo", "processor_sharing", "round_robin")), st.sampled_from(SCHEDULERS))
def test_bytes_do_not_depend_on_policies(data: dict[str, Any], arbiter: str, scheduler: str) -> None:
    bytes_do_not_depend_on_policies(data, arbiter, scheduler)


@pytest.mark.slow
@many
@given(served())
def test_a_batch_of_one_is_a_run_of_one(data: dict[str, Any]) -> None:
    a_batch_of_one_is_a_run_of_one(data)


@pytest.mark.slow
@many
@given(served(), st.integers(0, 3))
def test_a_chunk_as_long_as_the_prompt_is_the_whole(data: dict[str, Any], more: int) -> None:
    a_chunk_as_long_as_the_prompt_is_the_whole(data, more)


@pytest.mark.slow
@many
@given(served())
def test_no_request_is_lost(data: dict[str, Any]) -> None:
    no_request_is_lost(data)
