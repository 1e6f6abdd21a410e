"""Topological order, against taking the lowest node that is free, again and again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.base.topological import topological_order


@given(st.lists(st.sets(st.integers(0, 11)), min_size=12, max_size=12), st.permutations(range(12)))
def test_each_comes_after_its_inputs_and_the_lowest_free_one_first(inputs: list[set[int]], rank: list[int]) -> None:
    """Whatever the graph; nodes on a cycle or behind one never become free."""
    graph = dict(enumerate(inputs))
    expected: list[int] = []
    while free := [node for node in graph if node not in expected and graph[node].issubset(expected)]:
        expected.append(min(free, key=rank.__getitem__))
    assert topological_order(graph, rank.__getitem__) == expected


def test_without_ranks_program_order_decides() -> None:
    assert topological_order({0: {2}, 1: set(), 2: set(), 3: {0}}) == [1, 2, 0, 3]


def test_cycles_and_nodes_after_them_are_left_out() -> None:
    assert topological_order({0: set(), 1: {2}, 2: {1}, 3: {2}}) == [0]
