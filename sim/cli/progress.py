"""Progress of a simulation: a line on stderr of a terminal, nothing in a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text

from sim.base.kernel import when_compiling
from sim.base.units import format_time
from sim.cli.console import COMPILING
from sim.executors.size import OnProgress


@contextmanager
def simulating(name: str, then: str = "analyzing") -> Iterator[OnProgress | None]:
    """Show a simulation's progress while the block runs; yields the callback to report to, None if nothing is shown.

    then: verb for the work that follows the last token.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(SpinnerColumn(), _Tokens(), console=console, transient=True) as shown:
        line = shown.add_task(f"simulating {name}", total=None, now=0)

        def on_progress(done: int, in_all: int, now: int) -> None:
            if done == in_all:
                shown.update(line, description=f"{then} {name}")
            shown.update(line, completed=done, total=in_all, now=now)

        with when_compiling(lambda: shown.update(line, description=COMPILING)):
            yield on_progress


class _Tokens(ProgressColumn):
    """Description, then tokens done, time left, rate and simulated time as soon as they are known."""

    def render(self, task: Task) -> Text:
        text = Text(task.description, no_wrap=True, overflow="ellipsis")
        if task.total is None or not task.completed:
            return text
        done, total, simulated = int(task.completed), int(task.total), f"{format_time(task.fields['now'])} simulated"
        if task.finished:
            return text.append(f": {done:,} tokens, {simulated}")
        text.append(f": {done:,} of {total:,} tokens")
        if task.speed and task.time_remaining is not None:
            left = task.time_remaining
            soon = f"{left:,.0f} s" if left < 100 else f"{left / 60:,.0f} min"
            text.append(f", {soon} left, {task.speed:,.0f}/s")
        return text.append(f", {simulated}")
