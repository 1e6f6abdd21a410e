"""Text and tables for narrow terminals: a number stays with its unit, and a table leaves out columns rather than cut them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

#: Stands for a space at which no line breaks: rich breaks lines at every space that Unicode has.
GLUE = "\ue000"

_UNIT = re.compile(r"(?<=[\d%]) (?=[\w%])")

#: Where a heading may break: after a space or a hyphen.
_BREAKS = re.compile(r"(?<=[ -])")

#: Blanks at the end of a line, and escapes of a terminal around them.
_END = re.compile(r"(?: |\x1b\[[\d;]*m)+(?=\n)")

#: Least width of a column of text that wraps, if it has longer texts.
TEXT = 16

#: Columns between two columns of a table.
GAP = 2


def glued(text: str) -> str:
    """A text in which numbers stay on one line with the word after them, once `show` prints it."""
    return _UNIT.sub(GLUE, text)


def trimmed(text: str) -> str:
    """A text without blanks at the ends of its lines, also where these have colors."""
    return _END.sub(lambda found: found[0].replace(" ", ""), text)


def show(console: Console, shown: RenderableType) -> None:
    """Print something with glued texts in it, without blanks at the ends of lines."""
    with console.capture() as captured:
        console.print(shown, highlight=False)
    console.file.write(trimmed(captured.get().replace(GLUE, " ")))


@dataclass(slots=True)
class _Column:
    """A column of a table. right: its cells stand on the right edge. whole: each cell stays on one line."""

    heading: str
    right: bool
    whole: bool
    cells: list[str] = field(default_factory=list)

    @property
    def longest(self) -> int:
        return max(map(cell_len, (self.heading, *self.cells)))

    def least(self, *, whole_heading: bool) -> int:
        """The least width. whole_heading: whether the heading of a column of whole cells stays on one line, too."""
        if self.whole:
            words = [self.heading] if whole_heading else [part.rstrip() for part in _BREAKS.split(self.heading)]
            return max(map(cell_len, (*words, *self.cells)))
        words = [word for text in (self.heading, *self.cells) for word in text.split()]
        return max(min(TEXT, self.longest), *map(cell_len, words), 0)


class Fitting:
    """A table without lines that leaves out columns where it would not fit, and cuts none.

    drop: headings of columns to leave out, the first of them first. Where these are not enough, those on the right edge follow,
    the last of them first; one is always left.
    """

    def __init__(self, *, drop: Sequence[str] = (), header_style: str = "dim", title: str = "") -> None:
        self.drop, self.header_style, self.title = drop, header_style, title
        self.columns = list[_Column]()
        self.styles = list[str]()

    def add_column(self, heading: str = "", *, justify: Literal["left", "right"] = "left", no_wrap: bool = False) -> None:
        """Add a column. Cells on the right edge, and with `no_wrap`, stay on one line; others wrap."""
        self.columns.append(_Column(heading, justify == "right", no_wrap or justify == "right"))

    def add_row(self, *cells: str, style: str = "") -> None:
        for column, cell in zip(self.columns, cells, strict=True):
            column.cells.append(cell)
        self.styles.append(style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept = list(self.columns)
        for column in self._least_needed():
            if _needed(kept, whole_heading=False) <= options.max_width:
                break
            kept.remove(column)
        widths = _widths(kept, options.max_width)
        if self.title:
            yield Text(self.title, style="bold")
        if any(column.heading for column in kept):
            yield from _lines(kept, widths, [column.heading for column in kept], self.header_style, heading=True)
        for i, style in enumerate(self.styles):
            yield from _lines(kept, widths, [column.cells[i] for column in kept], style)

    def _least_needed(self) -> Iterator[_Column]:
        """The columns that may be left out, in this order."""
        named = {column.heading: column for column in self.columns}
        yield from (named[name] for name in self.drop if name in named)
        yield from reversed([c for c in self.columns if c.right and c.heading not in self.drop][1:])


def _needed(columns: Sequence[_Column], *, whole_heading: bool) -> int:
    """The least width of columns side by side."""
    return sum(column.least(whole_heading=whole_heading) for column in columns) + GAP * (len(columns) - 1)


def _widths(columns: Sequence[_Column], room: int) -> list[int]:
    """Widths of columns: texts share what is left, the narrowest column growing first."""
    whole_heading = _needed(columns, whole_heading=True) <= room
    widths = [column.least(whole_heading=whole_heading) for column in columns]
    for _ in range(room - _needed(columns, whole_heading=whole_heading)):
        narrow = [i for i, column in enumerate(columns) if not column.whole and widths[i] < column.longest]
        if not narrow:
            break
        widths[min(narrow, key=lambda i: widths[i])] += 1
    return widths


def _lines(
    columns: Sequence[_Column], widths: Sequence[int], cells: Sequence[str], style: str, *, heading: bool = False
) -> Iterator[Text]:  # fmt: skip
    """The lines of a row, as many as its cells need; headings stand on the last of them."""
    parts = [wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, parts))
    for i in range(height):
        line = ""
        for column, width, part in zip(columns, widths, parts, strict=True):
            at = i - (height - len(part)) * heading
            text = part[at] if 0 <= at < len(part) else ""
            blanks = " " * (width - cell_len(text))
            line += (blanks + text if column.right else text + blanks) + " " * GAP
        yield Text(line.rstrip(), style=style)


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text; a word that is longer than a line goes on in the next one."""
    return textwrap.wrap(text, max(1, width)) if cell_len(text) > width else [text]


def fitted(headings: Sequence[str], rows: Sequence[Sequence[str]], drop: Sequence[str], last: str = "") -> Fitting:
    """A table of numbers under headings, the first column of texts. last: a line below it."""
    table = Fitting(drop=drop, header_style="bold")
    for i, name in enumerate(headings):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if last:
        table.add_row(last, *[""] * (len(headings) - 1), style="dim")
    return table
