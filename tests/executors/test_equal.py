"""The compiled executor gives the log of the reference executor, every column to the bit, over the whole space of scenarios."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

import sim.scenario
from models.graph import StepLanes
from sim.base.errors import InputError, SimulationError
from sim.base.kernel import launch
from sim.executors import compiled, reference, simulate
from sim.executors.compiled import batches, driver, rules, spans
from sim.executors.setup import Setup
from sim.executors.size import tasks_in_all
from sim.log.tables import EventLog, in_loop_order, joined
from sim.mapping.tasks import CLASS_BIT, to_tier
from sim.runs.plan import plan
from sim.runs.run import read, run
from sim.scenario.shipped import scenarios as shipped
from tests.executors import assert_same
from tests.executors.scenarios import XEON, apart, served
from tests.machine.test_invariants import scenarios as written

LARGE = 20_000  # tasks; the reference takes too long for more
PARTS = st.sampled_from((1, 7, 100, None))


def setup_of(scenario: sim.scenario.Scenario) -> Setup:
    return plan(scenario).setup


def drawn(data: dict[str, Any]) -> Setup:
    """The setup of a random scenario; one that is refused, or large, does not count."""
    try:
        setup = setup_of(sim.scenario.from_dict(data))
    except InputError:
        reject()
    if tasks_in_all(setup)[0] > LARGE or turns(setup) > LARGE or rules.obstacle(setup):  # numbers beyond 62 bits
        reject()
    return setup


def turns(setup: Setup) -> int:
    """About how many turns a channel takes that serves a burst at a time: each is a row of the log."""
    arbiter = getattr(setup.arbiter, "arbiter", setup.arbiter)  # whatever the efficiency of the channel
    burst = getattr(arbiter, "burst", 0)
    if not burst:
        return 0
    last = np.array([max(request.final for request in setup.sequences)])
    _, work = setup.costs.durations(setup.graph, StepLanes(sequence=last * 0, token=last * 0, context=last))
    steps = sum(request.tokens + request.prompt for request in setup.sequences)
    return int(work.sum()) * steps // burst


def both(setup: Setup, pause: int | None = None) -> EventLog:
    """Run it on both. pause: instants until the event loop returns, and tasks whose durations are there at once."""
    wrong = None
    try:
        expected = reference.simulate(setup)
    except (InputError, SimulationError) as error:  # steps that do not fit SRAM
        wrong = error
    if wrong is not None:
        with pytest.raises(type(wrong), match=re.escape(str(wrong))):
            in_pieces(setup, pause)
        reject()
    log = in_pieces(setup, pause)
    assert log is not None
    assert_same(expected, log)
    assert all(a is b for a, b in zip(expected.graphs, log.graphs, strict=True))
    return log


def in_pieces(setup: Setup, pause: int | None, sink: driver.Sink | None = None) -> EventLog | None:
    if pause is None:
        return compiled.simulate(setup, None, sink)
    with (
        patch.object(driver, "INSTANTS", pause), patch.object(driver, "COSTED", pause), patch.object(driver, "PART", pause),
        patch.object(batches, "INSTANTS", pause), patch.object(batches, "PART", pause),
    ):  # fmt: skip
        return compiled.simulate(setup, None, sink)


def copied(log: EventLog) -> EventLog:
    """A part of a log is only there until the next one comes."""

    def copy(table: Any) -> Any:
        return table and replace(table, **{f.name: getattr(table, f.name).copy() for f in fields(table)})

    return replace(log, tasks=copy(log.tasks), services=copy(log.services), steps=copy(log.steps), batched=copy(log.batched))


def parts_are_the_whole(setup: Setup, pause: int | None, whole: EventLog) -> None:
    """The parts that a sink takes are the log when joined; the returned log has everything but the rows."""
    parts: list[EventLog] = []
    rest = in_pieces(setup, pause, lambda part: parts.append(copied(part)))
    assert rest is not None
    assert_same(whole, in_loop_order(joined(parts)))
    assert not len(rest.tasks)
    assert not len(rest.services)
    assert_same(replace(whole, tasks=rest.tasks, services=rest.services), rest)


def rounding() -> dict[str, Any]:
    """Two channels, where what floors leave over would end a transfer in the instant in which another arrives."""
    mix = [
        {"name": f"op{i}", "inputs": [], "kind": "mix", "duration": time}
        for i, time in ((0, "1 ps"), (1, "1 ps"), (6, "10 ps"), (7, "10 ps"))
    ]
    return {
        "model": {"graph": [
            mix[0], {"name": "op4", "inputs": [], "kind": "kv_load", "kv_read": "11 B"},
            {"name": "op2", "inputs": [], "kind": "norm", "flops": 1},
            {"name": "op3", "inputs": [], "kind": "norm", "flops": 2, "weight": "1 B"}, mix[1],
            {"name": "op5", "inputs": ["op0", "op1"], "kind": "mix", "duration": "2 ps", "transfer": "6 ps"}, mix[2], mix[3],
            {"name": "store0", "kind": "kv_store", "kv_write": "1 B"},
        ]},
        "workload": {"dependency": "known", "sequences": [
            {"tokens": 2, "arrival": "3 ps"}, {"tokens": 1, "arrival": "12 ps"}, {"tokens": 2},
        ]},
        "hardware": {
            "engines": {"count": 3, "flops": "1 TFLOP/s", "overhead": 0}, "sram": "24 B",
            "memory": {
                "arbiter": {"name": "weighted", "weights": {"kv_load": 4}}, "bandwidth": "1 TB/s", "channels": {"count": 2},
            },
        },
        "mapping": {"execution": "blocking"}, "scheduler": "critical_path",
    }  # fmt: skip


relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(relaxed, max_examples=100)
@given(written(), PARTS)
@example(rounding(), 1)
def test_graphs_of_every_kind_on_machines_of_every_kind(data, pause):
    both(drawn(data), pause)


@settings(relaxed, max_examples=25)
@given(served(more=True), PARTS)
def test_batches_of_real_models(data, pause):
    both(drawn(data), pause)


@settings(relaxed, max_examples=20)
@given(served(devices=True, more=True), PARTS)
def test_batches_on_several_devices(data, pause):
    both(drawn(data), pause)


@settings(relaxed, max_examples=5)
@given(apart(), PARTS)
def test_devices_with_sequences_of_their_own(data, pause):
    both(drawn(data), pause)


@settings(relaxed, max_examples=40)
@given(st.one_of(written(), served()), PARTS)
def test_parts_of_a_log_are_the_whole(data, pause):
    setup = drawn(data)
    parts_are_the_whole(setup, pause, both(setup))


def as_python(setup: Setup) -> EventLog | None:
    """The event loop as Python, which raises where compiled code would read or write beyond its arrays."""
    with (
        patch.object(driver, "compile_kernel", lambda function: launch(function, compiled=False)),
        patch.object(batches, "compile_kernel", lambda function: launch(function, compiled=False)),
    ):
        return compiled.simulate(setup)


@settings(relaxed, max_examples=30)
@given(written())
def test_the_event_loop_as_python_stays_within_its_memory(data):
    setup = drawn(data)
    log = as_python(setup)
    assert log is not None
    assert_same(reference.simulate(setup), log)


@pytest.mark.parametrize("arbiter", ["processor_sharing", {"name": "weighted", "weights": {"mix": 1}}])
def test_many_short_transfers_beside_a_long_one(arbiter):
    """The long one is the last at the channel again and again, and its class must not be full of it."""
    short = [{"name": f"load{i}", "kind": "kv_load", "transfer": "2 us"} for i in range(150)]
    store = {"name": "store", "kind": "kv_store", "transfer": "1 us"}
    setup = setup_of(sim.scenario.from_dict({
        "model": {"graph": [{"name": "long", "kind": "mix", "transfer": "1 s", "duration": "1 us"}, *short, store]},
        "hardware": {"engines": {"count": 2}, "memory": {"arbiter": arbiter}}, "mapping": {"execution": "blocking"},
    }))  # fmt: skip
    log = as_python(setup)
    assert log is not None
    assert_same(reference.simulate(setup), log)


@pytest.mark.slow
@settings(relaxed, max_examples=2000)
@given(written(), PARTS)
def test_many_graphs(data, pause):
    both(drawn(data), pause)


@pytest.mark.slow
@settings(relaxed, max_examples=400)
@given(served(more=True), PARTS)
def test_many_batches(data, pause):
    setup = drawn(data)
    parts_are_the_whole(setup, pause, both(setup, pause))


@pytest.mark.slow
@settings(relaxed, max_examples=60)
@given(apart(), PARTS)
def test_many_devices_with_sequences_of_their_own(data, pause):
    setup = drawn(data)
    parts_are_the_whole(setup, pause, both(setup, pause))


@pytest.mark.parametrize("arbiter", ["fifo", "processor_sharing"])
@pytest.mark.parametrize("execution", ["stream", "prefetch"])
def test_spans_side_by_side(arbiter, execution):
    """However many threads there are: each runs some steps of a single sequence."""
    changes = [f"hardware.memory.arbiter={arbiter}", f"mapping.execution={execution}", "mapping.tiles=2", "scheduler=sticky"]
    changes += ["workload.sequences=[{context: 100, tokens: 23, arrival: 3 us}]", "hardware.memory.latency=100 ns"]
    setup = setup_of(read(shipped()["four_sequences_fifo"], ["model.layers=1", "model.scope=block", *changes]))
    expected = reference.simulate(setup)
    for threads in (1, 2, 3, 23):
        with patch.object(spans, "WORTH", 1), patch.object(spans, "cores", lambda threads=threads: threads):
            log = compiled.simulate(setup)
        assert log is not None
        assert_same(expected, log)


#: Arbiters that do not remember whose turn it was.
DIVIDED = (
    "fifo", "processor_sharing", {"name": "priority", "classes": "age"}, {"name": "priority", "classes": ["kv_load"]},
    {"name": "weighted", "weights": {"kv_load": 3, "weight_load": 1}},
)  # fmt: skip


@settings(relaxed, max_examples=10)
@given(served(), st.sampled_from(("static", "continuous")), st.sampled_from((0, 5)), st.sampled_from(DIVIDED))
def test_batches_side_by_side(data, policy, arrival, arbiter):
    """Batches of requests that are all there from the beginning: prompts, drafts, forks, full caches, experts."""
    workload, hardware = data["workload"], data.setdefault("hardware", {})
    workload.pop("concurrency", None)
    if workload.pop("generate", None):
        workload["sequences"] = [{"context": 20, "tokens": 4, "count": 3}]
    for each in workload["sequences"]:
        each["arrival"] = f"{arrival} us"
    workload["batching"] = (workload.get("batching") or {}) | {"policy": policy}
    hardware["memory"] = hardware.get("memory", {}) | {"arbiter": arbiter}
    setup = drawn(data)
    expected = both(setup)
    disciplines = rules.disciplines(setup)
    for threads in (2, 5):
        with patch.object(spans, "WORTH", 1):
            count = spans.spans_of(setup, disciplines, threads)
        if count > 1:
            assert_same(expected, spans.simulate(setup, disciplines, count))


@pytest.mark.parametrize("name", ["batching_static", "kv_full_swap", "kv_full_recompute"])
def test_shipped_batches_side_by_side(name):
    changes = ["model.layers=1", "model.scope=block", "mapping.heads=fused", "hardware.memory.arbiter=fifo"]
    if name == "kv_full_swap":
        changes += ["workload.batching.kv.moves=between"]  # beside steps they have a loop of their own
    setup = setup_of(read(shipped()[name], changes))
    expected = compiled.simulate(setup)
    assert expected is not None
    for threads in (2, 3):
        with patch.object(spans, "WORTH", 100), patch.object(spans, "cores", lambda threads=threads: threads):
            assert spans.spans_of(setup, rules.disciplines(setup)) == threads
            log = compiled.simulate(setup)
        assert log is not None
        assert_same(expected, log)
        assert all(a is b for a, b in zip(expected.graphs, log.graphs, strict=True))


@settings(relaxed, max_examples=15)
@given(served(), st.sampled_from(("simpy", "compiled")))
def test_recording_only_steps_gives_the_same_results(data, executor):
    drawn(data)
    every_scenario, steps_scenario = (sim.scenario.from_dict(data | {"record": what}) for what in ("all", "steps"))
    try:
        every = run(every_scenario, executor=executor)
    except InputError as error:  # a step does not fit SRAM: then it does not whatever is recorded
        with pytest.raises(InputError, match=re.escape(str(error))):
            run(steps_scenario, executor=executor)
        reject()
    with patch.object(driver, "PART", 200), patch.object(batches, "PART", 200):
        steps = run(steps_scenario, executor=executor)
    for name in ("metrics", "bounds", "breakdown", "requests", "series", "checks", "makespan"):
        assert_alike(getattr(every, name), getattr(steps, name), name)


ARRIVALS = {  # of three sequences; a part ends where no step is in progress
    "one after another": ((0, 10**9, 2 * 10**9), True),
    "latest first": ((2 * 10**9, 10**9, 0), True),
    "two overlap, then one": ((0, 10**5, 10**9), True),
    "all overlap": ((0, 10**5, 2 * 10**5), False),
}


@pytest.mark.parametrize(("arrivals", "apart"), ARRIVALS.values(), ids=ARRIVALS.keys())
def test_sequences_that_are_apart_come_in_parts(arrivals, apart):
    requests = [{"context": 10 + i, "tokens": 4, "arrival": f"{at} ns"} for i, at in enumerate(arrivals)]
    data = {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}, "mapping": {"heads": "fused"},
        "workload": {"sequences": requests}, "trace": {"window": {"start": "0 ns", "end": "10 s"}},
    }  # fmt: skip
    every = sim.scenario.from_dict(data)
    whole, setup = run(every), setup_of(every)
    parts: list[EventLog] = []
    with patch.object(driver, "PART", 40):  # less than two steps
        compiled.simulate(setup, None, lambda part: parts.append(copied(part)))
        steps = run(sim.scenario.from_dict(data | {"record": "steps"}), executor="compiled")
    assert (len(parts) > 1) == apart
    assert_same(whole.log, in_loop_order(joined(parts)))
    assert steps.window is not None
    assert_same(whole.log, steps.window)
    for name in ("metrics", "bounds", "breakdown", "requests", "series", "checks", "makespan"):
        assert_alike(getattr(whole, name), getattr(steps, name), name)


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
@pytest.mark.parametrize("name", ["four_sequences_fifo", "batching_continuous"])
def test_a_window_is_that_part_of_the_whole(name, executor):
    changes = ["model.layers=1", "model.scope=block", "mapping.heads=fused"]
    if name == "four_sequences_fifo":
        changes.append("workload.sequences=[{context: 10, tokens: 300}]")
    whole = run(read(shipped()[name], changes)).log
    start, end = whole.makespan // 3, whole.makespan // 2
    changes += ["record=steps", f"trace.window={{start: {start} ps, end: {end} ps}}"]
    with patch.object(driver, "PART", 500), patch.object(batches, "PART", 500):
        window = run(read(shipped()[name], changes), executor=executor).window
    under_way = np.flatnonzero((whole.steps.end > start) & (whole.steps.released < end))
    assert len(under_way) > 2
    assert window is not None
    part = whole.part(int(under_way[0]), int(under_way[-1]) + 1)
    # Later graphs were not there yet, and the waits of requests are those of the whole run.
    assert_same(replace(part, graphs=part.graphs[: len(window.graphs)], queue=None), window)


def assert_alike(a: Any, b: Any, name: str) -> None:
    """Two values are equal, arrays item by item."""
    assert type(a) is type(b), name
    if hasattr(a, "__dataclass_fields__"):
        for field in fields(a):
            assert_alike(getattr(a, field.name), getattr(b, field.name), f"{name}.{field.name}")
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b), name
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_alike(x, y, f"{name}[{i}]")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_alike(a[key], b[key], f"{name}[{key}]")
    elif hasattr(a, "dtype"):
        assert a.shape == b.shape, name
        assert (a == b).all(), name
    else:
        assert a == b, name


def test_experts_that_are_given(tmp_path):
    """A file of choices, which both executors read alike."""
    chosen = [
        {"sequence": s, "position": p, "layer": 0, "experts": [(s * 7 + p + 11 * e) % 60 for e in range(4)]}
        for s in range(3) for p in range(12)
    ]  # fmt: skip
    path = Path(tmp_path) / "experts.jsonl"
    path.write_text("\n".join(map(json.dumps, chosen)), encoding="utf-8")
    both(setup_of(sim.scenario.from_dict({
        "model": {"config": "qwen1.5-moe-a2.7b", "layers": 1, "scope": "block"},
        "workload": {
            "batching": "continuous", "routing": {"file": str(path)}, "sequences": [{"prompt": 6, "tokens": 5, "count": 3}],
        },
        "mapping": {"heads": "fused"},
    })))  # fmt: skip


def test_shares_of_a_measured_time_do_not_depend_on_the_steps_worked_out_at_once():
    """The FLOPs of a step may divide evenly by the heads of an attention, and its time not."""
    both(setup_of(sim.scenario.from_dict({
        "model": {"config": "gemma-3-1b", "layers": 1, "scope": "block"},
        "mapping": {"softmax": "online", "execution": "stream"},
        "hardware": {"engines": {"count": 1}, "memory": {"bandwidth": "100 GB/s"}},
        "workload": {"batching": "static", "sequences": [{"context": 33, "tokens": 5}]},
        "cost": {"model": "profiled", "profile": XEON, "otherwise": "roofline"},
    })))  # fmt: skip


def test_the_choice_of_executor_does_not_show():
    scenario = read(shipped()["batching_continuous"], ["model.layers=1", "model.scope=block"])
    setup = setup_of(scenario)
    assert_same(*(simulate(setup, executor)[0] for executor in ("simpy", "compiled")))


def test_the_longest_path_goes_on_behind_a_join():
    """Joins stand between tasks of several devices: nodes that are no tasks."""
    setup = setup_of(sim.scenario.from_dict({
        "model": {"config": "qwen1.5-moe-a2.7b", "layers": 2}, "scheduler": "critical_path",
        "workload": {"batching": "continuous", "sequences": [{"context": 20, "tokens": 1, "count": 2}]},
        "hardware": {"devices": {"count": 4, "link": {"bandwidth": "64 GB/s"}}},
        "mapping": {"parallel": {"tensor": 4, "expert": 4}},
    }))  # fmt: skip
    assert both(setup).graphs[0].links.joins


OFFLOADED = {
    "layers that are sent": ({"hardware": {"devices": {"count": 2, "link": {"bandwidth": "64 GB/s"}}},
        "mapping": {"parallel": {"data": 2, "prefill": 1, "hand_over": "layers"}}}, 2),
    "drafts": ({"workload": {"speculative": {"draft": 2, "acceptance": 1, "model": "llama-3.2-1b"}}}, 2),
}  # fmt: skip


@pytest.mark.parametrize(("more", "shapes"), OFFLOADED.values(), ids=OFFLOADED.keys())
def test_weights_come_from_their_tier_in_steps_of_every_kind(more, shapes):
    """As many bytes in each step as the tier holds of the model of that step."""
    data = {
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "workload": {"batching": "continuous", "sequences": [{"prompt": 7, "tokens": 3, "count": 2}]},
        "hardware": {"tiers": [{"name": "cxl"}, {"name": "ssd"}]}, "mapping": {"offload": {"weights": "all", "tier": "ssd"}},
    }  # fmt: skip
    for tier in data["hardware"]["tiers"]:
        tier["link"] = {"bandwidth": "7 GB/s"}
    merged = {key: value | more.get(key, {}) for key, value in data.items()}
    log = both(setup_of(sim.scenario.from_dict(merged)))
    assert len(log.graphs) >= shapes
    for graph in log.graphs:
        loads = [graph.moves[task] for task in range(len(graph)) if graph.kind_of(task).removeprefix("draft ") == "host_load"]
        assert loads
        assert set(loads) == {CLASS_BIT["weight"] | to_tier(1)}
