"""Links in the summary and in the explanation: each has its name, and the busiest counts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sim.base.units import format_time
from sim.render import explain, terminal
from sim.runs.result import Result
from sim.runs.run import run
from sim.scenario import from_dict


def result_of(parallel: dict[str, object], sequences: dict[str, int], **workload: str) -> Result:
    """Two devices whose link is as slow as that to the host, over which the weights of the LM head come."""
    scenario = {
        "model": {"config": "llama-3.2-1b", "layers": 2},
        "workload": {"sequences": [sequences], **workload},
        "hardware": {
            "engines": {"count": 1},
            "devices": {"count": 2, "link": {"bandwidth": "25 GB/s"}},
            "host": {"link": {"bandwidth": "25 GB/s"}},
        },
        "mapping": {"heads": "fused", "parallel": parallel, "offload": {"weights": ["lm_head"]}},
    }
    return run(from_dict(scenario))


@pytest.fixture(scope="module")
def stages() -> Result:
    """Two stages, of which the last has the LM head; two batches in flight."""
    return result_of({"pipeline": 2}, {"context": 64, "tokens": 2, "count": 2}, batching="continuous")


def printed(shown: object) -> str:
    file = io.StringIO()
    Console(file=file, width=200, markup=False, emoji=False).print(shown)
    return " ".join(file.getvalue().replace("\ue000", " ").split())


def test_the_summary_has_the_busiest_link_to_the_host(stages: Result) -> None:
    first, last = stages.metrics.delivered[-2:]
    assert (first, last) == (0, 4 * 128256 * 2048 * 2 * 40)  # ps: 40 a byte, and the first stage offloads nothing
    used = f"at 25 GB/s, the busiest {last / stages.makespan:.0%}"
    assert used in printed(terminal.render(stages))


def test_a_share_of_tokens_that_are_not_recorded_is_not_said(stages: Result) -> None:
    """Without steps it is unknown, not 0 %."""
    assert printed(terminal.render(stages)).count("of the time of tokens") == 1  # of all links together
    text = printed(terminal.render(stages.without_steps()))
    assert text.count("their share of the time of tokens is not recorded") == 1
    assert "% of the time of tokens" not in text


def test_a_host_link_carries_no_collectives() -> None:
    """All waits for links are one share of the time, so they are not called those of the collectives."""
    for parallel in ({"tensor": 2}, {"tensor": 2, "fold": False}):
        text = printed(terminal.render(result_of(parallel, {"context": 64, "tokens": 1})))
        assert "collectives" not in text
        assert text.count("links are ") == 1


def test_the_critical_path_names_links(stages: Result) -> None:
    """The LM head of four steps comes one after another; of tensor parallelism results go over the other link."""
    of = stages.critical_path.by_resource(stages.log, stages.plan.rules)
    assert sum(of.values()) == stages.makespan
    assert 0.9 * stages.metrics.delivered[7] < of["host link"] <= stages.metrics.delivered[7]
    assert of.get("channel", 0) <= sum(stages.metrics.delivered[:2])
    split = result_of({"tensor": 2}, {"context": 64, "tokens": 1})
    of, (memory, link, host) = split.critical_path.by_resource(split.log, split.plan.rules), split.metrics.delivered
    assert 0 < of["link"] <= link
    assert of["host link"] <= host
    assert of.get("channel", 0) <= memory


def test_the_explanation_has_the_bound_of_the_busiest_link(stages: Result) -> None:
    text = printed(explain.render(stages))
    assert stages.bounds.link == stages.metrics.delivered[7] == stages.bounds.lower
    assert (
        f"bytes of the busiest link {format_time(stages.bounds.link)} {terminal.above(stages.bounds.gap(stages.makespan))}"
        in text
    )


def test_batches_in_flight_are_loops(stages: Result) -> None:
    text = printed(explain.render(stages))
    assert "By loop" in text
    assert "loop 1" in text
    assert "sequence 1" not in text
