"""Consoles that print words as they are: names may look like the markup or the emoji of rich (`[bold]`, `:x:`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

from sim.base.kernel import when_compiling

COMPILING = "compiling what large runs need, once: up to a minute"


def output(width: int | None = None) -> Console:
    """For results. width: where it is no terminal, which has its own; None: 80 columns."""
    console = Console(markup=False, emoji=False)
    if width is not None and not console.is_terminal:
        console.width = width
    return console


@contextmanager
def status(line: str) -> Iterator[Status | None]:
    """On a terminal a line on stderr as long as something goes on, elsewhere nothing and None."""
    console = Console(stderr=True)
    with console.status(Text(line)) as shown, when_compiling(lambda: shown.update(Text(COMPILING))):
        yield shown if console.is_terminal else None
