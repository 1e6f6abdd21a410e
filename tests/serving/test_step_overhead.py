"""Host time before each step: in the makespan, the time breakdown, the critical path and the bound, on both executors."""

from __future__ import annotations

from typing import Any

import pytest

import sim
from sim.analysis.critical_path import Place
from sim.analysis.parts import PARTS
from sim.base.errors import InputError
from sim.executors import compiled, reference
from sim.render.trace.layout import Layout
from sim.runs.plan import plan
from sim.scenario import from_dict
from tests.executors import assert_same

US = 10**6
LIKE: dict[str, Any] = {
    "model": {"config": "llama-3.2-1b", "layers": 2, "scope": "block"},
    "hardware": {"engines": {"count": 2}},
    "mapping": {"execution": "stream"},
}


def result(workload: dict[str, Any], host: int, **others: Any) -> sim.Result:
    return sim.run(from_dict({**LIKE, **others, "workload": {**workload, "step_overhead": f"{host} us"}}), executor="simpy")


def test_each_step_of_a_sequence_begins_with_the_host() -> None:
    workload = {"sequences": [{"context": 100, "tokens": 5, "arrival": "7 us"}]}
    with_host, without = result(workload, 30), result(workload, 0)
    assert with_host.makespan == without.makespan + 5 * 30 * US
    tokens, before = with_host.breakdown.tokens, without.breakdown.tokens
    assert (tokens[:, PARTS.index("wait_input")] == 30 * US).all()
    assert (tokens.sum(axis=1) == before.sum(axis=1) + 30 * US).all()
    path = with_host.critical_path
    assert path.by_resource(with_host.log, with_host.plan.rules)["host"] == 5 * 30 * US
    assert path.by_kind(with_host.log)["host"] == 5 * 30 * US
    assert with_host.bounds.critical_path == without.bounds.critical_path + 5 * 30 * US
    assert with_host.requests.started[0] == 7 * US


def test_requests_that_come_while_the_host_prepares_a_step_are_in_the_next() -> None:
    """Both decode from 0; the third comes 1 us later, when the first step has been made up but not begun."""
    sequences = [{"context": 9, "tokens": 2, "count": 2}, {"context": 9, "tokens": 1, "arrival": "1 us"}]
    log = result({"sequences": sequences, "batching": "continuous"}, 40).log
    assert [sorted(log.members.sequence[log.members.step == step].tolist()) for step in range(2)] == [[0, 1], [0, 1, 2]]
    at = log.tasks.ready[[log.rows(step).start for step in range(len(log.steps))]]
    assert (at == log.steps.released + 40 * US).all()
    assert log.steps.released.tolist() == [0, *log.steps.end[:-1].tolist()]


BATCHES = {
    "own loops": {"sequences": [{"context": 20, "tokens": 4, "count": 3}, {"prompt": 30, "tokens": 3, "arrival": "9 us"}]},
    "together": {"sequences": [{"prompt": 30, "tokens": 4, "count": 3}], "batching": "continuous", "prefill": {"chunk": 16}},
    "closed": {"sequences": [{"context": 20, "tokens": 3, "count": 5}], "concurrency": {"users": 2, "think": "3 us"}},
    "drafts": {
        "sequences": [{"context": 20, "tokens": 6}], "speculative": {"draft": 2, "acceptance": 0.5, "model": "llama-3.2-1b"}
    },
}  # fmt: skip


@pytest.mark.parametrize("mapping", [{"execution": "stream"}, {"execution": "prefetch"}])
@pytest.mark.parametrize("workload", BATCHES.values(), ids=BATCHES)
def test_both_executors_take_host_time_alike(workload: dict[str, Any], mapping: dict[str, Any]) -> None:
    """And all invariants hold, the upper bound included."""
    scenario = from_dict({**LIKE, "mapping": mapping, "workload": {**workload, "step_overhead": "25 us"}})
    setup = plan(scenario).setup
    assert_same(reference.simulate(setup), compiled.simulate(setup))
    found = sim.run(scenario)
    assert found.critical_path.by_resource(found.log, found.plan.rules)["host"] > 0
    assert (found.bounds.upper is not None) == (mapping["execution"] == "prefetch")


def test_loops_prepare_their_steps_at_the_same_time() -> None:
    """Three graphs of one op of 4 ms on three engines: the host of each loop takes 1 ms a step, beside the others."""
    graph = [{"name": "work", "duration": "4 ms"}]
    workload = {"sequences": [{"tokens": 3, "count": 3}], "step_overhead": "1 ms"}
    found = sim.run(from_dict({"model": {"graph": graph}, "hardware": {"engines": {"count": 3}}, "workload": workload}))
    assert found.makespan == 3 * 5 * 1000 * US
    assert found.critical_path.place.tolist() == [Place.HOST, Place.ENGINE] * 3
    assert found.bounds.lower == found.makespan


def test_the_trace_names_the_host() -> None:
    layout = Layout(result({"sequences": [{"context": 100, "tokens": 2}]}, 30).log)
    layout.machine()
    host = layout.names("host")
    slices = [group for group in layout.sequences() if (group.name == host).any()]
    (group,) = slices
    spans = (group.end - group.start)[group.name == host]
    assert spans.tolist() == [30 * US] * 2


def test_known_tokens_take_no_host_time() -> None:
    with pytest.raises(InputError, match=r"expected dependency 'known' only without batching, .* and step_overhead"):
        plan(from_dict({**LIKE, "workload": {"dependency": "known", "step_overhead": "1 us"}}))
