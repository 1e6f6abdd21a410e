"""Operands that hold SRAM while loads wait for space, by hand and picosecond by picosecond."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from hypothesis import given, settings

from models.graph import OpGraph
from sim.analysis.breakdown import breakdown
from sim.analysis.occupancy import Occupancy, Space, occupancy
from sim.analysis.parts import WAIT_SRAM
from sim.cost.fixed import largest_remainder
from sim.log import derived
from sim.log.tables import EventLog
from sim.mapping.operands import operand_bytes, operands_of
from tests.analysis.machine import run
from tests.analysis.test_random import machines, of_any_devices
from tests.graphs import GraphBuilder


def found_in(graph: OpGraph, **machine: object) -> Occupancy:
    log, rules = run(graph, **machine)
    found = occupancy(log, rules, breakdown(log, rules))
    assert found is not None
    return found


def rows(found: Occupancy) -> list[tuple[object, ...]]:
    return [dataclasses.astuple(held) for held in found.by_kind]


def test_two_operands_share_the_wait_by_what_they_hold_and_for_how_long() -> None:
    """SRAM of 8 B. q_proj holds 4 B in [0, 14), up_proj 2 B in [0, 7), so o_proj's 6 B wait until 14; channels rest from 6 on.

    Of the wait 14 x 56 / 70 = 11.2 ps are q_proj's; of the 8 ps from 6 on 8 x 32 / 34 = 7.5.
    """
    b = GraphBuilder()
    b.add("q_proj", layer=0, flops=10, weight=4)
    b.add("up_proj", layer=1, flops=1, weight=2)
    b.add("o_proj", layer=2, flops=1, weight=6)
    found = found_in(b.graph(), engines=2, sram=8)
    assert found.devices == (Space(capacity=8, most=6, wait=14, wait_sram=8),)
    assert rows(found) == [("weights", "q_proj", 4 * 14, 11, 8), ("weights", "up_proj", 2 * 7, 3, 0)]
    assert [(held.operand, held.of, held.wait) for held in found.by_layer] == [("weights", 0, 11), ("weights", 1, 3)]


def test_the_cache_holds_sram_until_its_last_use() -> None:
    """6 B of KV cache in [0, 11), used by scores until 8 and by values until 11; weights of 5 B wait, 6 ps for the channel."""
    b = GraphBuilder()
    load = b.add("kv_load", kv_read=6)
    scores = b.add("scores", load, flops=2)
    b.add("weighted_values", load, scores, flops=3)
    b.add("o_proj", flops=1, weight=5)
    found = found_in(b.graph(), sram=10)
    assert (found.fullest.most, found.wait, found.wait_sram) == (6, 11, 5)
    assert rows(found) == [("KV cache", "kv_load", 66, 11, 5)]


def test_a_kernel_that_loads_its_own_cache_holds_sram_while_another_waits_beside_an_idle_engine() -> None:
    b = GraphBuilder()
    for layer in range(2):
        b.add("attention", layer=layer, flops=5, kv_read=10)
    found = found_in(b.graph(), execution="blocking", engines=2, sram=10)
    assert rows(found) == [("KV cache", "attention", 150, 15, 15)]


def test_without_a_bound_there_is_nothing_to_show_and_with_enough_nothing_waits() -> None:
    b = GraphBuilder()
    b.add("q_proj", flops=1, weight=4)
    log, rules = run(b.graph(), sram=None)
    assert occupancy(log, rules, breakdown(log, rules)) is None
    found = found_in(b.graph(), sram=4)
    assert (found.fullest.most, found.wait, found.by_kind) == (4, 0, ())


def test_products_beyond_64_bits() -> None:
    """2^33 bytes are held for 2^33 ps: 2^66 byte-picoseconds."""
    big = 2**33
    b = GraphBuilder()
    b.add("q_proj", weight=big, flops=1)
    b.add("o_proj", weight=big, flops=1)
    found = found_in(b.graph(), sram=big)
    assert rows(found) == [("weights", "q_proj", big * (big + 1), big + 1, 1)]


def by_instants(log: EventLog, conserving: bool, device: int) -> tuple[int, int, dict[str, int]]:
    """All waits for space on a device, those for space itself, and byte-picoseconds by kind of op, counted ps by ps."""
    t, g, each, engines = log.tasks, log.services, log.machine.memories // len(log.machine.devices), log.machine.engines_each
    mine, channels = derived.device(log) == device, g.channel // each == device
    graph = log.graphs[0]
    operands = operands_of(graph)
    sizes = operand_bytes(graph, operands, graph.ops.costs(0)).ravel().tolist()
    every = itself = 0
    held: dict[str, int] = {}
    until: dict[int, int] = {}
    for row in range(len(t)):
        task = int(t.task[row])
        for load in operands.used[operands.used_start[task] : operands.used_start[task + 1]].tolist():
            until[row - task + load] = max(until.get(row - task + load, 0), int(t.end[row]))
    kinds = {int(task): graph.ops.ops[int(graph.op[task])].kind for task in operands.task}
    size = dict(zip(operands.task.tolist(), sizes, strict=True))
    for now in range(log.makespan):
        waits = mine & (t.ready <= now) & (now < t.start)
        on_engines, busy = t.engine >= 0, (mine & (t.engine >= 0) & (t.start <= now) & (now < t.end)).sum()
        dma, own = int((waits & ~on_engines).sum()), int((waits & on_engines & (t.work > 0)).sum())
        own *= conserving and busy < engines
        caused = (channels & (g.start <= now) & (now < g.end)).any() or (busy == engines and (waits & on_engines).any())
        every, itself = every + dma + own, itself + (0 if caused else dma) + own
        for load, end in until.items():
            if mine[load] and t.start[load] <= now < end:
                kind = kinds[int(t.task[load])]
                held[kind] = held.get(kind, 0) + size[int(t.task[load])] * (dma + own)
    return every, itself, {kind: byte_ps for kind, byte_ps in held.items() if byte_ps}


@settings(max_examples=25, deadline=None)
@given(of_any_devices(), machines())
def test_byte_picoseconds_are_those_of_all_instants(graph: OpGraph, machine: dict[str, object]) -> None:
    machine = {**machine, "spare": machine["spare"] or 0}
    log, rules = run(graph, **machine)
    parts = breakdown(log, rules)
    found = occupancy(log, rules, parts)
    assert found is not None
    expected = [by_instants(log, rules.waits_for_sram, device) for device in range(len(log.machine.devices))]
    assert [(space.wait, space.wait_sram) for space in found.devices] == [(every, itself) for every, itself, _ in expected]
    assert found.wait_sram == parts.total[WAIT_SRAM]
    sums, shares = Counter[str](), Counter[str]()
    for every, _, held in expected:
        sums.update(held)
        shares.update(dict(zip(held, largest_remainder(list(held.values()), every), strict=True)) if held else {})
    assert {str(each.of): each.byte_ps for each in found.by_kind if each.operand == "weights"} == {
        kind: byte_ps for kind, byte_ps in sums.items() if kind != "kv_load"
    }
    for table in (found.by_kind, found.by_layer):
        if table:
            assert np.sum([(each.wait, each.wait_sram) for each in table], axis=0).tolist() == [found.wait, found.wait_sram]
            assert sum(each.byte_ps for each in table) == sums.total()
    if len(found.devices) == 1:
        assert sorted(each.wait for each in found.by_kind) == sorted(shares.values())


def test_a_load_that_waits_for_space_on_another_device_is_in_no_share() -> None:
    """On device 1 k_proj loads 5 bytes of 5 and computes until 25; then v_proj is admitted, and with it o_proj on device 0.

    Both waited for 25 ps: v_proj beside k_proj, o_proj beside nothing.
    """
    b = GraphBuilder()
    first = b.add("act", flops=1)
    b.add("k_proj", flops=20, weight=5)
    b.add("o_proj", b.add("v_proj", first, flops=1, weight=5), flops=1, weight=5)
    graph = b.graph()
    ops = tuple(dataclasses.replace(op, device=int(op.kind in ("k_proj", "v_proj"))) for op in graph.ops)
    graph = dataclasses.replace(graph, ops=ops)
    found = found_in(graph, sram=5)
    assert [(space.wait, space.wait_sram) for space in found.devices] == [(25, 25), (25, 20)], "the channel loads for 5"
    assert rows(found) == [("weights", "k_proj", 125, 25, 20)]
