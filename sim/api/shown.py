"""Something to look at: text on a terminal, HTML in a notebook, and the data that it shows."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType

from sim.render.narrow import GLUE

WIDTH = 120  # columns
FORMAT = '<pre style="font-family: monospace; line-height: 1.3; overflow-x: auto">{code}</pre>'


@dataclass(frozen=True, slots=True)
class Shown:
    """Data, as `--json` prints them, and how they are shown. `print` shows them as text, a notebook as HTML."""

    data: dict[str, Any]
    _parts: tuple[RenderableType, ...]

    def _console(self) -> Console:
        console = Console(file=io.StringIO(), width=WIDTH, record=True, markup=False, emoji=False, highlight=False)
        for part in self._parts:
            console.print(part)
        return console

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self._console().export_text().replace(GLUE, " ").splitlines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self._console().export_html(inline_styles=True, code_format=FORMAT).replace(GLUE, " ")
