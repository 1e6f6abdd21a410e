"""The guide that adds a batching policy, as it is written: its files, installed as far as Python looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.base.errors import InputError
from sim.runs.run import read, run
from sim.scenario.shipped import scenarios
from sim.serving.policies import BATCHING_POLICIES
from tests.executors import assert_same
from tests.guides import files, install

GUIDE = "own_batching.md"


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    return install(GUIDE, tmp_path, monkeypatch)


def order(result) -> list[int]:
    """Requests in order of the steps that prefill them."""
    members = result.log.members
    return list(dict.fromkeys(members.sequence[members.query > 1].tolist()))


def test_the_guide_works(lab):
    assert BATCHING_POLICIES.names() == ["independent", "static", "continuous", "shortest_prompt"]
    result = run(lab / "shortest_prompt.yaml")
    assert order(result) == [3, 0, 2, 1]
    assert_same(result.log, run(lab / "shortest_prompt.yaml", executor="compiled").log)


def test_short_prompts_first_lower_the_mean_time_to_first_token(lab):
    """All arrive at 0 and are served one at a time: the shortest job first minimises the mean (Smith's rule)."""
    shortest = run(lab / "shortest_prompt.yaml")
    arrival = run(read(lab / "shortest_prompt.yaml", ["workload.batching.policy=continuous"]))
    assert order(arrival) == [0, 1, 2, 3]
    assert np.mean(shortest.requests.ttft) < np.mean(arrival.requests.ttft)
    assert shortest.makespan == arrival.makespan  # the work is the same


def test_without_it_the_name_is_unknown(tmp_path):
    (tmp_path / "shortest_prompt.yaml").write_text(files(GUIDE)["shortest_prompt.yaml"])
    with pytest.raises(InputError, match=r"expected one of continuous, independent, static, found 'shortest_prompt'") as error:
        read(tmp_path / "shortest_prompt.yaml")
    assert "workload.batching" in str(error.value)


def test_a_misspelled_policy_is_the_one_error_that_is_reported():
    """Checks of other keys depend on the policy, and say nothing of one that is unknown."""
    with pytest.raises(InputError, match=r"found 'contnuous' \(did you mean 'continuous'\?\)$"):
        read(scenarios()["two_tokens_4_engines"], ["workload.batching={policy: contnuous, max_batch: 3}"])
