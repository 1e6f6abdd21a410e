"""The estimate of a run's task count, exact where nothing is shared, and the progress that it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim.executors import Executor
from sim.executors.size import tasks_in_all
from sim.runs.plan import plan
from sim.runs.run import read, run
from sim.runs.saved import run_to_file
from sim.runs.workload import requests
from sim.scenario import from_dict
from sim.scenario.shipped import scenarios
from tests.reports import stored


def told(workload: dict[str, Any]) -> tuple[int, int, int]:
    """At least, as it came, at most."""
    scenario = from_dict({"model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}, "workload": workload})
    fewest, most = tasks_in_all(plan(scenario).setup)
    return fewest, len(run(scenario).log.tasks), most


ALIKE = {"context": 9, "tokens": 5, "count": 4}


def test_loops_of_their_own_share_nothing() -> None:
    fewest, real, most = told({"sequences": [ALIKE, {"tokens": 2}]})
    assert fewest == real == most
    assert real % (4 * 5 + 2) == 0


def test_full_steps_have_fewest() -> None:
    fewest, real, most = told({"sequences": [ALIKE], "batching": "static"})
    assert fewest == real < most


def test_who_never_meets_shares_nothing() -> None:
    apart = [{**ALIKE, "count": 1, "arrival": f"{second} s"} for second in range(4)]
    fewest, real, most = told({"sequences": apart, "batching": "continuous"})
    assert fewest < real == most


@pytest.mark.parametrize(("acceptance", "as_told"), [(1, 0), (0, 2)])
def test_drafts(acceptance: int, as_told: int) -> None:
    counts = told({"sequences": [{"context": 9, "tokens": 12}], "speculative": {"draft": 3, "acceptance": acceptance}})
    assert counts[as_told] == counts[1]
    assert counts[2] == 4 * counts[0]


def test_a_prompt_gives_the_first_token_and_samples_share_it() -> None:
    prompt = {"prompt": 40, "tokens": 3, "samples": 2}
    fewest, real, most = told({"sequences": [prompt], "batching": "static", "prefill": {"chunk": 10}})
    assert fewest <= real <= most


BATCHED = [name for name in scenarios() if name.startswith(("batch", "dense", "kv_full", "moe", "prefill", "speculation"))]


@pytest.mark.parametrize("name", BATCHED)
def test_shipped_scenarios_have_as_many_as_told(name: str) -> None:
    scenario = read(scenarios()[name])
    fewest, most = tasks_in_all(plan(scenario).setup)
    assert fewest <= stored(name)["tasks"] <= most


BLOCK = ["model.layers=1", "model.scope=block"]
RUNS = {
    "one loop": ("llama_1b_context_256", "workload.sequences=[{context: 64, tokens: 30}]"),
    "several loops": ("llama_1b_context_256", "workload.sequences=[{context: 64, tokens: 5}, {tokens: 3, arrival: 1 ms}]"),
    "prompts": ("batching_continuous", "seed=0"),
    "swaps": ("kv_full_swap", "seed=0"),
    "dropped": ("kv_full_recompute", "seed=0"),
    "drafts": ("speculation_4", "seed=0"),
    "samples": (
        "llama_1b_context_256",
        "workload={sequences: [{prompt: 9, tokens: 4, samples: 3}, {prompt: 5, tokens: 2}], batching: continuous}",
    ),
}


@pytest.mark.parametrize("executor", ["compiled", "simpy"])
@pytest.mark.parametrize(("name", "change"), RUNS.values(), ids=RUNS)
def test_progress_adds_up_to_all_tokens(name: str, change: str, executor: Executor, tmp_path: Path) -> None:
    """Whether the log stays in memory or not."""
    scenario, told = read(scenarios()[name], [*BLOCK, change]), []
    result = run(scenario, executor=executor, on_progress=lambda *each: told.append(each))
    expected = sum(request.tokens for request in requests(scenario))
    done, in_all, now = (list(column) for column in zip(*told, strict=True))
    assert done == sorted(done)
    assert done[-1] == expected
    assert set(in_all) == {expected}
    assert now == sorted(now)
    assert now[-1] == result.makespan
    again: list[tuple[int, int, int]] = []
    run_to_file(scenario, tmp_path / "log.parquet", executor=executor, on_progress=lambda *each: again.append(each))
    assert again == told
