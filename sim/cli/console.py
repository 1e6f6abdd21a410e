"""Consoles that print words as they are: names may look like the markup or the emoji of rich (`[bold]`, `:x:`)."""

from __future__ import annotations

from contextlib import AbstractContextManager

from rich.console import Console
from rich.text import Text


def output(width: int | None = None) -> Console:
    """For results. width: where it is no terminal, which has its own; None: 80 columns."""
    console = Console(markup=False, emoji=False)
    if width is not None and not console.is_terminal:
        console.width = width
    return console


def status(line: str) -> AbstractContextManager[object]:
    """On a terminal a line on stderr as long as something goes on, elsewhere nothing."""
    return Console(stderr=True).status(Text(line))
