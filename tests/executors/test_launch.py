"""A launch (`engines.overhead`) comes before the loads of its task: closed forms of chains, and cases by hand."""

from __future__ import annotations

from typing import Any

import pytest

import sim
from sim.executors import Executor
from sim.scenario import from_dict

BOTH: tuple[Executor, ...] = ("simpy", "compiled")


def run(ops: list[dict[str, Any]], execution: str, executor: Executor, overhead: str, **more: Any) -> sim.Result:
    """1 FLOP takes 1 us on an engine, and 1 byte 1 us on a free channel."""
    hardware = {
        "engines": {"count": more.pop("engines", 1), "flops": "1 MFLOP/s", "overhead": overhead},
        "memory": {"bandwidth": "1 MB/s", **more},
    }  # fmt: skip
    scenario = {
        "model": {"graph": ops}, "workload": {"sequences": [{"tokens": 1}]}, "hardware": hardware,
        "mapping": {"execution": execution},
    }  # fmt: skip
    return sim.run(from_dict(scenario), executor=executor)


def chain(count: int) -> list[dict[str, Any]]:
    """Tasks that compute 1 to 7 us and load 1 to 11 us, one after the other."""
    return [
        {"name": f"op{i}", "flops": 1 + i % 7, "weight": f"{1 + i % 11} B"} | ({"inputs": [f"op{i - 1}"]} if i else {})
        for i in range(count)
    ]


@pytest.mark.parametrize("executor", BOTH)
@pytest.mark.parametrize("execution", ["stream", "blocking"])
def test_a_chain_of_388_tasks_of_10_us_takes_3_880_us_longer(execution: str, executor: Executor) -> None:
    before, after = (run(chain(388), execution, executor, overhead) for overhead in ("0 us", "10 us"))
    combine = max if execution == "stream" else lambda *each: sum(each)
    assert before.makespan == 10**6 * sum(combine(1 + i % 7, 1 + i % 11) for i in range(388))
    assert after.makespan - before.makespan == 3_880 * 10**6
    assert after.breakdown.total.tolist()[0] >= 3_880 * 10**6, "launches are computing"
    assert after.bounds.lower == after.makespan, "alone on the machine, the chain is its own longest path"


@pytest.mark.parametrize("executor", BOTH)
@pytest.mark.parametrize(
    ("execution", "issued", "end"),
    [
        ("stream", 3, [7, 12]),  # of 4 us of compute 3 are the launch; loads of 4 and 5 us, one after the other
        ("blocking", 3, [8, 13]),  # 1 us is left to compute
        ("prefetch", 0, [8, 13]),  # a DMA loads them at once; 4 us of compute after each
    ],
)
def test_loads_are_issued_after_the_launch(execution: str, issued: int, end: list[int], executor: Executor) -> None:
    ops = [{"name": "a", "flops": 1, "weight": "4 B"}, {"name": "b", "flops": 1, "weight": "5 B"}]
    log = run(ops, execution, executor, "3 us", engines=2).log
    assert int(log.services.start[0]) == issued * 10**6
    on_engine = log.tasks.engine >= 0
    assert (log.tasks.end[on_engine] // 10**6).tolist() == end


@pytest.mark.parametrize("executor", BOTH)
def test_launches_of_several_engines_overlap_and_latency_follows_them(executor: Executor) -> None:
    """Both launch until 3, and are at the channel at 5; it loads 4 us until 9, then 5 us until 14. `b` computes 20 us."""
    ops = [{"name": "a", "flops": 1, "weight": "4 B"}, {"name": "b", "flops": 17, "weight": "5 B"}]
    log = run(ops, "stream", executor, "3 us", engines=2, latency="2 us").log
    assert (log.services.start // 10**6).tolist() == [5, 9]
    assert (log.tasks.loaded // 10**6).tolist() == [9, 14]
    assert (log.tasks.end // 10**6).tolist() == [9, 20]


@pytest.mark.parametrize("executor", BOTH)
def test_a_time_that_is_given_contains_its_launch(executor: Executor) -> None:
    """The 2 us that are given are all launch, which takes others 3 us; then the load, 4 us."""
    log = run([{"name": "a", "duration": "2 us", "weight": "4 B"}], "stream", executor, "3 us").log
    assert (int(log.services.start[0]), log.makespan) == (2 * 10**6, 6 * 10**6)
