"""The order within an instant: completions first, then steps, SRAM, engines and channels, each phase once.

| priority | phase      | what happens                                                                                       |
| -------- | ---------- | -------------------------------------------------------------------------------------------------- |
| 0, 1     |            | SimPy's own events: computations and transfers end, waits are over, processes go on                  |
| 2        | `STEPS`    | loops whose step has ended, or whose request has come, go on, in order of their numbers              |
| 3        | `SRAM`     | requests queue in order of their loops; those that fit are admitted, the oldest first                |
| 4        | `DISPATCH` | ready tasks go to free engines                                                                     |
| 5        | `PLAN`     | transfers are admitted in program order, and arbiters divide the channels anew                      |

SimPy handles events of one time in order of priority, lower numbers first, and events of one priority in the order in which
they were scheduled. So the result must not, and does not, depend on the order of the events of priorities 0 and 1: all that
they do is to change what a later phase looks at. An event that a phase triggers at its own time has priority 0 or 1 again,
and comes before the next phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import simpy
from simpy.events import EventPriority

STEPS, SRAM, DISPATCH, PLAN = (EventPriority(number) for number in (2, 3, 4, 5))


class Environment(simpy.Environment):
    """SimPy's environment, whose time is a whole number of picoseconds."""

    if TYPE_CHECKING:
        now: int


class Phase(simpy.Event):
    """An event that happens at the end of any instant for which it is called, after all events of lower priority.

    It calls `act`, once however often it was called. SimPy triggers an event once, and with normal priority. So this one is
    triggered when it is made, which schedules it for its phase of that first instant; later, it is scheduled again by itself.
    """

    def __init__(self, env: simpy.Environment, priority: EventPriority, act: Callable[[], None]) -> None:
        super().__init__(env)
        self.priority = priority
        self.act = act
        self.called = True
        self.callbacks = [self._schedule]
        self.succeed()

    def call(self) -> None:
        """Have it happen in this instant."""
        if not self.called:
            self.called = True
            self._schedule()

    def _schedule(self, _event: object = None) -> None:
        self.callbacks = [self._happen]
        self.env.schedule(self, priority=self.priority)

    def _happen(self, _event: object) -> None:
        self.called = False  # before it acts: what it does may call for it again
        self.act()


class Turns:
    """The phase of the steps: processes that ask for a turn in an instant get it in order of their numbers."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.waiting: list[tuple[int, simpy.Event]] = []
        self.phase = Phase(env, STEPS, self._act)

    def turn(self, number: int) -> simpy.Event:
        """The turn of a process in this instant; each has a number of its own."""
        event = self.env.event()
        self.waiting.append((number, event))
        self.phase.call()
        return event

    def _act(self) -> None:
        waiting, self.waiting = self.waiting, []
        for _, event in sorted(waiting, key=lambda each: each[0]):
            event.succeed()
