"""Binary heaps in arrays [3, capacity]: the least (first, second, third) is at index 0; the caller keeps the count."""

from __future__ import annotations

from typing import Any

from sim.base.kernel import kernel

Table = Any  # int64 [3, capacity]


@kernel
def push(heap: Table, count: int, a: int, b: int, c: int) -> int:
    """Add an entry; returns the new count."""
    i = count
    while i > 0:
        parent = (i - 1) >> 1
        pa = heap[0, parent]
        if a > pa:
            break
        if a == pa:
            pb = heap[1, parent]
            if b > pb or (b == pb and c >= heap[2, parent]):
                break
        heap[0, i] = pa
        heap[1, i] = heap[1, parent]
        heap[2, i] = heap[2, parent]
        i = parent
    heap[0, i] = a
    heap[1, i] = b
    heap[2, i] = c
    return count + 1


@kernel
def pop(heap: Table, count: int) -> int:
    """Remove the least entry, which the caller has read; returns the new count."""
    count -= 1
    a, b, c = heap[0, count], heap[1, count], heap[2, count]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= count:
            break
        other = child + 1
        if other < count and before(heap, other, heap[0, child], heap[1, child], heap[2, child]):
            child = other
        if not before(heap, child, a, b, c):
            break
        heap[0, i] = heap[0, child]
        heap[1, i] = heap[1, child]
        heap[2, i] = heap[2, child]
        i = child
    heap[0, i] = a
    heap[1, i] = b
    heap[2, i] = c
    return count


@kernel
def before(heap: Table, i: int, a: int, b: int, c: int) -> bool:
    """Whether entry i comes before (a, b, c)."""
    first = heap[0, i]
    if first != a:
        return first < a
    second = heap[1, i]
    if second != b:
        return second < b
    return heap[2, i] < c
