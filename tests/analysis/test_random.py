"""On random graphs, machines and policies all times add up; `breakdown`, `blame`, `critical_path` assert it themselves."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from models.graph import OpGraph
from sim.analysis.blame import blame
from sim.analysis.bounds import bounds
from sim.analysis.breakdown import breakdown
from sim.analysis.checks import check
from sim.analysis.critical_path import Place, critical_path
from sim.analysis.findings import analyze
from sim.analysis.parts import PARTS, WAIT_ENGINE, WAIT_INPUT, WAIT_POLICY, WAIT_SRAM
from sim.analysis.rules import Rules
from sim.analysis.story import Stories
from sim.base.errors import ConfigError
from sim.cost.fixed import largest_remainder
from sim.log import columns, derived
from sim.log.tables import EventLog
from sim.mapping.lowering import lower
from sim.mapping.operands import operands_of
from sim.mapping.settings import ModelMapping
from tests.analysis.machine import run
from tests.graphs import GraphBuilder

KINDS = ("norm", "q_proj", "act", "o_proj")


@st.composite
def graphs(draw: st.DrawFn) -> OpGraph:
    b = GraphBuilder()
    for i in range(draw(st.integers(1, 8))):
        inputs = draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else []
        what = draw(st.sampled_from(("compute", "weights", "kv_load", "kv_store")))
        size, layer = draw(st.integers(1, 12)), draw(st.integers(0, 1))
        if what == "kv_load":
            b.add(what, *inputs, layer=layer, kv_read=size)
        elif what == "kv_store":
            b.add(what, *inputs, layer=layer, kv_write=size)
        else:
            weight = draw(st.integers(1, 12)) if what == "weights" else 0
            b.add(draw(st.sampled_from(KINDS)), *inputs, layer=layer, flops=size, weight=weight)
    for layer in {op.layer for op in b.ops if op.kind == "kv_load"} - {op.layer for op in b.ops if op.kind == "kv_store"}:
        b.add("kv_store", layer=layer, kv_write=1)  # what is loaded was stored
    return b.graph()


@st.composite
def dealt_out(draw: st.DrawFn) -> OpGraph:
    """A random graph on two or three devices. Operands are used where they are loaded."""
    graph = draw(graphs())
    home = list(range(len(graph.ops)))  # [op]: the first one that must be on the same device
    for i, op in enumerate(graph.ops):
        for j in op.inputs:
            if graph.ops[j].kind == "kv_load":
                home = [min(home[i], home[j]) if each in (home[i], home[j]) else each for each in home]
    device = draw(st.lists(st.integers(0, draw(st.integers(1, 2))), min_size=len(home), max_size=len(home)))
    dealt = dataclasses.replace(
        graph, ops=tuple(dataclasses.replace(op, device=device[home[i]]) for i, op in enumerate(graph.ops))
    )
    try:
        operands_of(lower(dealt, ModelMapping(execution="prefetch")))
    except ConfigError:  # devices that would each need operands of the other at once
        reject()
    return dealt


@st.composite
def machines(draw: st.DrawFn) -> dict[str, object]:
    return {
        "execution": draw(st.sampled_from(("blocking", "stream", "prefetch"))),
        "arbiter": draw(st.sampled_from(("fifo", "processor_sharing"))),
        "scheduler": draw(st.sampled_from(("serial", "earliest", "sticky", "critical_path", "oldest_token", "shortest"))),
        "dependency": draw(st.sampled_from(("sampled", "known"))),
        "engines": draw(st.integers(1, 4)),
        "latency": draw(st.integers(0, 3)),
        "launch": draw(st.sampled_from((0, 0, 1, 4))),
        "cap": draw(st.sampled_from(((1, 1), (1, 2), (2, 3)))),
        "spare": draw(st.sampled_from((None, 0, 5, 20))),
        "channels": draw(st.integers(1, 2)),
        "route": draw(st.sampled_from(("interleaved", "sequence", "class"))),
        "requests": draw(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=3)),
    }


def of_any_devices() -> st.SearchStrategy[OpGraph]:
    return st.one_of(graphs(), dealt_out())


@settings(max_examples=150, deadline=None)
@given(of_any_devices(), machines())
def test_the_account_adds_up(graph: OpGraph, machine: dict[str, object]):
    log, rules = run(graph, **machine)
    check(log, rules, bounds(log, rules))
    parts = breakdown(log, rules)
    assert parts.tokens.shape == (len(log.steps), len(PARTS))
    assert (parts.tokens >= 0).all()
    if rules.dependency == "sampled":
        assert not parts.tokens[:, WAIT_INPUT].any()
    if rules.work_conserving_scheduler:
        assert not parts.total[WAIT_POLICY]
    stories = Stories(log, rules)
    for step in range(len(log.steps)):
        story = stories.of(step)
        assert np.sum([link.parts for link in story], axis=0).tolist() == parts.tokens[step].tolist()
        assert story[0].begin == log.steps.released[step] or story[0].source >= 0
        assert all(b.begin == log.tasks.end[a.row] for a, b in pairwise(story))
    found = blame(log, rules, parts)
    for matrix in (found.engine_by_owner, found.engine_by_kind, found.channel_by_owner, found.channel_by_kind):
        assert (matrix.wait >= 0).all()
        assert (matrix.alone >= 0).all()
    path = critical_path(log, rules)
    assert path.begin[0] == 0
    assert path.end[-1] == log.makespan
    assert (path.begin < path.end).all()
    assert sum(path.by_kind(log).values()) == log.makespan == sum(path.by_resource(log, rules).values())
    assert not (path.place == Place.WAIT).any(), "each link was held up by somebody"


@settings(max_examples=100, deadline=None)
@given(of_any_devices(), machines())
def test_compiled_kernels_find_the_same(graph: OpGraph, machine: dict[str, object]):
    log, rules = run(graph, **machine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "MANY_TASKS", 0)
        compiled = findings(log, rules)
    assert findings(log, rules) == compiled


def by_instants(log: EventLog) -> tuple[np.ndarray, np.ndarray]:
    """Picosecond by picosecond: [waiting, holding], tasks of a device that waited beside tasks that held its engines while none
    was idle; and [step], transfers that waited for space in its SRAM while neither its channels nor its engines were the cause.
    """
    t, g, steps, each = log.tasks, log.services, len(log.steps), log.machine.memories // len(log.machine.devices)
    held, device = t.engine >= 0, derived.device(log)
    together, in_sram = np.zeros((steps, steps), dtype=np.int64), np.zeros(steps, dtype=np.int64)
    for number, of in enumerate(log.machine.devices):
        mine, channels = device == number, g.channel // each == number
        for now in range(log.makespan):
            holds, waits = mine & held & (t.start <= now) & (now < t.end), mine & (t.ready <= now) & (now < t.start)
            queue, space, serves = waits & held, waits & ~held, (channels & (g.start <= now) & (now < g.end)).any()
            all_busy = holds.sum() == len(of.engines)
            if not serves and not (all_busy and queue.any()):
                np.add.at(in_sram, t.step[space], 1)
            if all_busy:
                waiting = queue if serves or not queue.any() else waits
                together += np.outer(*(np.bincount(t.step[those], minlength=steps) for those in (waiting, holds)))
    return together, in_sram


@settings(max_examples=60, deadline=None)
@given(of_any_devices(), machines())
def test_engines_are_blamed_for_each_instant(graph: OpGraph, machine: dict[str, object]):
    """Against a count, picosecond by picosecond, of tasks that waited and tasks that held an engine while none was idle.

    A transfer that waits for SRAM waits for an engine while tasks queue for them and channels rest.
    """
    log, rules = run(graph, **machine)
    steps, parts = len(log.steps), breakdown(log, rules)
    together, _ = by_instants(log)
    totals = parts.by_step[:, WAIT_ENGINE].tolist()
    assert together.sum(axis=1).tolist() == [log.machine.engines_each * total for total in totals]
    expected = [
        largest_remainder(row, total) if total else [0] * steps for row, total in zip(together.tolist(), totals, strict=True)
    ]
    assert blame(log, rules, parts).engine_by_owner.wait.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(graphs(), machines())
def test_a_queue_is_blamed_on_what_it_served(graph: OpGraph, machine: dict[str, object]):
    """On one channel at full speed each wait is split by the work that others received meanwhile, counted one by one."""
    log, rules = run(graph, **{**machine, "arbiter": "fifo", "cap": (1, 1), "channels": 1, "execution": "blocking"})
    t, g, steps = log.tasks, log.services, len(log.steps)
    received = np.zeros((steps, steps), dtype=np.int64)
    for row in np.flatnonzero(t.work).tolist():
        launch = min(machine["launch"], int(t.compute[row]))
        issued, arrived = int(t.start[row]) + launch + rules.latency, int(t.loaded[row])
        others = 0
        for i in range(len(g)):
            overlap = min(arrived, int(g.end[i])) - max(issued, int(g.start[i]))
            if g.task[i] != row and overlap > 0:
                received[t.step[row], t.step[g.task[i]]] += overlap
                others += overlap
        wait = arrived - issued - int(t.work[row])
        assert others == wait
    found = blame(log, rules, breakdown(log, rules)).channel_by_owner
    assert found.wait.tolist() == received.tolist()
    assert not found.alone.any()


@settings(max_examples=60, deadline=None)
@given(of_any_devices(), machines())
def test_waits_for_sram_have_causes(graph: OpGraph, machine: dict[str, object]):
    """Against a count, picosecond by picosecond, of transfers that wait for space, by what the machine does meanwhile."""
    log, rules = run(graph, **{**machine, "execution": "prefetch", "spare": machine["spare"] or 0})
    together, in_sram = by_instants(log)
    parts, steps = breakdown(log, rules), len(log.steps)
    assert parts.by_step[:, WAIT_SRAM].tolist() == in_sram.tolist()
    totals = parts.by_step[:, WAIT_ENGINE].tolist()
    assert together.sum(axis=1).tolist() == [log.machine.engines_each * total for total in totals]
    expected = [
        largest_remainder(row, total) if total else [0] * steps for row, total in zip(together.tolist(), totals, strict=True)
    ]
    assert blame(log, rules, parts).engine_by_owner.wait.tolist() == expected


def findings(log: EventLog, rules: Rules) -> list[object]:
    """All that the analyses find, to be compared."""
    log, whole = dataclasses.replace(log), analyze(log, rules)  # a copy, of which nothing is known yet
    shown = [derived.last_input(log), *derived.chains(log), *derived.service(log)]
    return plain([whole, blame(log, rules, whole.breakdown), critical_path(log, rules), shown])


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return [plain(getattr(value, each.name)) for each in dataclasses.fields(value)]
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value
