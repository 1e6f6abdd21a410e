"""Lanes and nesting: nothing overlaps, everything nests, whatever the intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.render.trace.layout import Layout
from sim.render.trace.tracks import Counter, Role, Slices, lanes, nesting_order, steps_of, thin, to_ns
from tests.analysis.machine import run
from tests.graphs import GraphBuilder

intervals = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=40)


@given(intervals)
def test_lanes_never_overlap_and_are_as_few_as_possible(rows: list[tuple[int, int, int]]) -> None:
    group, start, length = np.array(rows, dtype=np.int64).T
    end = start + length
    lane = lanes(group, start, end)
    for i in range(len(rows)):
        for j in range(i):
            if group[i] == group[j] and lane[i] == lane[j]:
                assert end[i] <= start[j] or end[j] <= start[i]
    for one in set(group.tolist()):
        mine = group == one
        most = max(int(((start <= t) & (t < end) & mine).sum()) for t in start[mine])
        assert set(lane[mine].tolist()) == set(range(most))


def test_a_chain_stays_on_one_lane_and_idle_groups_start_afresh() -> None:
    start = np.array([0, 0, 0, 10, 15, 20])
    end = np.array([10, 12, 14, 15, 20, 30])
    assert lanes(np.zeros(6, dtype=np.int64), start, end).tolist() == [0, 1, 2, 0, 0, 0]


@st.composite
def forests(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Slices (track, start, end, depth) that nest, short enough for many to touch or to round to nothing."""
    found: list[tuple[int, int, int, int]] = []

    def fill(track: int, begin: int, end: int, depth: int) -> None:
        at = begin
        while at < end and depth < 4 and len(found) < 60 and draw(st.booleans()):
            start = draw(st.integers(at, end - 1))
            stop = draw(st.integers(start + 1, end))
            found.append((track, start, stop, depth))
            fill(track, start, stop, depth + 1)
            at = stop

    for track in range(1, draw(st.integers(1, 3)) + 1):
        fill(track, 0, 4000, 0)
    return draw(st.permutations(found))


@given(forests())
def test_begins_and_ends_nest_after_rounding(rows: list[tuple[int, int, int, int]]) -> None:
    if not rows:
        return
    track, start, end, depth = np.array(rows, dtype=np.int64).T
    made = Slices.make(track=track, start=start, end=end, name=1, category=1, role=Role.OP, depth=depth)
    index, begin = nesting_order(made)
    ns = to_ns(np.where(begin, made.start[index], made.end[index]))
    open_: dict[int, list[int]] = {}
    latest: dict[int, int] = {}
    for i, opens, at in zip(index, begin, ns, strict=True):
        line = int(track[i])
        assert at >= latest.get(line, 0)
        latest[line] = at
        stack = open_.setdefault(line, [])
        if opens:
            assert len(stack) == depth[i]
            stack.append(i)
        else:
            assert stack.pop() == i
    assert not any(open_.values())


def test_slices_without_duration_are_left_out() -> None:
    start = np.array([1, 2, 3])
    made = Slices.make(track=1, start=start, end=np.array([1, 3, 3]), name=np.array([7, 8, 9]), category=1, role=Role.OP)
    assert made.name.tolist() == [8]


def test_rounding_is_of_absolute_times() -> None:
    assert to_ns(np.array([0, 499, 500, 1499, 1500])).tolist() == [0, 0, 1, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(-3, 3)), min_size=1))
def test_step_functions(changes: list[tuple[int, int]]) -> None:
    time, change = np.array(changes, dtype=np.int64).T
    at, value = steps_of(time, change)
    assert at.tolist() == sorted(set(time.tolist()))
    assert value.tolist() == [int(change[time <= t].sum()) for t in at]
    thinned = thin(Counter(1, at, value))
    ns = to_ns(thinned.time)
    assert (np.diff(ns) > 0).all()
    assert (np.diff(thinned.value) != 0).all()
    assert thinned.value[-1] == value[-1]


def test_operands_in_sram_are_a_counter_of_each_device() -> None:
    """Device 0 has space for one of two operands of 10 kB, which load for 10 ns and are used for 5: in [0, 15) and [15, 30).

    Device 1 has one of 4 kB, in [0, 9).
    """
    b = GraphBuilder()
    first = b.add("scores", b.add("kv_load", layer=0, kv_read=10_000), layer=0, flops=5_000)
    b.add("scores", first, b.add("kv_load", layer=1, kv_read=10_000), layer=1, flops=5_000)
    b.add("scores", b.add("kv_load", layer=2, kv_read=4_000), layer=2, flops=5_000)
    graph = b.graph()
    log, _ = run(replace(graph, ops=tuple(replace(op, device=op.layer // 2) for op in graph.ops)), sram=10_000)
    layout = Layout(log)
    layout.machine()
    names = {number: track.name for number, track in enumerate(layout.tracks.all, 1)}
    found = [(c.time.tolist(), c.value.tolist()) for c in layout.counters() if names[c.track] == "MB in SRAM"]
    assert found == [([0, 30_000], [0.01, 0.0]), ([0, 9_000], [0.004, 0.0])]
    unbounded, _ = run(graph)
    layout = Layout(unbounded)
    layout.machine()
    assert "MB in SRAM" not in {track.name for track in layout.tracks.all}
