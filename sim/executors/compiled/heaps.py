"""Binary heaps in the memory of a run: a count, then entries of three words; the least (first, second, third) comes first."""

from __future__ import annotations

from sim.base.kernel import kernel, small
from sim.executors.compiled.state import Memory

ENTRY = 3  # words


@kernel
def push(m: Memory, heap: int, a: int, b: int, c: int) -> None:
    """Add an entry."""
    i = m[heap]
    m[heap] = i + 1
    first = heap + 1
    while i > 0:
        parent = first + ((i - 1) >> 1) * ENTRY
        if not goes_after(m, parent, a, b, c):
            break
        here = first + i * ENTRY
        m[here], m[here + 1], m[here + 2] = m[parent], m[parent + 1], m[parent + 2]
        i = (i - 1) >> 1
    here = first + i * ENTRY
    m[here], m[here + 1], m[here + 2] = a, b, c


@kernel
def pop(m: Memory, heap: int) -> None:
    """Remove the least entry, which the caller has read."""
    count = m[heap] - 1
    m[heap] = count
    first = heap + 1
    last = first + count * ENTRY
    a, b, c = m[last], m[last + 1], m[last + 2]
    here, child = first, first + ENTRY
    while child < last:
        if child + ENTRY < last and goes_after(m, child, m[child + ENTRY], m[child + ENTRY + 1], m[child + ENTRY + 2]):
            child += ENTRY
        if goes_after(m, child, a, b, c):
            break
        m[here], m[here + 1], m[here + 2] = m[child], m[child + 1], m[child + 2]
        here, child = child, first + 2 * (child - first) + ENTRY
    m[here], m[here + 1], m[here + 2] = a, b, c


@small
@kernel
def goes_after(m: Memory, entry: int, a: int, b: int, c: int) -> bool:
    """Whether an entry goes after (a, b, c)."""
    if m[entry] != a:
        return m[entry] > a
    if m[entry + 1] != b:
        return m[entry + 1] > b
    return m[entry + 2] > c
