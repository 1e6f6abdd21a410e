"""What a run says while it goes: on a terminal how far it is, in a pipe nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.status import Status
from rich.text import Text

from sim.base.units import format_time
from sim.cli.console import status
from sim.executors.size import Told

EVERY = 0.2  # seconds between two changes of the line


@contextmanager
def simulating(name: str, then: str = "accounting for") -> Iterator[Told | None]:
    """A line about a simulation as long as it goes on; gives what is to be told of it, None where nobody looks.

    then: what is done when all tokens have come.
    """
    with status(f"simulating {name}") as shown:
        yield None if shown is None else Progress(shown, name, then)


class Progress:
    """Keeps the line up to date."""

    def __init__(self, status: Status, name: str, then: str) -> None:
        self._status, self._name, self._then = status, name, then
        self._began = self._shown = perf_counter()

    def __call__(self, done: int, in_all: int, now: int) -> None:
        clock = perf_counter()
        if done < in_all and clock < self._shown + EVERY:
            return
        self._shown = clock
        if done == in_all:
            self._show(f"{self._then} {self._name}: {done:,} tokens, {format_time(now)} simulated")
        elif done:
            rate = done / (clock - self._began)
            left = (in_all - done) / rate
            soon = f"{left:,.0f} s" if left < 100 else f"{left / 60:,.0f} min"
            progress = f"{done:,} of {in_all:,} tokens, {soon} left, {rate:,.0f}/s"
            self._show(f"simulating {self._name}: {progress}, {format_time(now)} simulated")

    def _show(self, line: str) -> None:
        room = self._status.console.width - 3  # beside what turns
        self._status.update(Text(line if len(line) <= room else f"{line[: room - 1]}…"))
