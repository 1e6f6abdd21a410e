"""The critical path on cases small enough to do by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sim.analysis.critical_path import Cause, Place, critical_path
from sim.log import derived
from tests.analysis.machine import UnevenCosts, kind_of, run
from tests.analysis.test_breakdown import chain, kv_block
from tests.graphs import GraphBuilder, llama_block


def links(log, rules) -> list[tuple[str, str, str, int, int]]:
    path = critical_path(log, rules)
    return [
        (kind_of(log, row) if row >= 0 else "", Place(place).name.lower(), Cause(cause).name.lower(), begin, end)
        for row, place, cause, begin, end in zip(
            path.row.tolist(), path.place.tolist(), path.cause.tolist(), path.begin.tolist(), path.end.tolist(), strict=True
        )
    ]


def test_through_data():
    assert links(*run(chain({"kind": "norm", "flops": 5}, {"kind": "act", "flops": 7}))) == [
        ("norm", "engine", "start", 0, 5),
        ("act", "engine", "input", 5, 12),
    ]


def test_through_an_engine():
    b = GraphBuilder()
    b.add("norm", flops=5)
    b.add("act", flops=7)
    assert links(*run(b.graph())) == [("norm", "engine", "start", 0, 5), ("act", "engine", "engine", 5, 12)]


def test_through_the_channel():
    b = GraphBuilder()
    b.add("first", flops=9, weight=4)
    b.add("second", flops=9, weight=3)
    log, rules = run(b.graph(), execution="blocking", engines=2, latency=1)
    assert links(log, rules) == [
        ("first", "latency", "start", 0, 1),
        ("first", "channel", "itself", 1, 5),
        ("second", "channel", "channel", 5, 8),
        ("second", "engine", "itself", 8, 17),
    ]
    path = critical_path(log, rules)
    assert path.by_resource(log, rules) == {"engine 1": 9, "channel": 7, "latency": 1}
    assert path.by_kind(log) == {"second": 12, "first": 5}
    assert path.by_cause() == {"start": 1, "channel": 1}
    assert path.rows.tolist() == [0, 1]


def test_a_transfer_that_found_the_channel_free_did_not_wait_for_it():
    """The transfer of `first` ends as `second` is issued, at 4; what held that up is its input."""
    b = GraphBuilder()
    b.add("first", flops=1, weight=4)
    early = b.add("norm", flops=4)
    b.add("second", early, flops=1, weight=3)
    assert links(*run(b.graph(), execution="blocking", engines=2)) == [
        ("norm", "engine", "start", 0, 4),
        ("second", "channel", "input", 4, 7),
        ("second", "engine", "itself", 7, 8),
    ]


def test_sharing_is_distinguished_from_the_channel():
    b = GraphBuilder()
    b.add("first", flops=1, weight=4)
    b.add("second", flops=2, weight=4)
    log, rules = run(b.graph(), execution="blocking", engines=2, arbiter="processor_sharing")
    assert critical_path(log, rules).by_resource(log, rules) == {"engine 1": 2, "channel": 4, "sharing": 4}


def test_what_a_transfer_alone_would_lose_is_no_sharing():
    """A port of half the bandwidth: 4 ps of work take 8, of which 4 are due to the port alone."""
    log, rules = run(chain({"flops": 2, "weight": 4}), execution="blocking", engines=1, arbiter="processor_sharing", cap=(1, 2))
    assert critical_path(log, rules).by_resource(log, rules) == {"engine 0": 2, "channel": 4, "port": 4}


@pytest.mark.parametrize(("flops", "weight", "place"), [(5, 3, "engine"), (3, 5, "channel")])
def test_stream_goes_through_the_longer(flops, weight, place):
    assert links(*run(chain({"flops": flops, "weight": weight}), execution="stream")) == [("norm", place, "start", 0, 5)]


def test_through_a_launch():
    """Launched at 3, both are at the channel from 4 on; the second is served from 8."""
    log, rules = run(chain({"flops": 6, "weight": 4}, repeat=2), execution="blocking", engines=2, latency=1, launch=3)
    assert links(log, rules) == [
        ("norm", "engine", "start", 0, 3),
        ("norm", "latency", "itself", 3, 4),
        ("norm", "channel", "itself", 4, 8),
        ("norm", "channel", "channel", 8, 12),
        ("norm", "engine", "itself", 12, 15),
    ]


def test_through_the_scheduler():
    b = GraphBuilder()
    for kind in ("norm", "act"):
        b.add(kind, flops=5)
    b.add("rope", 0, flops=3)
    assert links(*run(b.graph(), engines=3, scheduler="serial"))[-1] == ("rope", "engine", "engine", 10, 13)
    b = GraphBuilder()
    first = b.add("norm", flops=2)
    b.add("norm", flops=6)
    b.add("act", flops=10)
    b.add("o_proj", first, flops=1)
    assert links(*run(b.graph(), engines=2, scheduler="sticky"))[-1] == ("o_proj", "engine", "engine", 12, 13)


def test_through_sram():
    b = GraphBuilder()
    for _ in range(2):
        b.add("o_proj", flops=5, weight=4)
    assert links(*run(b.graph(), sram=4)) == [
        ("weight_load", "channel", "start", 0, 4),
        ("o_proj", "engine", "input", 4, 9),
        ("weight_load", "channel", "sram", 9, 13),
        ("o_proj", "engine", "input", 13, 18),
    ]


def test_through_steps_and_the_arrival():
    log, rules = run(chain({"flops": 5}), requests=[(2, 3)])
    assert links(log, rules) == [
        ("", "arrival", "start", 0, 3),
        ("norm", "engine", "arrival", 3, 8),
        ("norm", "engine", "step", 8, 13),
    ]
    assert critical_path(log, rules).by_kind(log) == {"norm": 10, "arrival": 3}


def test_an_arrival_is_not_mistaken_for_the_end_of_another_sequence():
    log, rules = run(chain({"flops": 5}), requests=[(1, 0), (1, 5)])
    assert links(log, rules)[0] == ("", "arrival", "start", 0, 5)


def test_through_the_kv_cache():
    """Token 1 computes for so long that nothing is at the channel between the store of token 0 and the load of token 1."""
    log, rules = run(kv_block(loads=30), dependency="known", requests=[(2, 0)], engines=4, costs=UnevenCosts(1, 4))
    assert links(log, rules) == [
        ("kv_load", "channel", "start", 0, 30),
        ("kv_store", "channel", "channel", 30, 32),
        ("kv_load", "channel", "kv_order", 32, 62),
        ("scores", "engine", "input", 62, 78),
    ]
    assert critical_path(log, rules).by_cause() == {"start": 1, "input": 1, "kv_order": 1, "channel": 1}


def test_a_load_that_queues_behind_a_store_follows_the_channel():
    """The KV cache would let it begin when the store of token 0 ends, but that of token 1 is next in the queue."""
    log, rules = run(kv_block(), dependency="known", requests=[(2, 0)], engines=4)
    assert [(kind, cause) for kind, _, cause, _, _ in links(log, rules)] == [
        ("k_proj", "start"), ("kv_store", "input"), ("kv_store", "channel"), ("kv_load", "channel"), ("scores", "input"),
    ]  # fmt: skip


def test_in_bursts():
    b = GraphBuilder()
    b.add("first", flops=1, weight=6)
    b.add("second", flops=1, weight=6)
    log, rules = run(b.graph(), execution="blocking", engines=2, arbiter="round_robin", burst="2 B", bandwidth=10**12)
    path = critical_path(log, rules)
    assert (path.begin[0], path.end[-1]) == (0, log.makespan)
    assert {kind_of(log, row) for row in path.rows.tolist()} == {"first", "second"}


def test_tasks_are_ready_when_the_last_input_ends():
    block = llama_block(2, heads=4, hidden=64, mlp=128, kv=16)
    log, _ = run(block, dependency="known", requests=[(3, 0), (2, 5)], engines=3)
    source, tasks = derived.last_input(log), log.tasks
    has = source >= 0
    assert (tasks.end[source[has]] == tasks.ready[has]).all()
    assert (tasks.ready[~has] == log.steps.released[tasks.step[~has]]).all()
    assert set(np.sign(tasks.step[has] - tasks.step[source[has]])) == {0, 1}, "inputs of the same token, and of earlier ones"


def test_inputs_that_end_together_go_by_program_order():
    b = GraphBuilder()
    b.add("act", *(b.add("norm", flops=5) for _ in range(3)), flops=1)
    log, _ = run(b.graph(), engines=3)
    assert log.tasks.end[:3].tolist() == [5, 5, 5]
    assert derived.last_input(log).tolist() == [-1, -1, -1, 0]


def test_kv_order_looks_at_all_earlier_tokens():
    """The store of token 0 ends after that of token 1, and holds up token 2."""
    b = GraphBuilder()
    load = b.add("kv_load", kv_read=1)
    proj = b.add("k_proj", flops=5)
    b.add("kv_store", proj, kv_write=3)
    b.add("scores", load, flops=1)
    log, rules = run(b.graph(), dependency="known", requests=[(3, 0)], engines=3, costs=UnevenCosts(4, 1, 1))
    # [token, task]: k_proj ends at 20, 5, 5; stores end at 23, 8, 11
    assert log.tasks.end.reshape(3, 4)[:, 2].tolist() == [23, 8, 11]
    assert derived.last_input(log)[[0, 4, 8]].tolist() == [-1, 2, 2]
    assert log.tasks.ready[8] == 23
    assert [(kind, cause) for kind, _, cause, _, _ in links(log, rules)] == [
        ("k_proj", "start"), ("kv_store", "input"), ("kv_load", "kv_order"), ("kv_load", "channel"), ("scores", "input"),
    ]  # fmt: skip


def test_stores_that_end_together_go_by_program_order():
    b = GraphBuilder()
    load = b.add("kv_load", kv_read=1)
    b.add("kv_store", kv_write=3)
    b.add("scores", load, flops=1)
    log, _ = run(b.graph(), dependency="known", requests=[(3, 0)], engines=3, arbiter="processor_sharing")
    stores = log.tasks.end.reshape(3, 3)[:, 1]
    assert stores[0] <= stores[1]
    same = dataclasses.replace(log, tasks=dataclasses.replace(log.tasks, end=np.maximum(log.tasks.end, stores[1])))
    assert derived.last_input(same)[6] == 1
