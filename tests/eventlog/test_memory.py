"""What a log takes: at most about 64 bytes a task event, grants included; a replayed one far less until it is read."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields

from sim.eventlog import EventLog
from sim.replay import run
from sim.runner import op_graphs, prepare, read
from sim.shipped import scenarios


def replayed(tokens: int) -> EventLog:
    scenario = read(
        scenarios()["llama_1b_context_256"],
        [f"workload.sequences=[{{context: 256, tokens: {tokens}}}]", "model.layers=1", "model.scope=block"],
    )
    return run(prepare(scenario, *op_graphs(scenario)))[0]


def test_a_log_takes_64_bytes_a_task():
    replayed(1)  # what is loaded once
    tracemalloc.start()
    try:
        log = replayed(3000)
        tasks = len(log.tasks)
        compact = tracemalloc.get_traced_memory()[0]
        size = sum(getattr(log.tasks, column.name).nbytes for column in fields(log.tasks))
        whole = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size == 58 * tasks
    assert whole < 64 * tasks
    assert compact < 40 * tasks
    print(f"{compact / tasks:.1f} bytes a task before its columns are read, {whole / tasks:.1f} after")


def test_a_column_is_made_once_and_unknown_ones_are_refused():
    log = replayed(2)
    assert log.tasks.end is log.tasks.end
    assert not hasattr(log.tasks, "colour")
    assert len(log.tasks) == 2 * len(log.graphs[0])
