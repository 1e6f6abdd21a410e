"""Consoles that print text literally: names may look like rich's markup or emoji (`[bold]`, `:x:`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from sim.base.kernel import when_compiling
from sim.render.narrow import trimmed
from sim.render.rows import as_json

COMPILING = "compiling the code for large runs, once; this takes up to a minute"


class Trimmed:
    """A stream without the blanks at the ends of lines with which rich fills the columns of tables."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(trimmed(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def output(width: int | None = None) -> Console:
    """Console for results. width: columns when stdout is not a terminal; None: 80."""
    console = Console(markup=False, emoji=False, file=cast("IO[str]", Trimmed(sys.stdout)))
    if width is not None and not console.is_terminal:
        console.width = width
    return console


def print_json(data: Any) -> None:
    """Print data with `Rows` as one JSON object."""
    for piece in as_json(data):
        click.echo(piece, nl=False)
    click.echo()


@contextmanager
def status(line: str) -> Iterator[Status | None]:
    """Show a line on stderr while the block runs. Yields None, and shows nothing, unless stderr is a terminal."""
    console = Console(stderr=True)
    with console.status(Text(line)) as shown, when_compiling(lambda: shown.update(Text(COMPILING))):
        yield shown if console.is_terminal else None
