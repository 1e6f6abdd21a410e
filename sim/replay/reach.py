"""Which comparisons of a program's rows hold for any delays: those along its own edges."""

from __future__ import annotations

from collections.abc import Collection

from sim.replay.program import LATENCY, ZERO, Program

#: t[a] <= t[b], or < if strict, of two places.
Comparison = tuple[int, int, bool]

TARGETS = 4096  # rows that are looked for at once, as the bits of one integer
WINDOW = 3 * TARGETS  # rows walked through for them: what is farther apart is not looked into


def implied(program: Program, comparisons: Collection[Comparison]) -> set[Comparison]:
    """Those of the comparisons that follow from a compiled program.

    Not all that follow: time and memory must not grow with the square of the program, and a comparison that is verified
    needlessly does no harm.
    """
    sources = [node.sources for node in program.nodes]
    delayed = [node.form <= LATENCY for node in program.nodes]  # every delay is at least 1 ps
    found: set[Comparison] = set()
    near: dict[int, list[Comparison]] = {}  # by block of targets
    for comparison in comparisons:
        a, b, strict = comparison
        block = b // TARGETS
        if a in (ZERO, b) and not strict:
            found.add(comparison)
        elif max(0, (block + 1) * TARGETS - WINDOW) <= a < b:
            near.setdefault(block, []).append(comparison)
    for block, wanted in near.items():
        first, low = block * TARGETS, min(a for a, _, _ in wanted)
        end = 1 + max(b for _, b, _ in wanted)
        after, later = _reached(sources, delayed, low, first, end)
        for comparison in wanted:
            a, b, strict = comparison
            if (later if strict else after)[a - low] >> (b - first) & 1:
                found.add(comparison)
    return found


def _reached(
    sources: list[tuple[int, ...]], delayed: list[bool], low: int, first: int, end: int
) -> tuple[list[int], list[int]]:  # fmt: skip
    """For each place from `low` to `end`, the places from `first` to `end`, as bits, whose times cannot be earlier, and
    those that must be later.
    """
    after, later = [0] * (end - low), [0] * (end - low)
    bit = 1 << max(0, end - 1 - first)
    for here in range(end - 1, low - 1, -1):
        reached = after[here - low] | bit
        bit >>= 1  # none before `first`
        if not reached:
            continue
        after[here - low] = reached
        beyond = reached if delayed[here] else later[here - low]
        for source in sources[here]:
            if source >= low:
                after[source - low] |= reached
                later[source - low] |= beyond
    return after, later
