"""Text and tables for narrow terminals: a number stays with its unit, and a table leaves out columns rather than cut them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

#: Stands for a space at which no line breaks: rich breaks lines at every space that Unicode has.
GLUE = "\ue000"

_UNIT = re.compile(r"(?<=[\d%]) (?=[\w%])")


def glued(text: str) -> str:
    """A text in which numbers stay on one line with the word after them, once `show` prints it."""
    return _UNIT.sub(GLUE, text)


def show(console: Console, shown: RenderableType) -> None:
    """Print something with glued texts in it, without blanks at the ends of lines."""
    with console.capture() as captured:
        console.print(shown)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().replace(GLUE, " ").splitlines()))


class Fitted:
    """A table of numbers under headings, the first column of texts, that leaves out columns where it would not fit.

    drop: headings of columns to leave out, the first of them first.
    """

    def __init__(self, headings: Sequence[str], rows: Sequence[Sequence[str]], drop: Sequence[str], last: str = "") -> None:
        self.headings, self.rows, self.drop, self.last = headings, rows, drop, last

    def _table(self, left_out: Sequence[str]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        kept = [i for i, name in enumerate(self.headings) if name not in left_out]
        for i in kept:
            table.add_column(self.headings[i], justify="right" if i else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*(row[i] for i in kept))
        if self.last:
            table.add_row(self.last, *[""] * (len(kept) - 1), style="dim")
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for count in range(len(self.drop) + 1):
            table = self._table(self.drop[:count])
            if Measurement.get(console, options.update(width=10_000), table).maximum <= options.max_width:
                break
        yield table
