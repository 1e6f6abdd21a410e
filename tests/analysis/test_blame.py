"""Blame on cases small enough to do by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sim.analysis.blame import blame
from sim.analysis.breakdown import breakdown
from sim.analysis.parts import WAIT_CHANNEL, WAIT_ENGINE, WAIT_POLICY, WAIT_SRAM
from tests.analysis.machine import run
from tests.analysis.test_breakdown import chain
from tests.graphs import GraphBuilder


def of(log, rules):
    return blame(log, rules, breakdown(log, rules))


def entries(matrix) -> dict[tuple[str, str], int]:
    return {(who, whom): ps for who, whom, ps in matrix.largest(10_000)}


def loads(*sizes: int):
    b = GraphBuilder()
    for i, size in enumerate(sizes):
        b.add(f"load_{i}", flops=1, weight=size)
    return b.graph()


def test_two_transfers_that_share_equally():
    found = of(*run(loads(4, 4), execution="blocking", engines=2, arbiter="processor_sharing"))
    assert entries(found.channel_by_kind) == {("load_0", "load_1"): 4, ("load_1", "load_0"): 4}
    assert entries(found.engine_by_kind) == {}


def test_three_that_share_unequally():
    # 2, 4 and 9: the first ends at 6 = 3 * 2, the second at 10 = 6 + 2 * 2, the third at 15
    log, rules = run(loads(2, 4, 9), execution="blocking", engines=3, arbiter="processor_sharing")
    assert (log.tasks.loaded).tolist() == [6, 10, 15]
    assert entries(of(log, rules).channel_by_kind) == {
        ("load_0", "load_1"): 2, ("load_0", "load_2"): 2,  # 4 in all
        ("load_1", "load_0"): 2, ("load_1", "load_2"): 4,  # 6
        ("load_2", "load_0"): 2, ("load_2", "load_1"): 4,  # 6
    }  # fmt: skip


def test_a_queue_blames_who_is_ahead():
    found = of(*run(loads(2, 4, 9), execution="blocking", engines=3))
    assert entries(found.channel_by_kind) == {("load_1", "load_0"): 2, ("load_2", "load_0"): 2, ("load_2", "load_1"): 4}


def test_issued_while_another_is_served():
    b = GraphBuilder()
    b.add("first", flops=1, weight=10)
    early = b.add("norm", flops=3)
    b.add("second", early, flops=1, weight=4)
    log, rules = run(b.graph(), execution="blocking", engines=2)
    assert entries(of(log, rules).channel_by_kind) == {("second", "first"): 7}  # issued at 3, served from 10


def test_the_limit_of_a_port_is_nobodys_fault():
    log, rules = run(loads(4, 4), execution="blocking", engines=2, arbiter="processor_sharing", cap=(1, 2))
    assert entries(of(log, rules).channel_by_kind) == {("load_0", "alone"): 4, ("load_1", "alone"): 4}
    log, rules = run(loads(4, 4), execution="blocking", engines=2, cap=(1, 2))  # one after the other, each at half speed
    assert entries(of(log, rules).channel_by_kind) == {
        ("load_0", "alone"): 4, ("load_1", "alone"): 4, ("load_1", "load_0"): 8,
    }  # fmt: skip


def test_channels_apart_do_not_delay_each_other():
    log, rules = run(loads(4, 4), execution="blocking", engines=4, channels=2, route="sequence", requests=[(1, 0), (1, 0)])
    assert entries(of(log, rules).channel_by_owner) == {("0.0", "0.0"): 4, ("1.0", "1.0"): 4}


def test_engines_blame_who_holds_them_equally():
    b = GraphBuilder()
    b.add("long", flops=9)
    b.add("short", flops=4)
    b.add("third", flops=1)
    found = of(*run(b.graph(), engines=2))  # the third waits 4, while the long and the short one hold the engines
    assert entries(found.engine_by_kind) == {("third", "long"): 2, ("third", "short"): 2}


def test_odd_picoseconds_go_to_the_first():
    b = GraphBuilder()
    b.add("long", flops=9)
    b.add("short", flops=3)
    b.add("third", flops=1)
    found = of(*run(b.graph(), engines=2))
    assert entries(found.engine_by_kind) == {("third", "long"): 2, ("third", "short"): 1}


def test_who_holds_the_channel_while_sram_is_full():
    """Three of one kind, of which one fits: the others wait for it while it loads, and for space while it is used."""
    b = GraphBuilder()
    for kind in ("q_proj", "k_proj", "v_proj"):
        b.add(kind, flops=5, weight=4)
    log, rules = run(b.graph(), sram=4)
    # Loads 0..4, 9..13, 18..22; computing from 4, 13 and 22, for 5. The second waits 4 for the channel, the third 4 + 4.
    assert breakdown(log, rules).total[[WAIT_CHANNEL, WAIT_SRAM]].tolist() == [12, 15]
    found = of(log, rules).channel_by_kind
    assert entries(found) == {("weight_load", "weight_load"): 12}
    assert not found.alone.any()


def test_a_scheduler_that_declines_is_not_blamed_on_tasks():
    log, rules = run(chain({"flops": 5}, repeat=3), engines=2, scheduler="serial")
    assert breakdown(log, rules).total[WAIT_POLICY] == 5 + 10
    assert entries(of(log, rules).engine_by_owner) == {}
    assert not breakdown(log, rules).total[WAIT_ENGINE]


@pytest.mark.parametrize(
    ("sequences", "tokens", "owner", "rows"), [(3, 2, "token", "by_step"), (3, 40, "sequence", "by_sequence")]
)
def test_owner_is_as_fine_as_can_be_read(sequences, tokens, owner, rows):
    log, rules = run(loads(4), execution="blocking", engines=2, requests=[(tokens, 0)] * sequences)
    found, waits = of(log, rules), getattr(breakdown(log, rules), rows)
    assert found.owner == owner
    for matrix, part in ((found.engine_by_owner, WAIT_ENGINE), (found.channel_by_owner, WAIT_CHANNEL)):
        assert (matrix.wait.sum(axis=1) + matrix.alone).tolist() == waits[:, part].tolist()
        assert waits[:, part].any()
    assert not found.engine_by_owner.alone.any()


def test_of_many_kinds_those_that_waited_least_are_one_group():
    """120 loads of kinds of their own, issued at once: load i waits i ps, so the 21 that waited least are the first."""
    log, rules = run(loads(*[1] * 120), execution="blocking", engines=120)
    matrix = of(log, rules).channel_by_kind
    waits = dict(zip(matrix.names, (matrix.wait.sum(axis=1) + matrix.alone).tolist(), strict=True))
    assert len(matrix.names) == 100
    assert waits["21 other kinds"] == sum(range(21))
    assert sum(waits.values()) == sum(range(120))


def test_many_sequences_are_taken_in_ranges():
    log, rules = run(loads(4, 4), execution="blocking", engines=2, requests=[(250, 0)])
    steps = dataclasses.replace(log.steps, sequence=log.steps.token, token=np.zeros_like(log.steps.token))
    found = of(dataclasses.replace(log, steps=steps), rules)
    assert (found.owner, len(found.channel_by_owner.names)) == ("sequences", 100)
    assert found.channel_by_owner.names[0] == "0-2"
    assert found.channel_by_owner.wait.sum() == 250 * 4


def test_against_a_plain_count():
    """Engine waits, instant by instant."""
    b = GraphBuilder()
    rng = np.random.default_rng(1)
    for i in range(14):
        inputs = [int(x) for x in rng.integers(0, i, 2)] if i > 2 else []
        b.add(f"kind_{i % 4}", *inputs, flops=int(rng.integers(1, 9)))
    log, rules = run(b.graph(), engines=2, requests=[(1, 0)] * 3)
    found, t = of(log, rules).engine_by_owner, log.tasks
    halves = np.zeros((3, 3), dtype=np.int64)
    for row in range(len(t)):
        for now in range(int(t.ready[row]), int(t.start[row])):
            holders = np.flatnonzero((t.start <= now) & (now < t.end))
            assert len(holders) == 2
            np.add.at(halves[t.step[row]], t.step[holders], 1)
    assert halves[np.tril_indices(3)].all(), "each waited for itself and for those before it"
    assert (abs(2 * found.wait - halves) <= 1).all()
