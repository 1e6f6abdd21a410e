"""Looking ahead in a loop of batched steps: which steps come next if nobody arrives, as long as they are of one shape.

Who takes part in a step depends on the requests that have come and on the steps that have ended, and on the clock only through
arrivals. So steps up to the next arrival are known before any of them is timed. They are timed as lanes of one block; those
that turn out to begin after an arrival are forgotten, and the batcher is put back to where they began. In a closed loop the
end of a request is what brings the next, so a step in which one ends is the last that is known.
"""

from __future__ import annotations

from sim.serving import Batch, Batcher
from sim.simulation import Setup


class Ahead:
    """`plan` gives the next steps, `took` tells when they ended."""

    def __init__(self, setup: Setup, batcher: Batcher) -> None:
        self.closed = setup.concurrency is not None
        self.batcher = batcher

    def plan(self, now: int, most: int) -> list[Batch]:
        """The next step at this time, and at most so many in all that follow it; none if there is nothing to do now."""
        batcher = self.batcher
        first = batcher.next(now)
        if first is None:
            return []
        steps = [first]
        self._open = self.closed and batcher.ending(first)
        if not self._open:
            batcher.ended(first, now)
            self._saved = batcher.save()
            while len(steps) < most:
                batch = batcher.next(now)
                if batch is None or batch.shape != first.shape or (self.closed and batcher.ending(batch)):
                    break
                batcher.ended(batch, now)
                steps.append(batch)
            batcher.restore(self._saved)
        self._now, self._steps = now, steps
        return steps

    def took(self, ends: list[int]) -> int:
        """How many of the planned steps are right, given when each ended: those that began before anybody came."""
        if self._open:
            self.batcher.ended(self._steps[0], ends[0])
            return 1
        arrival = self.batcher.arrivals.next
        right = 1 + sum(arrival is None or end < arrival for end in ends[:-1])
        for step in self._steps[1:right]:
            assert self.batcher.next(self._now) == step
            self.batcher.ended(step, self._now)
        return right
