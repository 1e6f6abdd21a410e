"""Steps of devices that have sequences of their own, and share experts: one step of all, because tokens go to any of them.

Each device has a batcher of its own, with a queue, limits and a KV cache. When a step has ended, all of them say what comes
next; those that have nothing to do take part without tokens, as long as others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sim.serving.batch import Batch
from sim.serving.batcher import Batcher


@dataclass(slots=True, eq=False)
class Lockstep(Batcher):
    """The loop of such devices. of: the batchers of these, in order."""

    of: Sequence[Batcher] = field(kw_only=True)
    _batches: list[Batch | None] = field(default_factory=list)  # [device], in the step in progress

    def next(self, now: int) -> Batch | None:
        self._batches = [each.next(now) for each in self.of]
        there = [(home, batch) for home, batch in enumerate(self._batches) if batch is not None]
        return Batch.of_devices(there) if there else None

    def ended(self, batch: Batch, now: int, steps: int = 1) -> None:
        for each, own in zip(self.of, self._batches, strict=True):
            if own is not None:
                each.ended(own, now, steps)

    def steps_ahead(self) -> int:
        ahead = (each.steps_ahead() for each, own in zip(self.of, self._batches, strict=True) if own is not None)
        return min(ahead, default=0)

    @property
    def parts(self) -> Sequence[Batcher]:
        return self.of

    @property
    def next_arrival(self) -> int | None:
        return _first(each.next_arrival for each in self.of)

    @property
    def until(self) -> int | None:
        return _first(each.until for each in self.of)

    @property
    def listens(self) -> bool:
        return any(each.listens for each in self.of)

    @property
    def over(self) -> bool:
        return all(each.over for each in self.of)


def _first(times: Iterable[int | None]) -> int | None:
    """The earliest of some times, None if there is none."""
    return min((time for time in times if time is not None), default=None)
