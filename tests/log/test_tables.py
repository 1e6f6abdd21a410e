"""Tables of a log, columns that follow from them, and parts of a log, on cases small enough to do by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from sim.log import derived
from sim.log.columns import in_order
from sim.log.tables import EventLog, ServiceTable, StepTable, TaskTable, Window, joined
from sim.runs.run import run as simulate
from sim.scenario import from_dict
from tests.analysis.machine import run
from tests.analysis.test_breakdown import chain, kv_block
from tests.executors import assert_same


@pytest.mark.parametrize(
    ("sequence", "token", "order"),
    [
        ([0, 0, 1], [0, 1, 0], [0, 1, 2]),
        ([0, 1, 0], [0, 0, 1], [0, 2, 1]),
        ([0, 2, 1], [0, 0, 0], [0, 2, 1]),
        ([1, 1, 1], [2, 0, 1], [1, 2, 0]),
        ([0, 1, 1], [5, 0, 0], [0, 1, 2]),
    ],
)
def test_steps_in_order_of_sequence_and_token(sequence: list[int], token: list[int], order: list[int]) -> None:
    log, _ = run(chain({"flops": 1}), requests=[(3, 0)])
    steps = replace(log.steps, sequence=np.array(sequence, dtype=np.int32), token=np.array(token, dtype=np.int32))
    assert in_order(replace(log, steps=steps)).tolist() == order


def test_amounts_of_each_task() -> None:
    log, _ = run(chain({"flops": 5, "weight": 3}, {"kind": "act", "flops": 7}), execution="blocking", requests=[(2, 0)])
    assert derived.flops(log).tolist() == [5, 7, 5, 7]
    assert derived.bytes_moved(log).tolist() == [3, 0, 3, 0]


def test_members_of_batched_steps() -> None:
    """Two sequences of one batch: [member, step]. In a layer of Llama-3.2-1B a token has 2 x 512 bfloat16 values cached."""
    workload = {"sequences": [{"context": 5, "tokens": 2}, {"context": 70, "tokens": 2}], "batching": "static"}
    log = simulate(from_dict({"model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}, "workload": workload})).log
    members = log.lanes(np.arange(2)).members
    assert members is not None
    assert members.sequence.tolist() == [[0, 0], [1, 1]]
    assert members.context.tolist() == members.loads.tolist() == [[5, 6], [70, 71]]
    assert members.query.tolist() == [[1, 1], [1, 1]]
    assert members.logits.tolist() == [[1, 1], [1, 1]]
    assert members.home.tolist() == [[0, 0], [0, 0]]
    load = derived.kind(log) == derived.forms(log).kinds.index("kv_load")
    assert derived.bytes_moved(log)[load].sum() == 2 * 512 * 2 * (5 + 6 + 70 + 71)


def two_tokens(*, graphs: int = 1) -> EventLog:
    """Token 0: k_proj 0..10, kv_store 10..12, scores 10..14; token 1: kv_load from 12 to 17, scores 17..21."""
    log, _ = run(kv_block(), dependency="known", requests=[(2, 0)], engines=4)
    assert [log.name(row) for row in range(4)] == ["kv_load", "k_proj", "kv_store", "scores"]
    assert log.tasks.end[[1, 2, 3, 4, 7]].tolist() == [10, 12, 14, 17, 21]
    return replace(
        log, graphs=log.graphs * graphs, steps=replace(log.steps, graph=np.full(2, graphs - 1, dtype=np.int32))
    )  # fmt: skip


@pytest.mark.parametrize("graphs", [1, 2, 3])
def test_chains_of_tokens(graphs: int) -> None:
    """Also where the graph is not the first one of the log."""
    log = two_tokens(graphs=graphs)
    chains = derived.chains(log)
    assert (chains.step.tolist(), chains.row.tolist()) == ([0, 0, 1, 1], [1, 3, 4, 7])
    assert chains.begin.tolist() == [0, 10, 0, 17]
    assert chains.cause.tolist() == [-1, -1, 2, -1], "the load of token 1 waited for the store of token 0"
    assert chains.of(np.array([1])).row.tolist() == [4, 7]
    assert derived.last_input(log).tolist() == [-1, -1, 1, 1, 2, -1, 5, 4]


def test_chains_do_not_depend_on_the_order_of_steps() -> None:
    """Rows of token 1 before those of token 0, for whose store it waits."""
    log = two_tokens()
    chains = derived.chains(joined([log.part(1, 2), log.part(0, 1)]))
    assert (chains.step.tolist(), chains.row.tolist()) == ([0, 0, 1, 1], [0, 3, 5, 7])
    assert chains.begin.tolist() == [0, 17, 0, 10]
    assert chains.cause.tolist() == [6, -1, -1, -1]


def test_a_window_holds_the_steps_under_way() -> None:
    log, _ = run(chain({"flops": 2, "weight": 3}), execution="blocking", requests=[(4, 0)])
    assert log.steps.end.tolist() == [5, 10, 15, 20]
    for start, end, first, after in ((5, 15, 1, 3), (4, 16, 0, 4), (6, None, 1, 4), (15, 20, 3, 4)):
        window = Window(start, end)
        for begin, stop in pairwise([0, 1, 3, 4]):
            window.add(log.part(begin, stop))
        found = window.log()
        assert found is not None
        assert_same(found, log.part(first, after))
    late = Window(20, None)
    late.add(log)
    assert late.log() is None


def test_joined_parts_have_the_graphs_of_the_last() -> None:
    log = two_tokens()
    other = replace(log.graphs[0], kinds=tuple(reversed(log.graphs[0].kinds)))
    last = replace(log.part(1, 2), graphs=(log.graphs[0], other))
    last = replace(last, steps=replace(last.steps, graph=np.array([1], dtype=np.int32)))
    both = joined([log.part(0, 1), last])
    assert both.graphs == (log.graphs[0], other)
    assert both.steps.graph.tolist() == [0, 1]
    assert both.steps.first.tolist() == [0, 4]
    assert both.tasks.step.tolist() == [0] * 4 + [1] * 4
    assert both.services.task.tolist() == [*log.part(0, 1).services.task, *(4 + last.services.task)]


def test_a_log_without_tasks_has_no_rows() -> None:
    log = two_tokens()
    assert log.has_rows
    empty = replace(log, tasks=TaskTable.empty(), services=ServiceTable.empty())
    assert not empty.has_rows
    assert empty.makespan == log.makespan == 21
    assert replace(empty, steps=StepTable.empty()).makespan == 0
