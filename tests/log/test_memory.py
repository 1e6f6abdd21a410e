"""The memory of a log: 66 bytes a task and 34 a service interval; no more than 160 a task with all that a run leaves behind."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields

import pytest

from sim.executors import Executor, simulate
from sim.log.tables import EventLog, ServiceTable, TaskTable
from sim.runs.plan import plan
from sim.runs.run import read
from sim.scenario.shipped import scenarios


def decoded(tokens: int, executor: Executor) -> EventLog:
    scenario = read(
        scenarios()["llama_1b_context_256"],
        [f"workload.sequences=[{{context: 256, tokens: {tokens}}}]", "model.layers=1", "model.scope=block"],
    )
    return simulate(plan(scenario).setup, executor)[0]


def size(table: TaskTable | ServiceTable) -> int:
    return sum(getattr(table, column.name).nbytes for column in fields(table))


@pytest.mark.parametrize(("executor", "tokens"), [("compiled", 1000), ("simpy", 50)])
def test_a_log_takes_66_bytes_a_task_and_34_a_service_interval(executor: Executor, tokens: int):
    decoded(1, executor)  # what is loaded once
    tracemalloc.start()
    try:
        log = decoded(tokens, executor)
        whole = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size(log.tasks) == 66 * len(log.tasks)
    assert size(log.services) == 34 * len(log.services)
    print(f"{whole / len(log.tasks):.1f} bytes a task")
    assert whole < 160 * len(log.tasks)
