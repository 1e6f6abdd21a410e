"""Order within an instant, and the events that the machine is made of.

At one instant all completions and arrivals happen first (SimPy's own priorities), then one dispatch pass gives ready
tasks to free engines, then the channels divide their bandwidth anew. SimPy processes equal times in order of priority.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

import simpy

NORMAL = 1  # simpy's own; URGENT is 0
DISPATCH = 2
PLAN = 3


class Environment(simpy.Environment):
    """SimPy's environment with time in integer picoseconds.

    `now` is a plain attribute and the loop is one function: SimPy has a property and a method call per event, a sixth of
    the time of a run.
    """

    now: int = 0  # ints in, ints out: nothing here schedules with a float

    def run(self) -> None:  # type: ignore[override]  # to the end, not until some time or event
        """Process events until there are none left. An event that fails, because a process did, raises what it failed with."""
        queue = self._queue
        while queue:
            time, _, _, event = heappop(queue)
            self._now = self.now = time  # type: ignore[assignment]
            callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]  # as SimPy does: it is processed
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value


class Alarm(simpy.Event):
    """An event that happens some time after it is `set`, and can then be set again: no new object for every task."""

    def __init__(self, env: Environment, ring: Callable[[Any], None], priority: int = NORMAL) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self._priority = priority
        self._ring = [ring]

    def set(self, delay: int) -> None:
        """Happen in `delay` ps; only once it has happened may it be set again."""
        env = self.env
        self.callbacks = self._ring
        heappush(env._queue, (env.now + delay, self._priority, next(env._eid), self))  # type: ignore[misc]  # its times are floats
