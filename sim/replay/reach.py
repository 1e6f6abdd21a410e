"""Which comparisons of a program's rows hold for any delays: those along its own edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sim.replay.program import Program


class Reach:
    """For each row of a compiled program, as bit sets: the rows, and the given tasks, whose times cannot be earlier.

    tasks: (task, row) pairs.
    """

    def __init__(self, program: Program, tasks: Iterable[tuple[int, int]]) -> None:
        self.name = program.name
        after, later, reached = ([0] * len(program) for _ in range(3))
        for task, row in tasks:
            reached[self.name[row]] |= 1 << task
        for row in reversed(program.order):
            after[row] |= 1 << row
            delayed = program.delay[row] is not None  # every delay is at least 1 ps
            for source in program.sources[row] if row else ():
                after[source] |= after[row]
                later[source] |= after[row] if delayed else later[row]
                reached[source] |= reached[row]
        self._after, self._later, self._tasks = after, later, reached

    def follows(self, a: int, b: int, *, strict: bool) -> bool:
        """Whether t[a] <= t[b], or < if strict, whatever the delays are."""
        reached = self._later if strict else self._after
        return bool(reached[self.name[a]] >> self.name[b] & 1)

    def not_after(self, row: int, tasks: int) -> Iterator[int]:
        """The tasks of a bit set that may be earlier than a row."""
        left = tasks & ~self._tasks[self.name[row]]
        while left:
            lowest = left & -left
            yield lowest.bit_length() - 1
            left ^= lowest
