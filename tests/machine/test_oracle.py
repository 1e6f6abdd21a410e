"""Random task graphs and machines: the reference executor agrees with the oracle, task by task and byte by byte."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from models.graph import StepLanes
from sim.base.quantities import BANDWIDTH, SIZE
from sim.executors import reference
from sim.executors.setup import Setup
from sim.mapping.operands import OPERAND_BITS
from sim.mapping.tasks import CLASS_BIT
from sim.runs.plan import plan
from sim.scenario import from_dict
from tests.machine.oracle import Oracle, Rules, Task, level_fill
from tests.machine.test_invariants import scenarios

#: Schedulers whose rank the oracle knows: those of program order, age and length.
KNOWN = ("serial", "earliest", "oldest_token", "shortest")


def rules_of(data: dict[str, Any]) -> Rules:
    hardware, mapping = data["hardware"], data["mapping"]
    memory = hardware["memory"]
    arbiter = memory["arbiter"] if isinstance(memory["arbiter"], dict) else {"name": memory["arbiter"]}
    arbiter = dict(arbiter)
    if arbiter["name"] == "round_robin":  # at 1 TB/s a byte takes 1 ps
        arbiter["ps"] = SIZE.parse(arbiter["burst"]) if isinstance(arbiter["burst"], str) else arbiter["burst"]
    if isinstance(arbiter.get("demand"), dict):
        arbiter["demand"] = {kind: BANDWIDTH.parse(rate) for kind, rate in arbiter["demand"].items()}
    efficiency = memory.get("efficiency")
    port = memory.get("port_bandwidth")
    return Rules(
        engines=hardware["engines"]["count"], launch=int(hardware["engines"]["overhead"].split()[0]),
        overlap=mapping["execution"] == "stream", known=data["workload"]["dependency"] == "known", scheduler=data["scheduler"],
        channels=memory["channels"]["count"], route=memory["channels"]["route"], latency=int(memory["latency"].split()[0]),
        bandwidth=10**12, arbiter=arbiter, cap=Fraction(BANDWIDTH.parse(port), 10**12) if port else Fraction(1),
        efficiency={int(n): Fraction(str(share)) for n, share in efficiency.items()} if efficiency else None,
        sram=None,
    )  # fmt: skip


def tasks_of(setup: Setup) -> list[list[list[Task]]]:
    """[sequence][token]: tasks as they were lowered, with their durations alone and the bytes of their operands."""
    graph = setup.graph
    found = []
    for number, request in enumerate(setup.sequences):
        tokens = np.arange(request.tokens, dtype=np.int64)
        lanes = StepLanes(sequence=np.full_like(tokens, number), token=tokens, context=request.context + tokens)
        compute, work = setup.costs.durations(graph, lanes)
        size = graph.bytes_moved(graph.ops.costs_of(lanes), classes=OPERAND_BITS)
        steps = []
        for token in tokens.tolist():
            step = [
                Task(
                    number, token, task, graph.kind_of(task), int(graph.layer[task]), bool(graph.engine[task]),
                    bool(graph.prefetch[task]), int(compute[task, token]), int(work[task, token]),
                    tuple(name for name, bit in CLASS_BIT.items() if graph.moves[task] & bit),
                    set(graph.inputs[graph.input_start[task] : graph.input_start[task + 1]].tolist()),
                )
                for task in range(len(graph))
            ]  # fmt: skip
            for task in step if setup.sram is not None else []:
                moved = set(task.moves) & {"weight", "kv_read", "state_read"}
                if moved and (task.prefetched or graph.computes[task.number] or task.kind == "kv_load"):
                    task.size = max(1, int(size[task.number, token]))
                    task.users = {other.number for other in step if task.number in other.inputs}
                    if not task.users or graph.computes[task.number]:
                        task.users = {task.number}
            steps.append(step)
        found.append(steps)
    return found


def agrees(data: dict[str, Any]) -> None:
    setup = plan(from_dict(data)).setup
    rules = replace(rules_of(data), sram=None if setup.sram is None else setup.sram[0])  # less what resident weights hold
    oracle = Oracle(rules, tasks_of(setup), [request.arrival for request in setup.sequences])
    oracle.run()
    log = reference.simulate(setup)
    expected = [task for sequence in oracle.steps for step in sequence for task in step]
    for name in ("engine", "ready", "start", "loaded", "end"):
        got = getattr(log.tasks, name).tolist()
        assert got == [getattr(task, name) for task in expected], name
    rows = {task: row for row, task in enumerate(expected)}
    served = sorted(
        (rows[task], number, start, end, work)
        for number, channel in enumerate(oracle.channels)
        for task, start, end, work in channel.served
        if work
    )
    columns = (log.services.task, log.services.channel, log.services.start, log.services.end, log.services.work)
    assert sorted(row for row in zip(*(column.tolist() for column in columns), strict=True) if row[-1]) == served


def known(data: dict[str, Any]) -> dict[str, Any]:
    return data if data["scheduler"] in KNOWN else data | {"scheduler": "earliest"}


@settings(max_examples=50, deadline=None)
@given(scenarios().map(known))
def test_the_executor_agrees_with_the_oracle(data):
    agrees(data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(scenarios().map(known))
def test_they_agree_on_a_thousand_random_graphs(data):
    agrees(data)


def hardware(engines: int, **memory: Any) -> dict[str, Any]:
    """Engines and one channel without limits but those given; a byte takes 1 ps."""
    plain = {"bandwidth": "1 TB/s", "latency": "0 ps", "channels": {"count": 1, "route": "interleaved"}}
    return {
        "engines": {"count": engines, "flops": "1 TFLOP/s", "overhead": "0 ps"}, "memory": plain | memory, "sram": None,
    }  # fmt: skip


def test_a_turn_is_as_long_as_its_bytes_take_where_port_and_channel_limit_it():
    """A port of 51/1000 of a channel that delivers 50/1000: a burst of 1 ps takes 20 ps, rounded once, not ceil(20 x 1.02)."""
    data = {
        "model": {
            "graph": [
                {"name": "product", "kind": "norm", "flops": 1, "weight": "2 B"},
                {"name": "load", "kind": "kv_load", "kv_read": "1 B"},
                {"name": "store", "kind": "kv_store", "kv_write": "1 B"},
            ]
        },
        "workload": {"sequences": [{"tokens": 1, "arrival": "0 ps"}], "dependency": "sampled"},
        "hardware": hardware(
            3, arbiter={"name": "round_robin", "burst": 1}, port_bandwidth="51 GB/s", efficiency={"1": 0.05}
        ),
        "mapping": {"execution": "blocking"},
        "scheduler": "earliest",
    }  # fmt: skip
    agrees(data)
    log = reference.simulate(plan(from_dict(data)).setup)
    assert log.tasks.loaded.tolist() == [80, 40, 60]  # turns of the three ports end at 20, 40, 60 and 80 ps


def test_a_level_fills_by_hand():
    """Weights 3 : 1 of 1/2 delivered, ports of 1/4: the first is at its port, the second gets the rest."""
    assert level_fill([3, 1], Fraction(1, 4), Fraction(1, 2)) == [Fraction(1, 4), Fraction(1, 4)]
    assert level_fill([3, 1], Fraction(1), Fraction(1, 2)) == [Fraction(3, 8), Fraction(1, 8)]
    assert level_fill([1, 1], Fraction(1, 8), Fraction(1, 2)) == [Fraction(1, 8), Fraction(1, 8)]


def test_a_store_without_inputs_makes_a_cache_of_its_own():
    """The second token loads layer 1 when the first has stored there, not when it has stored in layer 0."""
    data = {
        "model": {
            "graph": [
                {"name": "other", "kind": "kv_store", "layer": 0, "kv_write": "1 B"},
                {"name": "mine", "kind": "kv_load", "layer": 1, "kv_read": "1 B"},
                {"name": "mix", "kind": "mix", "layer": 1, "inputs": ["other", "mine"], "duration": "1 ps"},
                {"name": "last", "kind": "kv_store", "layer": 0, "inputs": ["other"], "kv_write": "1 B"},
                {"name": "store", "kind": "kv_store", "layer": 1, "kv_write": "1 B"},
            ]
        },
        "workload": {"sequences": [{"tokens": 2, "arrival": "0 ps"}], "dependency": "known"},
        "hardware": hardware(1, arbiter="fifo"),
        "mapping": {"execution": "blocking"},
        "scheduler": "serial",
    }  # fmt: skip
    agrees(data)
    log = reference.simulate(plan(from_dict(data)).setup)
    kinds = [log.name(row) for row in range(len(log.tasks))]
    stored, loaded = kinds.index("kv_store store"), len(kinds) // 2 + kinds.index("kv_load mine")
    assert log.tasks.ready[loaded] == log.tasks.end[stored]
