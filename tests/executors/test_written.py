"""Arbiters of third parties: as functions on integers they are compiled, as Python classes they go to the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import sim.scenario
from sim.base.errors import InputError
from sim.base.integers import ceil_div, mul_div
from sim.base.kernel import kernel
from sim.executors import choose, compiled, reference, simulate
from sim.executors.setup import Setup
from sim.machine.arbiters import Arbiter, Derated, KernelArbiter, Plan, Transfer
from sim.machine.arbiters.checked import Checked
from sim.machine.arbiters.written import (
    AGE,
    IN_SERVICE,
    KIND,
    MOST_SHARES,
    ORDER,
    OWN,
    PORT,
    PORT_OF,
    QUANTUM,
    REMAINING,
    REQUESTER,
    SEQUENCE,
    TOKEN,
    TRANSFER_WORDS,
    WORK,
)  # fmt: skip
from sim.runs.plan import plan
from tests.executors import assert_same
from tests.machine.test_invariants import scenarios


@kernel
def newest(pending, count, shares, memory):
    """Last come, first served, unless somebody has seen memory[OWN] others come."""
    chosen = count - 1
    if pending[chosen * TRANSFER_WORDS + ORDER] - pending[ORDER] >= memory[OWN]:
        chosen = 0
    for i in range(count):
        if pending[i * TRANSFER_WORDS + IN_SERVICE]:
            chosen = i
    shares[chosen] = memory[PORT]
    return memory[PORT_OF]


class Newest(KernelArbiter):
    work_conserving = True
    rule = staticmethod(newest)

    def __init__(self, *, patience: int = 2, cap: tuple[int, int] = (1, 1)) -> None:
        super().__init__(cap=cap, own=[patience])


class PythonNewest(Arbiter):
    work_conserving = True

    def __init__(self, *, patience: int = 2, cap: tuple[int, int] = (1, 1)) -> None:
        self.patience, self.cap = patience, cap

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        chosen = next((t for t in reversed(pending) if t.in_service), None)
        if chosen is None:
            chosen = pending[0] if pending[-1].order - pending[0].order >= self.patience else pending[-1]
        return Plan([(chosen, self.cap[0])], self.cap[1])


@kernel
def deadline(pending, count, shares, memory):
    """The earliest token first, and the smaller of two sequences; a transfer in service may be pre-empted."""
    chosen = 0
    for i in range(1, count):
        a, b = i * TRANSFER_WORDS, chosen * TRANSFER_WORDS
        if pending[a + TOKEN] != pending[b + TOKEN]:
            earlier = pending[a + TOKEN] < pending[b + TOKEN]
        else:
            earlier = pending[a + SEQUENCE] < pending[b + SEQUENCE]
        if earlier:
            chosen = i
    shares[chosen] = memory[PORT]
    return memory[PORT_OF]


class Deadline(KernelArbiter):
    work_conserving = True
    rule = staticmethod(deadline)


@kernel
def weight(pending, at, memory):
    """A kernel that the rule calls: one more than the age of its step, thrice as much for the first of the kinds."""
    return (pending[at + AGE] + 1) * (memory[OWN] if pending[at + KIND] == 0 else 1)


@kernel
def aged(pending, count, shares, memory):
    """All at once by weight, none above its port: what that leaves is not used."""
    total = 0
    for i in range(count):
        total += weight(pending, i * TRANSFER_WORDS, memory)
    for i in range(count):
        shares[i] = min(weight(pending, i * TRANSFER_WORDS, memory) * memory[PORT_OF], total * memory[PORT])
    return total * memory[PORT_OF]


class Aged(KernelArbiter):
    work_conserving = False
    rule = staticmethod(aged)

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        super().__init__(cap=cap, own=[3], kinds=("kv_load", "mix"))


@kernel
def slices(pending, count, shares, memory):
    """Half of what is left of a transfer at a time, in turns; its state is whose turn it was, and how many turns there were."""
    chosen = -1
    for i in range(count):
        if pending[i * TRANSFER_WORDS + REQUESTER] > memory[OWN]:
            better = chosen < 0 or pending[i * TRANSFER_WORDS + REQUESTER] < pending[chosen * TRANSFER_WORDS + REQUESTER]
            chosen = i if better else chosen
    if chosen < 0:
        chosen = memory[OWN + 1] % count
    memory[OWN] = pending[chosen * TRANSFER_WORDS + REQUESTER]
    memory[OWN + 1] += 1
    left = ceil_div(pending[chosen * TRANSFER_WORDS + REMAINING], 2)
    if pending[chosen * TRANSFER_WORDS + WORK] > 1:
        memory[QUANTUM] = ceil_div(left * memory[PORT_OF], memory[PORT])
    shares[chosen] = memory[PORT]
    return memory[PORT_OF]


class Slices(KernelArbiter):
    work_conserving = True
    reads_remaining = True
    rule = staticmethod(slices)

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        super().__init__(cap=cap, own=[-1, 0])


RULES = (Newest, Deadline, Aged, Slices)


def setup_of(data: dict[str, Any], factory: type[Arbiter]) -> Setup:
    scenario = sim.scenario.from_dict(data)
    setup = plan(scenario).setup
    arbiter: Arbiter = factory(cap=setup.arbiter.cap)  # type: ignore[call-arg]
    if isinstance(setup.arbiter, Derated):
        arbiter = Derated(arbiter, setup.arbiter.efficiency)
    return replace(setup, arbiter=arbiter)


def both(data: dict[str, Any], factory: type[Arbiter]) -> None:
    try:
        setup = setup_of(data, factory)
    except InputError:  # it does not fit SRAM
        reject()
    log = compiled.simulate(setup)
    assert log is not None
    assert_same(reference.simulate(setup), log)


@settings(max_examples=60, deadline=None)
@given(scenarios(), st.sampled_from(RULES))
def test_a_rule_gives_the_same_log_on_both_executors(data, factory):
    data["scheduler"] = "earliest"
    both(data, factory)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(scenarios(), st.sampled_from(RULES))
def test_rules_in_many_runs(data, factory):
    both(data, factory)


BATCH: dict[str, Any] = {
    "model": {"config": "llama-3.2-1b", "scope": "block", "layers": 1},
    "workload": {
        "batching": {"policy": "continuous", "max_batch": 3}, "prefill": {"chunk": 16},
        "sequences": [{"prompt": 20, "tokens": 6, "count": 4}, {"context": 50, "tokens": 5, "arrival": "40 us", "count": 3}],
    },
    "hardware": {
        "engines": {"count": 2, "flops": "1 TFLOP/s"},
        "memory": {"bandwidth": "100 GB/s", "channels": {"count": 2, "route": "sequence"}, "efficiency": {"1": 0.5, "3": 0.7}},
    },
    "mapping": {"execution": "prefetch", "kv_loads": "layer", "tiles": 2},
}  # fmt: skip


@pytest.mark.parametrize("policy", ["continuous", "static", "independent"])
@pytest.mark.parametrize("factory", RULES)
def test_batches_too(factory, policy):
    data = {**BATCH, "workload": BATCH["workload"] | {"batching": policy}}
    both(data, factory)


@settings(max_examples=30, deadline=None)
@given(scenarios())
def test_an_equal_function_and_class_give_the_same_log(data):
    assert_same(*(reference.simulate(setup_of(data, factory)) for factory in (PythonNewest, Newest)))


def test_a_class_in_python_runs_with_the_reference_and_the_report_says_so():
    setup = setup_of(BATCH, PythonNewest)
    with pytest.raises(InputError, match="--executor compiled: the arbiter PythonNewest is Python; expected auto or simpy"):
        choose(setup, "compiled")
    assert choose(setup_of(BATCH, Newest), "compiled").executor == "compiled"


class Overridden(Newest):
    def plan(self, pending: Sequence[Transfer]) -> Plan:
        return super().plan(pending)


def test_so_does_a_rule_whose_plan_is_overridden():
    with pytest.raises(InputError, match="the arbiter Overridden is Python"):
        choose(setup_of(BATCH, Overridden), "compiled")


@kernel
def not_compilable(pending, count, shares, memory):
    shares[0] = {"first": 1}["first"]
    return len(str(count))


class NotCompilable(KernelArbiter):
    work_conserving = True
    rule = staticmethod(not_compilable)


def test_and_one_that_cannot_be_compiled():
    with pytest.raises(InputError, match=r"--executor compiled: Numba cannot compile the arbiter's not_compilable: .*expected"):
        choose(setup_of(BATCH, NotCompilable), "compiled")


@kernel
def too_much(pending, count, shares, memory):
    shares[0] = 2
    return 1 if count < memory[OWN] else 2


class TooMuch(KernelArbiter):
    work_conserving = True
    rule = staticmethod(too_much)

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        super().__init__(cap=cap, own=[2])


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
def test_shares_above_the_whole_are_refused_by_name(executor):
    expected = r"arbiter TooMuch: expected shares that sum to .* found shares \[2\] of 1, quantum 0 \(channel \d, at \d+ ps\)"
    with pytest.raises(InputError, match=expected):
        simulate(setup_of(BATCH, TooMuch), executor)


@kernel
def whole_channel(pending, count, shares, memory):
    shares[0] = 1
    return 1


class WholeChannel(KernelArbiter):
    """One at a time, at the speed of the channel instead of that of a port."""

    work_conserving = True
    rule = staticmethod(whole_channel)


class PythonWholeChannel(Arbiter):
    work_conserving = True

    def __init__(self, *, cap: tuple[int, int] = (1, 1)) -> None:
        self.cap = cap

    def plan(self, pending: Sequence[Transfer]) -> Plan:
        return Plan([(pending[0], 1)], 1)


class Waiting(WholeChannel):
    """No transfer is served, although it says that it never leaves the channel idle."""

    rule = staticmethod(kernel(lambda pending, count, shares, memory: 1))


@pytest.mark.parametrize("executor", ["simpy", "compiled"])
@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (WholeChannel, r"arbiter WholeChannel: expected no share above the cap of a port 1/4, found shares \[1.* of 1"),
        (Waiting, r"arbiter Waiting: expected a share above 0, as work_conserving says, found shares \[0.* of 1"),
    ],
)
def test_plans_above_the_cap_of_a_port_and_idle_ones_are_refused(factory, expected, executor):
    data = {**BATCH, "hardware": {**BATCH["hardware"], "memory": BATCH["hardware"]["memory"] | {"port_bandwidth": "25 GB/s"}}}
    with pytest.raises(InputError, match=expected + r", quantum 0 \(channel \d, at .*s\)"):
        simulate(setup_of(data, factory), executor)


def test_plans_of_classes_are_checked_likewise():
    setup = setup_of(BATCH, PythonWholeChannel)
    whole = Checked(PythonWholeChannel(cap=(1, 4)), "whole")
    expected = r"arbiter 'whole' .* shares of at most 1/4, the cap .* found 1/1 \(channel \d, at \d+ ps\)"
    with pytest.raises(InputError, match=expected):
        simulate(replace(setup, arbiter=whole), "simpy")


@kernel
def slow(pending, count, shares, memory):
    """The first gets next to nothing while others are there."""
    for i in range(count):
        shares[i] = 1
    shares[count - 1] = min(MOST_SHARES - count + 1, mul_div(MOST_SHARES, memory[PORT], memory[PORT_OF]))
    return MOST_SHARES


class Slow(KernelArbiter):
    work_conserving = True
    rule = staticmethod(slow)


@settings(max_examples=30, deadline=None)
@given(scenarios())
def test_shares_that_take_for_ever(data):
    both(data, Slow)


def test_an_op_that_is_no_kernel_is_refused():
    class Plain(KernelArbiter):
        work_conserving = True
        rule = staticmethod(lambda pending, count, shares, memory: 1)

    with pytest.raises(TypeError, match=r"Plain.rule: expected a static method that is marked as a kernel"):
        Plain()


PLUG_IN = """
import sys, dataclasses
from pathlib import Path
from sim.base.kernel import cache_folder
from sim.executors import compiled
from sim.machine.arbiters import Fifo
from tests.executors.test_written import BATCH, RULES, Newest, setup_of
def files():
    return {path.name: path.stat().st_mtime_ns for path in cache_folder().rglob("*.nb?")}
compiled.simulate(dataclasses.replace(setup_of(BATCH, Newest), arbiter=Fifo()))
before = files()
compiled.simulate(setup_of(BATCH, RULES[int(sys.argv[1])]))
after = files()
assert all(after[name] == before[name] for name in before), "compiled anew"
print(sorted(name.split("-")[0] for name in after.keys() - before.keys()))
"""


@pytest.mark.slow
def test_only_the_function_is_compiled_for_it(tmp_path):
    """The event loop comes from the cache, unchanged; the function is compiled once, and then comes from there, too."""
    (tmp_path / "plug_in.py").write_text(PLUG_IN, encoding="utf-8")

    def new_files(number: int) -> list[str]:
        command = [sys.executable, str(tmp_path / "plug_in.py"), str(number)]
        environment = os.environ | {"DECODE_SIM_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return [name.split(".")[1].rsplit("_", 1)[0] for name in eval(done.stdout)]

    assert new_files(0) == ["newest", "newest"]  # index and code
    assert new_files(0) == []
    assert new_files(2) == ["aged", "aged"]
