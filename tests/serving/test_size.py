"""How many tasks a run will have, told before it runs: exact where nothing is shared, else from full steps to lone ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sim.runner import op_graphs, prepare, read, run
from sim.scenario import from_dict
from sim.shipped import scenarios
from sim.size import tasks_in_all
from tests.reports import FOLDER as REPORTS


def told(workload: dict[str, Any]) -> tuple[int, int, int]:
    """At least, as it came, at most."""
    scenario = from_dict({"model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}, "workload": workload})
    fewest, most = tasks_in_all(prepare(scenario, *op_graphs(scenario)))
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
    fewest, most = tasks_in_all(prepare(scenario, *op_graphs(scenario)))
    assert fewest <= json.loads((REPORTS / f"{name}.json").read_text())["tasks"] <= most
