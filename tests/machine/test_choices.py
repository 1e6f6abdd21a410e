"""Each scheduler on one small graph where its choice differs from all others."""

from __future__ import annotations

import numpy as np
import pytest

import sim.scenario
from sim.machine.schedulers import SCHEDULERS, StepView
from sim.mapping.lowering import lower
from sim.mapping.settings import ModelMapping
from sim.runs.run import run
from tests.graphs import GraphBuilder

# Two engines and two sequences, the second of which arrives first: its step is older, but later in program order.
GRAPH = [
    {"name": "a", "duration": "4 ms"},
    {"name": "b", "duration": "2 ms"},
    {"name": "c", "duration": "3 ms"},
    {"name": "d", "duration": "1 ms", "inputs": ["b"]},
    {"name": "e", "duration": "6 ms", "inputs": ["c"]},
    {"name": "f", "duration": "2 ms", "inputs": ["a"]},
]


def _chain():
    graph = GraphBuilder()
    graph.add("a", flops=1)
    graph.add("b", 0, flops=1)
    graph.add("c", flops=1)
    return graph.graph()


def schedule(scheduler: str) -> str:
    """Ops in order of start: `a0@0` is op a of sequence 0 on engine 0."""
    scenario = sim.scenario.from_dict(
        {
            "model": {"graph": GRAPH},
            "workload": {"sequences": [{"arrival": "1 ms"}, {}]},
            "hardware": {"engines": {"count": 2}},
            "mapping": {"execution": "blocking"},
            "scheduler": scheduler,
        }
    )
    log = run(scenario).log
    order = sorted(range(len(log.tasks)), key=lambda i: (log.tasks.start[i], log.tasks.engine[i]))
    names = [f"{log.name(i)[0]}{log.steps.sequence[log.tasks.step[i]]}@{log.tasks.engine[i]}" for i in order]
    return " ".join(names)


SCHEDULES = {
    # One after the other although there are two engines, in program order: from 4 ms on sequence 0 goes first.
    "serial": "a1@0 a0@0 b0@0 c0@0 d0@0 e0@0 f0@0 b1@0 c1@0 d1@0 e1@0 f1@0",
    # Program order: c0 before c1, wherever an engine is free.
    "earliest": "a1@0 b1@1 a0@1 b0@0 c0@0 d0@1 f0@1 e0@0 c1@1 d1@1 e1@1 f1@0",
    # The same, but d0 and e0 go on where b0 and c0 were, and f0 where a0 was.
    "sticky": "a1@0 b1@1 a0@1 b0@0 c0@0 f0@1 c1@1 d0@0 e0@0 d1@1 e1@1 f1@0",
    # c with e behind it (9 ms) before a with f (6 ms) before b with d (3 ms).
    "critical_path": "c1@0 a1@1 c0@0 a0@1 e0@0 e1@1 b0@0 b1@0 f0@1 f1@0 d0@1 d1@1",
    # All of sequence 1 before anything of sequence 0.
    "oldest_token": "a1@0 b1@1 c1@1 d1@0 e1@0 f1@1 a0@1 b0@0 c0@1 d0@0 e0@0 f0@1",
    # 1 ms before 2 ms before 3 ms.
    "shortest": "b1@0 c1@1 d1@0 b0@0 c0@1 d0@0 a0@0 a1@1 f0@0 f1@1 e0@0 e1@1",
}


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_schedule(scheduler):
    assert schedule(scheduler) == SCHEDULES[scheduler]


def test_no_two_schedulers_choose_alike():
    assert list(SCHEDULES) == list(SCHEDULERS.names())[: len(SCHEDULES)]
    assert len(set(SCHEDULES.values())) == len(SCHEDULES)


def test_sticky_waits_for_its_engine():
    """At 1 ms c takes engine 0, where a was; d, which continues a, waits for it although engine 1 is free from 2 ms on."""
    graph = [
        {"name": "a", "duration": "1 ms"},
        {"name": "b", "duration": "2 ms"},
        {"name": "c", "duration": "6 ms"},
        {"name": "d", "duration": "3 ms", "inputs": ["a"]},
    ]
    data = {"model": {"graph": graph}, "hardware": {"engines": {"count": 2}}, "mapping": {"execution": "blocking"}}
    ends = {
        name: run(sim.scenario.from_dict({**data, "scheduler": name})).makespan for name in ("earliest", "sticky", "serial")
    }
    assert ends == {"earliest": 7_000_000_000, "sticky": 10_000_000_000, "serial": 12_000_000_000}


class TestRanks:
    """Ranks and chains of one step, without a run. Tasks: a chain of 5 and 1, and a single 3."""

    STEP = StepView(
        graph=lower(_chain(), ModelMapping(weights="resident")), age=7, compute=np.array([5, 1, 3]), work=np.array([0, 4, 0])
    )

    @pytest.mark.parametrize(
        ("name", "ranks"),
        [
            ("serial", [0, 0, 0]),
            ("earliest", [0, 0, 0]),
            ("sticky", [0, 0, 0]),
            ("critical_path", [-10, -5, -3]),
            ("oldest_token", [7, 7, 7]),
            ("shortest", [5, 5, 3]),
        ],
    )
    def test_ranks(self, name, ranks):
        assert list(SCHEDULERS.make(name, {}).ranks(self.STEP)) == ranks

    def test_only_sticky_has_chains(self):
        chains = {name: SCHEDULERS.make(name, {}).chains(self.STEP.graph) for name in SCHEDULES}
        assert {name for name, chain in chains.items() if chain is not None} == {"sticky"}
        assert list(chains["sticky"]) == [0, 0, 2]
