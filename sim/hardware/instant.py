"""Order within an instant.

At one instant all completions and arrivals happen first (SimPy's own priorities), then one dispatch pass gives ready
tasks to free engines, then the channels divide their bandwidth anew. SimPy processes equal times in order of priority.
"""

from __future__ import annotations

import simpy


class Environment(simpy.Environment):
    """SimPy's environment with time in integer picoseconds."""

    @property
    def now(self) -> int:
        now: int = self._now  # type: ignore[assignment]  # ints in, ints out: nothing here schedules with a float
        return now


DISPATCH = 2  # after simpy's URGENT (0) and NORMAL (1)
PLAN = 3


class EndOfInstant(simpy.Event):
    """An event of this very instant that is processed after all of lower priority, those yet to come included."""

    def __init__(self, env: Environment, priority: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, priority=priority)  # type: ignore[arg-type]  # simpy names two levels, its queue takes any
