"""The order within an instant, by hand: phases, turns, SRAM, ages, channels. Nothing depends on any other order."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import sim.scenario
from sim.base.errors import InputError
from sim.executors import reference
from sim.executors.compiled.driver import in_order, intervals
from sim.executors.compiled.state import I_CHANNEL, I_END, I_TASK, SERVICE_FIELDS
from sim.executors.reference.instant import DISPATCH, PLAN, SRAM, STEPS, Environment, Phase, Turns
from sim.executors.reference.sram import Sram
from sim.log.tables import EventLog
from sim.runs.plan import plan
from tests.machine.test_invariants import scenarios


def simulate(data: dict[str, Any]) -> EventLog:
    return reference.simulate(setup(data))


def setup(data: dict[str, Any]):
    scenario = sim.scenario.from_dict(data)
    return plan(scenario).setup


def columns(log: EventLog) -> dict[str, np.ndarray]:
    tables = {name: getattr(log, name) for name in ("tasks", "services", "steps", "batched")}
    found = {
        f"{name}.{field.name}": getattr(table, field.name)
        for name, table in tables.items() if table is not None for field in fields(table)
    }  # fmt: skip
    return found | {"arrival": log.arrival}


class TestPhases:
    def test_what_ends_comes_first_then_each_phase_in_turn(self):
        env, order = Environment(), []

        def note(what: str):
            return lambda *_: order.append(what)

        phases = [Phase(env, p, note(name)) for p, name in ((PLAN, "plan"), (DISPATCH, "dispatch"), (SRAM, "sram"))]

        env.run()  # each phase happens when it is made
        order.clear()

        def process():
            yield env.timeout(5)
            Phase(env, STEPS, note("steps"))
            for phase in phases:
                phase.call()
                phase.call()  # it happens once all the same
            env.event().succeed().callbacks.append(note("caused by a completion"))
            yield env.timeout(0)
            order.append("a completion that comes later in the same instant")

        env.process(process())
        env.timeout(5).callbacks.append(note("another completion"))
        env.run()
        assert order == [
            "another completion", "caused by a completion", "a completion that comes later in the same instant",
            "steps", "sram", "dispatch", "plan",
        ]  # fmt: skip

    def test_what_a_phase_triggers_comes_before_the_next_phase(self):
        env, order = Environment(), []

        def dispatch():
            env.event().succeed().callbacks.append(lambda _: plan.call())
            order.append("dispatch")

        plan = Phase(env, PLAN, lambda: order.append("plan"))
        env.run()
        order.clear()
        Phase(env, DISPATCH, dispatch)
        env.run()
        assert order == ["dispatch", "plan"]

    def test_turns_are_taken_in_order_of_numbers_one_after_another(self):
        env, order = Environment(), []
        turns = Turns(env)

        def loop(number: int, wait: int):
            yield env.timeout(wait)
            yield turns.turn(number)
            order.append((env.now, number, "ends its step"))
            env.event().succeed().callbacks.append(lambda _: order.append((env.now, number, "what it has triggered")))
            order.append((env.now, number, "releases the next"))

        for number, wait in ((3, 4), (1, 4), (2, 4), (0, 7)):
            env.process(loop(number, wait))
        env.run()
        assert [entry[:2] for entry in order if entry[2] == "ends its step"] == [(4, 1), (4, 2), (4, 3), (7, 0)]
        assert order[:2] == [(4, 1, "ends its step"), (4, 1, "releases the next")]


class TestSram:
    def serve(self, capacity: int, *loops: tuple[int, list[int], int]) -> list[tuple[int, int, int]]:
        """(time, loop, size) of each admission; loops are (number, sizes, how long each is held)."""
        env, served = Environment(), []
        sram = Sram(env, [capacity])

        def loop(number: int, requested: list[int], held: int):
            for size in requested:
                yield sram.get(0, number, size)
                served.append((env.now, number, size))
                env.timeout(held).callbacks.append(lambda _, size=size: sram.put(0, size))

        for each in loops:
            env.process(loop(*each))
        env.run()
        assert sram.free == [capacity]
        return served

    def test_requests_of_an_instant_queue_in_order_of_loops(self):
        assert self.serve(10, (2, [4], 5), (1, [5], 5), (0, [1], 5)) == [(0, 0, 1), (0, 1, 5), (0, 2, 4)]

    def test_who_has_got_some_asks_for_more_at_the_tail(self):
        """Loop 0 gets 2 of 6 bytes, then loop 1, then loop 0 again; it is full, and both wait in that order."""
        assert self.serve(6, (1, [2, 2], 9), (0, [2, 2], 9)) == [(0, 0, 2), (0, 1, 2), (0, 0, 2), (9, 1, 2)]

    def test_a_request_that_fits_passes_an_older_one_that_does_not(self):
        """Loop 1 waits for 7 bytes until 5; 4 are free at once, of which loop 2 takes 1."""
        assert self.serve(10, (0, [6], 5), (1, [7], 5), (2, [1], 5)) == [(0, 0, 6), (0, 2, 1), (5, 1, 7)]

    def test_nobody_passes_the_same_request_twice(self):
        """Loop 1 waits for all 10 bytes. Loops 0 and 2 pass it once each, so it gets them at 4, when both are done.

        If loop 0 went on whenever its byte fits, one of its five would be held at any time until 15.
        """
        served = self.serve(10, (0, [1] * 5, 3), (1, [10], 1), (2, [1, 1], 4))
        assert served == [
            (0, 0, 1), (0, 2, 1), (0, 0, 1), (4, 1, 10),
            (5, 2, 1), (5, 0, 1), (5, 0, 1), (5, 0, 1),
        ]  # fmt: skip

    @given(st.data())
    def test_a_request_is_passed_once_at_most_by_each_other_loop(self, data: st.DataObject):
        """Whatever loops ask for and hold: all are served, and no request is overtaken twice by the same loop."""
        sizes = st.lists(st.integers(1, 10), min_size=1, max_size=8)
        loops = data.draw(st.lists(st.tuples(sizes, st.integers(1, 9)), min_size=2, max_size=4))
        served = self.serve(10, *[(number, each, held) for number, (each, held) in enumerate(loops)])
        assert [[size for _, loop, size in served if loop == number] for number in range(len(loops))] == [s for s, _ in loops]
        for number in range(len(loops)):  # a loop asks for the next when it has got one, at the same instant
            mine = [place for place, (_, loop, _) in enumerate(served) if loop == number]
            for asked, got in zip([-1, *mine], mine, strict=False):
                passed = Counter(loop for _, loop, _ in served[asked + 1 : got])
                # Those that waited already when this one asked come before it without passing it: one for each loop.
                assert max(passed.values(), default=0) <= 2

    def test_requests_of_one_loop_keep_their_order(self):
        """The 1 byte of loop 0 would fit from 0 on, and comes after the 8 that it asked for before."""
        assert self.serve(10, (0, [8, 8, 1], 5)) == [(0, 0, 8), (5, 0, 8), (5, 0, 1)]

    def test_bytes_given_back_at_an_instant_are_there_for_all_its_requests(self):
        """At 5 both give back, in two events; the head needs the bytes of both."""
        assert self.serve(10, (0, [5], 5), (1, [5], 5), (2, [10], 1)) == [(0, 0, 5), (0, 1, 5), (5, 2, 10)]


BLOCK = {"config": "llama-3.2-1b", "layers": 1, "scope": "block"}
APART = {"memory": {"channels": {"count": 2, "route": "sequence"}}, "engines": {"count": 64}}  # two sequences that never meet


def test_loops_that_end_together_take_the_next_requests_in_order_of_their_numbers():
    """Requests 0 and 1 are alike and apart, and end together: loop 0 goes on with 2, loop 1 with 3."""
    log = simulate({
        "model": BLOCK, "hardware": APART, "mapping": {"execution": "blocking"},
        "workload": {"sequences": [{"context": 8, "tokens": 2, "count": 4}], "concurrency": {"users": 2}},
    })  # fmt: skip
    ends = {(int(s), int(t)): int(end) for s, t, end in zip(log.steps.sequence, log.steps.token, log.steps.end, strict=True)}
    assert ends[0, 1] == ends[1, 1], "a tie, which the case is about"
    taken = {
        (int(log.steps.sequence[row]), int(request))
        for row, request in zip(log.batched.step, log.batched.sequence, strict=True)
    }
    assert taken == {(0, 0), (1, 1), (0, 2), (1, 3)}


def test_steps_released_together_are_of_one_age():
    """0 and 1 begin at 0; 2 comes at 1 ps; the next of 0 and 1 are released together: ages 0, 0, 1, 2, 2."""
    ages: dict[tuple[int, int], set[int]] = {}
    run = setup({
        "model": {"graph": [{"name": "a", "kind": "mix", "duration": "3 ps", "transfer": "2 ps"}]},
        "workload": {"sequences": [{"tokens": 2, "count": 2}, {"tokens": 1, "arrival": "1 ps"}]},
        "hardware": {"engines": {"count": 3}, "memory": {"bandwidth": "1 TB/s", "channels": {"count": 3, "route": "sequence"}}},
        "mapping": {"execution": "blocking"},
    })  # fmt: skip
    plan = run.arbiter.plan

    def noting(pending):
        for transfer in pending:
            ages.setdefault((transfer.sequence, transfer.token), set()).add(transfer.age)
        return plan(pending)

    run.arbiter.plan = noting
    reference.simulate(run)
    assert ages == {(0, 0): {0}, (1, 0): {0}, (2, 0): {1}, (0, 1): {2}, (1, 1): {2}}


def test_service_intervals_that_end_together_are_in_order_of_channels():
    """Channel 1 loads the cache from 0 to 4; channel 0 weights from 0 to 3 and from 3 to 4: it was set to end at 4 later."""
    log = simulate({
        "model": {"graph": [
            {"name": "k", "kind": "kv_load", "kv_read": "4 B"},
            {"name": "s", "kind": "kv_store", "kv_write": "1 B", "inputs": ["k"]},
            {"name": "a", "kind": "mix", "flops": 1, "weight": "3 B"},
            {"name": "b", "kind": "mix", "flops": 1, "weight": "1 B"},
        ]},
        "hardware": {
            "engines": {"count": 1, "flops": "1 TFLOP/s"},
            "memory": {"bandwidth": "1 TB/s", "channels": {"count": 2, "route": "class"}},
        },
    })  # fmt: skip
    rows = list(zip(*(getattr(log.services, name).tolist() for name in ("end", "channel", "start")), strict=True))
    assert rows == [(3, 0, 0), (4, 0, 3), (4, 1, 0), (5, 1, 4)]


def test_service_intervals_have_their_rows_from_the_beginning():
    """One at a time no transfer is interrupted: one to the other device is a row on each of two links, any other is one row."""
    run = setup({
        "model": {"config": "llama-3.2-1b", "layers": 1, "scope": "block"},
        "hardware": {
            "engines": {"count": 1, "flops": "1 TFLOP/s"}, "memory": {"bandwidth": "1 TB/s"},
            "devices": {"count": 2, "link": {"bandwidth": "100 GB/s"}},
        },
        "mapping": {"parallel": {"tensor": 2, "fold": False}},
        "workload": {"sequences": [{"context": 8, "tokens": 3}]},
    })  # fmt: skip
    sent, moved = (run.graph.to >= 0).sum(), (run.graph.moves != 0).sum()
    assert len(reference.simulate(run).services) == 3 * (moved + sent) > 3 * moved
    assert intervals(run, 3 * len(run.graph), 4) == 3 * 2 * len(run.graph) + (2 + 4) * 4 >= 3 * (moved + sent)


class Shuffled(Environment):
    """SimPy's environment, but what is due at one time comes in a random order: completions, arrivals and ends of waits."""

    random = random.Random(0)

    def schedule(self, event: simpy.Event, priority: float = 1, delay: int = 0) -> None:
        super().schedule(event, priority + self.random.random() / 2 if delay else priority, delay)


