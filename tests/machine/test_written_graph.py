"""`model.graph`: the tasks of ops written in a scenario, and errors for ops that cannot be used."""

from __future__ import annotations

import pytest

import sim.scenario
from sim.base.errors import InputError
from sim.runs.model import op_graphs
from sim.runs.run import run

TEXT = """\
model:
  graph:
    - {name: cache, kind: kv_load, transfer: 4 ms}
    - {name: attend, inputs: [cache, q], duration: 3 ms}
    - {name: q, kind: q_proj, flops: 2000000000, weight: 100 MB}
    - {name: store, kind: kv_store, inputs: [attend], kv_write: 100 MB}
workload: {sequences: [{tokens: 2}]}
hardware: {engines: {count: 1, flops: 2 TFLOP/s}, memory: {bandwidth: 100 GB/s}}
mapping: {execution: prefetch}
"""
MS = 10**9


def result(*changes: str):
    return run(sim.scenario.parse(TEXT, "g.yaml", list(changes)))


def rows(found, column: str) -> dict[str, int]:
    """A column of the first step, in ms, by the name of the task."""
    values = getattr(found.log.tasks, column)
    return {found.log.name(i): values[i] / MS for i in range(*found.log.rows(0).indices(len(found.log.tasks)))}


def test_times_and_amounts():
    """Loads of 4 and 1 ms, q_proj for 2 GFLOP / 2 TFLOP/s = 1 ms, attend for 3 ms, the store for 100 MB / 100 GB/s = 1 ms."""
    found = result()
    assert rows(found, "compute") == {
        "kv_load cache": 0, "weight_load q_proj q": 0, "q_proj q": 1, "attend": 3, "kv_store store": 0
    }  # fmt: skip
    assert rows(found, "work") == {
        "kv_load cache": 4, "weight_load q_proj q": 1, "q_proj q": 0, "attend": 0, "kv_store store": 1
    }  # fmt: skip
    assert found.makespan == 2 * (5 + 1 + 3 + 1) * MS  # the weights come after the cache, then q, attend, store; two steps
    assert found.metrics.bytes_read == 2 * (400 + 100) * 10**6


def test_a_cost_model_is_asked_only_for_what_is_not_given():
    all_given = "[{name: a, duration: 2 ms}, {name: b, inputs: [a], transfer: 1 ms, duration: 1 ms}]"
    assert (
        result(f"model.graph={all_given}", "cost=fixed").makespan == 2 * (2 + 1) * MS
    )  # the 1 ms of transfer are prefetched meanwhile
    table = "{kv_load: 7 ms, q_proj: 5 ms, attend: 9 ms, weight_load: 1 ms, kv_store: 1 ms}"
    found = result(f"cost={{model: fixed, table: {table}}}")
    assert rows(found, "compute")["q_proj q"] == 5
    assert rows(found, "compute")["attend"] == 3
    assert rows(found, "work")["kv_load cache"] == 4


def test_ops_in_any_order_and_kept_where_free():
    model, variants = op_graphs(sim.scenario.parse(TEXT, "g.yaml"))
    ops = variants[False, False]
    assert [op.path for op in ops.ops] == ["cache", "q", "attend", "store"]
    assert [op.inputs for op in ops.ops] == [(), (), (0, 1), (2,)]
    assert (model.layers, model.parameter_bytes) == (1, 100_000_000)


#: Text that is replaced, its replacement (@ marks the place of the error), the key, and the beginning of the message.
ERRORS = [
    ("cache, q]", "cache, @qu]", "model.graph[1].inputs[1]", "expected the name of an op, found 'qu' (did you mean 'q'?)"),
    (
        "name: store",
        "name: @cache",
        "model.graph[3].name",
        "duplicate op name 'cache', first at g.yaml:3:14",
    ),
    ("duration: 3 ms", "duration: @3", "model.graph[1].duration", "expected a duration with its unit"),
    ("flops: 2000000000", "@flop: 2", "model.graph[2]", "unknown key 'flop' (did you mean 'flops'?)"),
    ("{name: q, kind: q_proj, flops: 2000000000", "@{name: q", "model.graph[2]", "expected a duration, flops or vector_ops: "),
    (
        "{name: q,",
        "@{name: q, duration: 1 ms,",
        "model.graph[2]",
        "expected either a duration or flops and vector_ops, found both",
    ),
    (
        "{name: q,",
        "@{name: q, transfer: 1 ms,",
        "model.graph[2]",
        "expected either a transfer time or bytes, found transfer and weight",
    ),
    (
        "{name: q,",
        "@{name: q, kv_read: 1 MB,",
        "model.graph[2]",
        "expected kv_read only in an op of kind kv_load",
    ),
    (
        "{name: cache,",
        "@{name: cache, flops: 1,",
        "model.graph[0]",
        "expected no duration, flops or vector_ops: a kv_load only moves",
    ),
    (
        "{name: store,",
        "@{name: store, kv_read: 1 MB,",
        "model.graph[3]",
        "expected kv_write or a transfer time, and nothing else",
    ),
    ("model:\n  ", "model:\n  @config: gpt2\n  ", "model", "expected only one of the keys 'config' and 'graph', found both"),
    ("model:\n  ", "model:\n  @layers: 1\n  ", "model", "expected 'layers' only with 'config'"),
]


@pytest.mark.parametrize(("old", "new", "key", "message"), ERRORS, ids=[row[1] for row in ERRORS])
def test_errors(old, new, key, message):
    marked = TEXT.replace(old, new, 1)
    before = marked[: marked.index("@")].split("\n")
    with pytest.raises(InputError) as caught:
        run(sim.scenario.parse(marked.replace("@", ""), "g.yaml"))
    assert str(caught.value).startswith(f"g.yaml:{len(before)}:{len(before[-1]) + 1}: {key}: {message}")


def test_a_cycle_is_shown():
    text = TEXT.replace("kind: q_proj", "inputs: [store]")
    with pytest.raises(InputError, match=r"^g.yaml:4:30: model.graph\[1\].inputs: expected a graph without cycles, "):
        run(sim.scenario.parse(text, "g.yaml"))
    with pytest.raises(InputError, match=r"found attend <- q <- store <- attend$"):
        run(sim.scenario.parse(text, "g.yaml"))
