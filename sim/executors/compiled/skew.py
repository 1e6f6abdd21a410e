"""Skew heaps of cells (Sleator and Tarjan, 1986): any number of heaps that share the links of `run.cell`."""

from __future__ import annotations

from sim.base.kernel import kernel
from sim.executors.compiled.state import LEFT, NONE, RIGHT, S_KEY, SLOT, State


@kernel
def goes_before(run: State, a: int, b: int) -> bool:
    """Whether ready task a goes before b: by rank, then in program order."""
    if run.rank[a] != run.rank[b]:
        return run.rank[a] < run.rank[b]
    key_a, key_b = run.slot[S_KEY, run.cell[SLOT, a]], run.slot[S_KEY, run.cell[SLOT, b]]
    return key_a < key_b or (key_a == key_b and a < b)


@kernel
def meld(run: State, root: int, cell: int) -> int:
    """Add a cell without links to a heap; returns its root."""
    run.cell[LEFT, cell] = NONE
    run.cell[RIGHT, cell] = NONE
    return merge(run, root, cell)


@kernel
def merge(run: State, a: int, b: int) -> int:
    """Merge two heaps along their right spines, whose children change sides; returns the root."""
    root = parent = NONE
    while a != NONE and b != NONE:
        if goes_before(run, b, a):
            a, b = b, a
        if parent == NONE:
            root = a
        else:
            run.cell[LEFT, parent] = a
        rest = run.cell[RIGHT, a]
        run.cell[RIGHT, a] = run.cell[LEFT, a]
        run.cell[LEFT, a] = NONE
        parent, a = a, rest
    left = a if b == NONE else b
    if parent == NONE:
        return left
    run.cell[LEFT, parent] = left
    return root


@kernel
def rest_of(run: State, root: int) -> int:
    """The heap without its root."""
    return merge(run, run.cell[LEFT, root], run.cell[RIGHT, root])
