"""Each part of a breakdown on a case small enough to do by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sim.analysis.breakdown import breakdown
from sim.analysis.engines import by_start, clock, room_for, sweep_engines
from sim.analysis.parts import PARTS
from sim.base.errors import SimulationError
from sim.log.columns import tasks_of
from tests.analysis.machine import run
from tests.graphs import GraphBuilder


def chain(*ops: dict, repeat: int = 1):
    """`repeat` independent chains of the same ops."""
    b = GraphBuilder()
    for _ in range(repeat):
        previous: tuple[int, ...] = ()
        for op in ops:
            previous = (b.add(op.get("kind", "norm"), *previous, **{k: v for k, v in op.items() if k != "kind"}),)
    return b.graph()


def parts(row: np.ndarray) -> dict[str, int]:
    return {name: int(ps) for name, ps in zip(PARTS, row, strict=True) if ps}


def token(log, rules, step: int = 0) -> dict[str, int]:
    return parts(breakdown(log, rules).tokens[step])


def total(log, rules) -> dict[str, int]:
    return parts(breakdown(log, rules).total)


def test_compute_along_a_chain():
    assert token(*run(chain({"flops": 5}, {"flops": 7}))) == {"compute": 12}


def test_blocking_loads_then_computes():
    log, rules = run(chain({"flops": 5, "weight": 3}), execution="blocking", latency=2)
    assert token(log, rules) == {"transfer": 5, "compute": 5}  # 2 latency + 3 work, then 5


@pytest.mark.parametrize(
    ("flops", "weight", "expected"), [(5, 3, {"compute": 5}), (3, 5, {"transfer": 5}), (4, 4, {"compute": 4})]
)
def test_stream_keeps_the_larger(flops, weight, expected):
    assert token(*run(chain({"flops": flops, "weight": weight}), execution="stream")) == expected


@pytest.mark.parametrize(
    ("execution", "flops", "weight", "expected"),
    [
        ("stream", 8, 3, {"compute": 8}),  # launched until 3, loaded until 8 with latency 2
        ("stream", 7, 3, {"compute": 3, "transfer": 5}),
        ("stream", 2, 3, {"compute": 2, "transfer": 5}),  # shorter than the launch of others
        ("blocking", 7, 3, {"compute": 7, "transfer": 5}),
        ("prefetch", 7, 3, {"compute": 7, "transfer": 5}),
    ],
)
def test_a_launch_is_computing_before_the_load(execution, flops, weight, expected):
    log, rules = run(chain({"flops": flops, "weight": weight}), execution=execution, latency=2, launch=3)
    assert token(log, rules) == expected
    assert log.makespan == sum(expected.values())


def test_stream_what_sharing_adds_is_waiting():
    log, rules = run(chain({"flops": 6, "weight": 4}, repeat=2), execution="stream", engines=2, arbiter="processor_sharing")
    # Both loads share the channel until 8 = 4 + 4, later than compute (6): each task keeps 6 and waits 2.
    assert token(log, rules) == {"compute": 6, "wait_channel": 2}
    assert total(log, rules) == {"compute": 12, "wait_channel": 4}


def test_wait_for_an_engine():
    log, rules = run(chain({"flops": 5}, repeat=3), engines=1)
    assert total(log, rules) == {"compute": 15, "wait_engine": 5 + 10}
    assert token(log, rules) == {"compute": 5, "wait_engine": 10}


def test_wait_for_the_policy_and_for_an_engine():
    log, rules = run(chain({"flops": 5}, repeat=3), engines=2, scheduler="serial")
    assert total(log, rules) == {"compute": 15, "wait_policy": 5 + 10}  # one engine is always idle
    log, rules = run(chain({"flops": 5}, repeat=3), engines=1, scheduler="serial")
    assert total(log, rules) == {"compute": 15, "wait_engine": 5 + 10}  # with one engine it is the engine


def test_sticky_splits_a_wait_by_whether_an_engine_was_idle():
    b = GraphBuilder()
    first = b.add("norm", flops=2)  # engine 0: 0..2
    b.add("norm", flops=6)  # engine 1: 0..6
    b.add("act", flops=10)  # a chain of its own: engine 0 at 2, to 12, since it precedes the next in program order
    b.add("o_proj", first, flops=1)  # stays with engine 0: ready at 2, starts at 12; engine 1 idles from 6 on
    log, rules = run(b.graph(), engines=2, scheduler="sticky")
    assert log.tasks.start.tolist() == [0, 0, 2, 12]
    assert total(log, rules) == {"compute": 19, "wait_engine": 2 + 4, "wait_policy": 6}
    assert token(log, rules) == {"compute": 3, "wait_engine": 4, "wait_policy": 6}


def test_wait_for_the_channel_in_a_queue():
    log, rules = run(chain({"flops": 1, "weight": 4}, repeat=3), execution="blocking", engines=3)
    assert total(log, rules) == {"compute": 3, "transfer": 12, "wait_channel": 4 + 8}
    assert token(log, rules) == {"compute": 1, "transfer": 4, "wait_channel": 8}


def test_the_limit_of_a_port_is_waiting_for_the_channel():
    log, rules = run(chain({"flops": 1, "weight": 4}), execution="blocking", cap=(1, 2))
    assert token(log, rules) == {"compute": 1, "transfer": 4, "wait_channel": 4}


def test_striped_over_channels_full_speed_is_that_of_all():
    log, rules = run(chain({"flops": 1, "weight": 7}), execution="blocking", channels=2)
    assert token(log, rules) == {"compute": 1, "transfer": 4}  # 4 on one channel, 3 on the other


def test_wait_for_space_in_sram():
    b = GraphBuilder()
    for _ in range(2):
        b.add("o_proj", flops=5, weight=4)
    log, rules = run(b.graph(), sram=4)
    # load 0..4, compute 4..9, and only then does the next one fit: load 9..13, compute 13..18
    assert log.tasks.end.tolist() == [4, 9, 13, 18]
    # Until 4 the channel serves the first load, so the second one waits for the channel; from 4 to 9 it rests.
    assert total(log, rules) == {"compute": 10, "transfer": 8, "wait_channel": 4, "wait_sram": 5}
    assert token(log, rules) == {"compute": 5, "transfer": 4, "wait_channel": 4, "wait_sram": 5}


def test_a_wait_for_sram_while_the_channel_never_rests_is_the_channels():
    b = GraphBuilder()
    for _ in range(6):
        b.add("o_proj", flops=1, weight=4)
    log, rules = run(b.graph(), sram=8)
    # Two fit: while one is used for 1 ps, the next is loaded for 4. From 0 to 24 the channel serves without a gap.
    assert log.makespan == 6 * 4 + 1
    assert token(log, rules) == {"compute": 1, "transfer": 4, "wait_channel": 20}
    # The third load gets its space at 5, when the first task ends, and the channel at 8: and so on.
    assert log.tasks.start[::2].tolist() == [0, 0, 5, 9, 13, 17]
    assert total(log, rules) == {"compute": 6, "transfer": 24, "wait_channel": 4 + 8 + 12 + 16 + 20}


def test_a_wait_for_sram_while_tasks_queue_for_engines_is_theirs():
    b = GraphBuilder()
    for _ in range(4):
        b.add("o_proj", flops=10, weight=4)
    log, rules = run(b.graph(), sram=8)
    # Two fit. Loads 0..4 and 4..8; tasks 4..14, 14..24, ...; the third load 14..18, the fourth 24..28.
    assert log.tasks.end.tolist() == [4, 14, 8, 24, 18, 34, 28, 44]
    # The third waits for the channel until 8, then 6 for the engine: the second task, loaded, waits for it as well.
    # The fourth waits as long, and from 14 to 18 for the channel, then 6 more for the engine. No more SRAM would help.
    waits = {"wait_channel": 4 + 8 + 8 + 4, "wait_engine": (14 - 8) + (24 - 18) + (34 - 28) + 6 + 6 + 6}
    assert total(log, rules) == {"compute": 40, "transfer": 16} | waits
    assert run(b.graph(), sram=None)[0].makespan == log.makespan


def test_the_latency_of_loads_that_sram_keeps_apart_is_waiting_for_sram():
    b = GraphBuilder()
    for _ in range(2):
        b.add("o_proj", flops=1, weight=4)
    log, rules = run(b.graph(), sram=4, latency=10)
    # load 0..14, of which the channel serves 10..14; compute 14..15; load 15..29, compute 29..30
    assert token(log, rules) == {"compute": 1, "transfer": 14, "wait_channel": 4, "wait_sram": 11}


def kv_block(loads: int = 3, stores: int = 2):
    b = GraphBuilder()
    load = b.add("kv_load", kv_read=loads)
    proj = b.add("k_proj", flops=10)
    b.add("kv_store", proj, kv_write=stores)
    b.add("scores", load, proj, flops=4)
    return b.graph()


def test_known_tokens_wait_for_the_kv_cache_of_others():
    log, rules = run(kv_block(), dependency="known", requests=[(2, 0)], engines=4)
    # token 0: k_proj 0..10, kv_store 10..12, scores 10..14; token 1 stores 12..14, loads 14..17 (issued at 12), scores 17..21
    assert log.steps.end.tolist() == [14, 21]
    assert token(log, rules, 0) == {"compute": 14}
    assert token(log, rules, 1) == {"wait_input": 12, "wait_channel": 2, "transfer": 3, "compute": 4}


def test_waiting_for_inputs_is_clipped_at_the_arrival():
    log, rules = run(kv_block(), dependency="known", requests=[(2, 100)], engines=4)
    assert token(log, rules, 1) == {"wait_input": 12, "wait_channel": 2, "transfer": 3, "compute": 4}
    log, rules = run(kv_block(), dependency="sampled", requests=[(2, 100)], engines=4)
    assert [token(log, rules, i) for i in (0, 1)] == [{"compute": 14}] * 2


def test_ties_go_to_program_order():
    b = GraphBuilder()
    b.add("norm", flops=5)
    b.add("kv_load", kv_read=5)
    b.add("act", 0, 1, flops=1)
    assert token(*run(b.graph())) == {"compute": 6}
    b = GraphBuilder()
    b.add("kv_load", kv_read=5)
    b.add("norm", flops=5)
    b.add("act", 0, 1, flops=1)
    assert token(*run(b.graph())) == {"transfer": 5, "compute": 1}


def test_totals_by_kind_layer_token_and_sequence():
    b = GraphBuilder()
    a = b.add("norm", layer=0, flops=2)
    b.add("act", a, layer=1, flops=3)
    log, rules = run(b.graph(), requests=[(2, 0), (1, 0)])
    found = breakdown(log, rules)
    assert found.kinds == ("act", "norm")
    assert found.layers == (0, 1)
    assert found.by_kind[:, 0].tolist() == [9, 6]
    assert found.by_layer[:, 0].tolist() == [6, 9]
    assert found.by_step[:, 0].tolist() == [5, 5, 5]
    assert found.sequences == (0, 1)
    assert found.by_sequence[:, 0].tolist() == [10, 5]


def test_lockstep_under_sharing():
    """Closed loop of 4 engines, compute 3, load 1: sharing makes each load take 4, of which 3 are waiting."""
    log, rules = run(
        chain(*[{"flops": 3, "weight": 1}] * 10, repeat=4), execution="blocking", engines=4, arbiter="processor_sharing",
        scheduler="sticky",
    )  # fmt: skip
    assert log.makespan == 10 * (3 + 4)
    assert token(log, rules) == {"compute": 30, "transfer": 10, "wait_channel": 30}


def test_lockstep_under_fifo_waits_only_at_first():
    log, rules = run(chain(*[{"flops": 3, "weight": 1}] * 10, repeat=4), execution="blocking", engines=4, scheduler="sticky")
    assert log.makespan == 10 * (3 + 1) + 3
    assert total(log, rules) == {"compute": 120, "transfer": 40, "wait_channel": 1 + 2 + 3}


def test_clock_of_all_engines_busy():
    log, _ = run(chain({"flops": 5}, {"flops": 1}, repeat=3), engines=2)
    t = log.tasks
    busy = [sum(int(a <= x < b) for a, b in zip(t.start, t.end, strict=True)) == 2 for x in range(log.makespan)]
    expected = np.concatenate(([0], np.cumsum(busy)))
    work, columns = room_for(len(t)), tasks_of(log)
    count = by_start(columns, 0, len(t), 2, 0, work)
    assert sweep_engines(columns, 0, count, np.zeros(2, dtype=np.int64), 2, 0, work) == -1
    intervals = int(work.before.argmax())
    assert [clock(work.begin, work.before, intervals, time) for time in range(log.makespan + 1)] == expected.tolist()


def test_a_log_that_does_not_add_up_is_refused():
    log, rules = run(chain({"flops": 5}, {"flops": 7}))
    late = dataclasses.replace(log.tasks, ready=log.tasks.ready + np.array([0, 1]), start=log.tasks.start + np.array([0, 1]),
                               loaded=log.tasks.loaded + np.array([0, 1]), end=log.tasks.end + np.array([0, 1]))  # fmt: skip
    broken = dataclasses.replace(log, tasks=late, steps=dataclasses.replace(log.steps, end=log.steps.end + 1))
    with pytest.raises(SimulationError, match=r"token 0\.0 took 13 ps, its parts sum to 12 ps"):
        breakdown(broken, rules)


def test_faster_than_possible_is_refused():
    log, rules = run(chain({"flops": 1, "weight": 4}), execution="blocking")
    with pytest.raises(SimulationError, match="ran faster than it can"):
        breakdown(log, dataclasses.replace(rules, latency=3))