def differing(data: dict[str, Any], seed: int) -> set[str]:
    """Columns of the log that differ if what is due at one time comes in a random order."""
    expected = columns(simulate(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.executors.reference.run.Environment", Shuffled)
        Shuffled.random.seed(seed)
        found = columns(simulate(data))
    return {name for name, column in expected.items() if not np.array_equal(column, found[name])}


@settings(max_examples=80, deadline=None)
@given(scenarios(), st.integers(0, 99))
def test_the_order_of_what_ends_at_an_instant_does_not_matter(data: dict[str, Any], seed: int):
    try:
        found = differing(data, seed)
    except InputError:  # weights that do not fit SRAM
        reject()
    assert found == set()


ALIKE = [{"context": 8, "tokens": 2, "count": 6}]
LOOPS: dict[str, dict[str, Any]] = {
    "closed loops": {"workload": {"sequences": ALIKE, "concurrency": {"users": 3}}, "mapping": {"execution": "blocking"}},
    "closed loops that share SRAM": {
        "workload": {"sequences": ALIKE, "concurrency": {"users": 3, "think": "1 us"}}, "mapping": {"tiles": 64},
        "hardware": {"sram": "4 MiB", "memory": {"arbiter": "processor_sharing"}},
    },
    "sequences that share SRAM": {
        "workload": {"sequences": ALIKE}, "mapping": {"tiles": 64}, "scheduler": "sticky",
        "hardware": {"sram": "4 MiB", "memory": {"channels": {"count": 3}}},
    },
    "devices that wait for each other, with SRAM each": {
        "workload": {"sequences": ALIKE[:1]}, "mapping": {"tiles": 64, "parallel": {"tensor": 2, "fold": False}},
        "hardware": {"sram": "2 MiB", "devices": {"count": 2, "link": {"bandwidth": "100 GB/s"}}},
    },
    "batches": {
        "workload": {
            "sequences": [{"prompt": 20, "tokens": 3, "count": 3}, {"context": 9, "tokens": 3, "count": 2, "arrival": "9 us"}],
            "batching": {"policy": "continuous", "max_batch": 3}, "prefill": {"chunk": 8},
        },
        "mapping": {"execution": "stream"},
    },
}  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", LOOPS)
def test_nor_does_it_matter_to_loops(name: str, seed: int):
    assert differing({"model": BLOCK, "hardware": APART, **LOOPS[name]}, seed) == set()


def test_progress_counts_each_output_token_once():
    told: list[tuple[int, int]] = []
    log = reference.simulate(
        setup({"model": BLOCK, "workload": {"sequences": [{"context": 8, "tokens": 3, "count": 2}]}}),
        lambda tokens, now: told.append((tokens, now)),
    )
    assert sum(tokens for tokens, _ in told) == 6
    assert [now for _, now in told] == sorted(log.steps.end.tolist())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3))), st.booleans())
def test_service_intervals_are_in_order_of_ends_then_channels(rows, recorded):
    """As two stable sorts have them, whether they were recorded as they ended or not."""
    end, channel = np.array([(2**62 - row[0], row[1]) for row in rows], dtype=np.int64).reshape(-1, 2).T
    end = np.sort(end) if recorded else end
    table = np.zeros((SERVICE_FIELDS, len(rows) + 2), dtype=np.int64)  # with space for more
    table[I_TASK, : len(rows)], table[I_END, : len(rows)], table[I_CHANNEL, : len(rows)] = np.arange(len(rows)), end, channel
    expected = np.lexsort((channel, end))
    found = in_order(table, len(rows))
    assert found[I_TASK].tolist() == expected.tolist()
    assert (found[I_END].tolist(), found[I_CHANNEL].tolist()) == (end[expected].tolist(), channel[expected].tolist())
