"""Random task graphs, machines, arbiters, schedulers and executions keep every invariant: `run` raises where one breaks.

Times are a few picoseconds, so that rounding matters and many things happen at one instant.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim.scenario
from sim.analysis.checks import CHECKS
from sim.base.errors import InputError
from sim.machine.schedulers import SCHEDULERS
from sim.runs.plan import plan
from sim.runs.run import run

TERA = "1 TB/s"  # 1 byte takes 1 ps
KINDS = ("kv_load", "kv_store", "weight_load", "mix", "norm")


def time(least: int = 1) -> st.SearchStrategy[str]:
    return st.integers(least, 12).map("{} ps".format)


def size(unit: int = 1) -> st.SearchStrategy[str]:
    return st.integers(1, 12).map(lambda n: f"{n * unit} B")


@st.composite
def graphs(draw: st.DrawFn) -> list[dict[str, Any]]:
    ops: list[dict[str, Any]] = []
    for i in range(draw(st.integers(1, 8))):
        inputs = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        op = {"name": f"op{i}", "inputs": [f"op{j}" for j in inputs], "layer": draw(st.integers(0, 1))}
        match draw(st.sampled_from(("given", "counted", "kv_load", "kv_store"))):
            case "given":
                op |= {"kind": "mix", "duration": draw(time())} | draw(st.sampled_from(({}, {"transfer": draw(time())})))
            case "counted":
                op |= {"kind": "norm", "flops": draw(st.integers(1, 12)), "heads": draw(st.integers(0, 3))}
                op |= draw(st.fixed_dictionaries({}, optional={"weight": size(), "act_read": size(), "act_write": size()}))
            case "kv_load":
                op |= {"kind": "kv_load", **draw(st.sampled_from(({"kv_read": draw(size())}, {"transfer": draw(time())})))}
            case "kv_store":
                op |= {"kind": "kv_store", "kv_write": draw(size())}
        ops.append(op)
    stored = {op["layer"] for op in ops if op.get("kind") == "kv_store"}
    for layer in sorted({op["layer"] for op in ops if op.get("kind") == "kv_load"} - stored):
        ops.append({"name": f"store{layer}", "kind": "kv_store", "layer": layer, "kv_write": "1 B"})
    return draw(st.permutations(ops))


def arbiters(transfers: Sequence[str] = KINDS, unit: int = 1) -> st.SearchStrategy[Any]:
    """transfers: kinds that options may name. unit: ps or bytes that bursts are a multiple of."""
    kinds = st.lists(st.sampled_from(transfers), min_size=1, max_size=3, unique=True)
    weights = st.one_of(
        st.dictionaries(st.sampled_from(transfers), st.integers(1, 9), min_size=1),
        st.dictionaries(st.sampled_from("012"), st.integers(1, 9), min_size=1),
        st.lists(st.integers(1, 9), min_size=1, max_size=3),
    )
    rates = st.integers(1, 1000).map("{} GB/s".format)

    def named(name: str, **options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({"name": st.just(name), **options})

    return st.one_of(
        st.sampled_from(("fifo", "processor_sharing", "proportional")),
        named("priority", classes=st.one_of(st.just("age"), kinds), preemptive=st.booleans()),
        named("round_robin", burst=st.one_of(st.integers(1, 9).map(unit.__mul__), size(unit))),
        named("weighted", weights=weights),
        named("proportional", demand=st.dictionaries(st.sampled_from(transfers), rates, min_size=1)),
    )


def with_effect(arbiter: Any, sequences: int, kinds: Collection[str] | None = None) -> Any:
    """The arbiter without options for sequences (a number of them), and for kinds, that are not there; `fifo` if none is left.

    Others are refused.
    """

    def there(name: object) -> bool:
        number = str(name)
        return int(number) < sequences if number.isdecimal() else kinds is None or number in kinds

    if isinstance(arbiter, str):
        return arbiter
    made = dict(arbiter)
    for key in ("weights", "demand", "classes"):
        given = made.get(key)
        if isinstance(given, dict):
            made[key] = {name: value for name, value in given.items() if there(name)}
        elif isinstance(given, list):
            made[key] = given[:sequences] if key == "weights" else [name for name in given if there(name)]
        if key in made and not made[key]:
            return "fifo"
    return made


def memories() -> st.SearchStrategy[dict[str, Any]]:
    share = st.integers(1, 20).map(lambda n: n / 20)
    return st.fixed_dictionaries(
        {
            "bandwidth": st.just(TERA),
            "arbiter": arbiters(),
            "latency": time(0),
            "channels": st.fixed_dictionaries(
                {"count": st.integers(1, 3), "route": st.sampled_from(("interleaved", "sequence", "class"))}
            ),
        },
        optional={
            "port_bandwidth": st.integers(1, 999).map("{} GB/s".format),
            "efficiency": st.dictionaries(st.integers(1, 5).map(str), share, min_size=1),
        },
    )


@st.composite
def drawn(draw: st.DrawFn) -> dict[str, Any]:
    sequences = st.fixed_dictionaries({"tokens": st.integers(1, 3), "arrival": time(0)})
    execution = draw(st.sampled_from(("blocking", "stream", "prefetch")))
    sram = draw(st.sampled_from((None, None, "24 B", "60 B", "150 B")))
    asked, memory = draw(st.lists(sequences, min_size=1, max_size=3)), draw(memories())
    memory["arbiter"] = with_effect(memory["arbiter"], len(asked))
    return {
        "model": {"graph": draw(graphs())},
        "workload": {
            "sequences": asked,
            "dependency": draw(st.sampled_from(("sampled", "known"))),
        },
        "hardware": {
            "engines": {
                "count": draw(st.integers(1, 4)),
                "flops": "1 TFLOP/s",
                "overhead": draw(st.sampled_from(("0 ps", "3 ps"))),
            },
            "memory": memory,
            "sram": sram,
        },
        "mapping": {
            "execution": execution,
            "heads": draw(st.sampled_from(("split", "fused"))),
            "activations": draw(st.sampled_from(("on_chip", "off_chip"))),
            "weights": draw(st.sampled_from(("streamed", "streamed", "resident"))),
            "tiles": draw(st.integers(1, 2)),
        },
        "scheduler": draw(st.sampled_from(SCHEDULERS.names()[:6])),
    }


def accepted(data: dict[str, Any]) -> bool:
    """Whether a random scenario is accepted; one whose operands do not fit SRAM is not."""
    try:
        scenario = sim.scenario.from_dict(data)
        plan(scenario)
    except InputError:
        return False
    return True


def scenarios() -> st.SearchStrategy[dict[str, Any]]:
    return drawn().filter(accepted)


@settings(max_examples=50, deadline=None)
@given(scenarios())
def test_every_invariant_holds(data: dict[str, Any]):
    every_invariant_holds(data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(scenarios())
def test_every_invariant_holds_in_many_runs(data: dict[str, Any]):
    every_invariant_holds(data)


def every_invariant_holds(data: dict[str, Any]) -> None:
    result = run(sim.scenario.from_dict(data))
    assert set(CHECKS) <= set(result.checks)
    log = result.log
    memory = result.scenario.hardware.memory
    if memory.channels.route == "sequence":
        assert (log.services.channel == log.steps.sequence[log.tasks.step[log.services.task]] % memory.channels.count).all()
    if memory.channels.route == "interleaved":  # parts differ by 1 ps at most
        parts = np.zeros((len(log.tasks), log.channels), dtype=np.int64)
        np.add.at(parts, (log.services.task, log.services.channel), log.services.work)
        assert (parts.max(axis=1) - parts.min(axis=1) <= 1).all()


@settings(max_examples=20, deadline=None)
@given(scenarios())
def test_the_same_scenario_gives_the_same_log(data: dict[str, Any]):
    first, second = (run(sim.scenario.from_dict(data)).log for _ in range(2))
    for table in ("tasks", "services", "steps"):
        one, other = getattr(first, table), getattr(second, table)
        assert all((getattr(one, name) == getattr(other, name)).all() for name in one.__slots__)
