"""Arrivals: when requests come, in an open or a closed loop."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from itertools import groupby

from sim.serving.sequence import SequenceState
from sim.workload.requests import Request


class Arrivals:
    """Requests, in order of their arrival.

    In an open loop each comes at its own time. In a closed loop (`concurrency` is given) that many come at the beginning, and
    another one comes `think` ps after one has ended. Samples of one prompt come together and count as one, which ends with the
    last of them. A conversation goes on with its next turn before another one begins in its place.

    times: when each request comes (request -> ps), as far as that is known. only: the requests that come, None for all.
    """

    def __init__(
        self, requests: Sequence[Request], *, only: Sequence[int] | None = None, concurrency: int | None = None, think: int = 0
    ) -> None:
        self.requests, self.think = requests, think
        self.times: dict[int, int] = {}
        numbers = range(len(requests)) if only is None else only
        self._coming: deque[int] = deque()  # requests whose time is known, in order of arrival
        self._closed = concurrency is not None
        first = (i for i in numbers if not self._goes_on(i - 1))
        together = groupby(first, key=lambda i: requests[i].group if requests[i].group >= 0 else -1 - i)
        self._backlog = deque([[*group] for _, group in together] if self._closed else [])
        self._samples: Counter[int] = Counter()  # group -> samples that have come and not ended
        for number in sorted(numbers, key=lambda i: (requests[i].arrival, i)) if concurrency is None else ():
            self._schedule([number], requests[number].arrival)
        for _ in range(min(concurrency or 0, len(self._backlog))):
            self._schedule(self._backlog.popleft(), 0)

    def _goes_on(self, number: int) -> bool:
        """Whether the request after this one is the next turn of its conversation."""
        pair = self.requests[max(number, 0) : number + 2]
        return len(pair) == 2 and pair[0].conversation == pair[1].conversation >= 0

    def _schedule(self, numbers: Sequence[int], time: int) -> None:
        for number in numbers:
            self.times[number] = time
            self._coming.append(number)
            self._samples[self.requests[number].group] += 1

    @property
    def next(self) -> int | None:
        """The time of the next arrival, None if there is none before a request has ended."""
        return self.times[self._coming[0]] if self._coming else None

    @property
    def more(self) -> bool:
        """Whether requests come whose time is not known yet, because others must end first."""
        return self._closed and len(self.times) < len(self.requests)

    def take(self, now: int) -> int | None:
        """Take a request that has come by now: its number, None if there is none."""
        return self._coming.popleft() if self._coming and self.times[self._coming[0]] <= now else None

    def state(self, number: int) -> SequenceState:
        """The state in which a request begins."""
        return SequenceState.of(number, self.requests[number])

    def ended(self, number: int, now: int) -> None:
        """Note that a request has ended; in a closed loop the next one comes."""
        group = self.requests[number].group
        self._samples[group] -= 1
        if self._closed and self._goes_on(number):
            self._schedule([number + 1], now + self.think)
        elif self._backlog and not (group >= 0 and self._samples[group]):
            # All think times are equal, so arrivals stay in order of the ends that they follow.
            self._schedule(self._backlog.popleft(), now + self.think)
