"""Skew heaps of cells (Sleator and Tarjan, 1986): any number of heaps, whose links are words of the cells."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.state import LEFT, NONE, RANK, RIGHT, SLOT, S_KEY, Memory


@kernel
def goes_before(m: Memory, a: int, b: int) -> bool:
    """Whether ready task a goes before b: by rank, then in program order."""
    if m[a + RANK] != m[b + RANK]:
        return m[a + RANK] < m[b + RANK]
    key_a, key_b = m[m[a + SLOT] + S_KEY], m[m[b + SLOT] + S_KEY]
    return key_a < key_b or (key_a == key_b and a < b)


@kernel
def add(m: Memory, root: int, cell: int) -> int:
    """Add a cell to a heap; returns its root."""
    m[cell + LEFT] = NONE
    m[cell + RIGHT] = NONE
    return merge(m, root, cell)


@kernel
def merge(m: Memory, a: int, b: int) -> int:
    """Merge two heaps along their right spines, whose children change sides; returns the root."""
    root, parent = NONE, NONE
    while min(a, b) != NONE:
        if goes_before(m, b, a):
            a, b = b, a
        if parent == NONE:
            root = a
        else:
            m[parent + LEFT] = a
        rest = m[a + RIGHT]
        m[a + RIGHT] = m[a + LEFT]
        m[a + LEFT] = NONE
        parent, a = a, rest
    left = a if b == NONE else b
    if parent == NONE:
        return left
    m[parent + LEFT] = left
    return root


@kernel
def without_root(m: Memory, root: int) -> int:
    """The heap without its root."""
    return merge(m, m[root + LEFT], m[root + RIGHT])
