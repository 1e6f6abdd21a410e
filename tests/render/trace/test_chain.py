"""The chain that a trace shows of a token is the one along which the breakdown splits its time."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from models.graph import OpGraph
from sim.analysis.breakdown import breakdown
from sim.analysis.parts import COMPUTE, TRANSFER, WAIT_CHANNEL, WAIT_ENGINE, WAIT_INPUT, WAIT_POLICY, WAIT_SRAM
from sim.log.tables import EventLog
from sim.render.trace.layout import Layout
from sim.render.trace.tracks import Role, Slices
from sim.runs.run import read
from sim.scenario.shipped import find_scenario
from tests.analysis.machine import UnevenCosts, kind_of, run
from tests.analysis.test_random import machines, of_any_devices
from tests.graphs import GraphBuilder

#: Name of a slice of a chain, which is of depth 2 -> parts of the breakdown; any other name is a task.
WAITS = {"input wait": (WAIT_INPUT,), "engine wait": (WAIT_ENGINE, WAIT_POLICY), "SRAM wait": (WAIT_SRAM,)}
EITHER = (WAIT_ENGINE, WAIT_POLICY, WAIT_SRAM)
SERVED = (COMPUTE, TRANSFER, WAIT_CHANNEL)


def chain(log: EventLog) -> tuple[Slices, list[str]]:
    """Slices of the chains of all tokens, and their names."""
    layout = Layout(log)
    slices = Slices.concatenate(list(layout.sequences()))
    mine = slices.take((slices.depth == 2) & np.isin(slices.role, (Role.PHASE, Role.OP)))
    names = layout.names.table()
    return mine, [names[number] for number in mine.name]


def input_waits(log: EventLog) -> list[tuple[int, int, int]]:
    """(row that waited, row it waited for, until when) of each wait for the input from another token."""
    slices, names = chain(log)
    chosen = [i for i, name in enumerate(names) if name == "input wait"]
    return [(int(slices.row[i]), int(slices.cause[i]), int(slices.end[i])) for i in chosen]


paces = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(of_any_devices(), machines(), paces)
def test_a_chain_is_split_as_the_breakdown_has_it(graph: OpGraph, machine: dict[str, Any], each: list[int]) -> None:
    log, rules = run(graph, **{**machine, "requests": [(4, 0), (2, 3)], "costs": UnevenCosts(*each)})
    slices, names = chain(log)
    found = np.zeros((len(log.steps), 4), dtype=np.int64)
    either = rules.sram is not None and rules.execution != "prefetch"  # a kernel waits for an engine and for its operands
    waits = {"input wait": (WAIT_INPUT,)} | dict.fromkeys(("engine or SRAM wait", "engine wait", "SRAM wait"), EITHER)
    waits = waits if either else WAITS
    groups = [*dict.fromkeys(waits.values()), SERVED]
    found = found[:, : len(groups)]
    for name, row, time in zip(names, slices.row.tolist(), (slices.end - slices.start).tolist(), strict=True):
        found[log.tasks.step[row], groups.index(waits.get(name, SERVED))] += time
    tokens = breakdown(log, rules).tokens
    assert found.tolist() == np.stack([tokens[:, parts].sum(axis=1) for parts in groups], axis=1).tolist()
    for row, cause, until in input_waits(log):
        assert kind_of(log, cause) == "kv_store"
        assert int(log.tasks.end[cause]) == until == int(log.tasks.ready[row])
        before, step = log.tasks.step[cause], log.tasks.step[row]
        assert log.steps.sequence[before] == log.steps.sequence[step]
        assert log.steps.token[before] < log.steps.token[step]


def test_a_load_waits_for_the_store_that_ends_last() -> None:
    """The store of token 0 ends after that of token 1, and holds up token 2: by hand, as in the test of the critical path."""
    b = GraphBuilder()
    load = b.add("kv_load", kv_read=1)
    proj = b.add("k_proj", flops=5)
    b.add("kv_store", proj, kv_write=3)
    b.add("scores", load, flops=1)
    log, _ = run(b.graph(), dependency="known", requests=[(3, 0)], engines=3, costs=UnevenCosts(4, 1, 1))
    # rows of token t: load 4 t, k_proj, store 4 t + 2, scores; stores end at 23, 8 and 11
    assert log.tasks.end[[2, 6, 10]].tolist() == [23, 8, 11]
    assert input_waits(log) == [(4, 2, 23), (8, 2, 23)]


def test_a_load_waits_for_a_store_of_a_token_further_back() -> None:
    changes = ["workload.sequences.0.tokens=4", "cost.jitter=0.6", "scheduler=shortest", "hardware.engines.count=2"]
    log = sim.run(read(find_scenario("two_tokens_4_engines"), changes)).log
    waits = input_waits(log)
    distance = {int(log.tasks.step[row] - log.tasks.step[cause]) for row, cause, _ in waits}
    assert distance > {1}, "stores of the token before, and of those before that"
    assert all(log.tasks.end[cause] == until for _, cause, until in waits)


def test_a_window_does_not_name_what_it_does_not_hold() -> None:
    """A log that begins with token 1 does not hold the store of token 0 that held up token 2."""
    b = GraphBuilder()
    load = b.add("kv_load", kv_read=1)
    b.add("kv_store", b.add("k_proj", flops=5), kv_write=3)
    b.add("scores", load, flops=1)
    log, _ = run(b.graph(), dependency="known", requests=[(3, 0)], engines=3, costs=UnevenCosts(4, 1, 1))
    assert [(cause, until) for _, cause, until in input_waits(log.part(1, 3))] == [(-1, 23), (-1, 23)]
