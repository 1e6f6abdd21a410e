"""Result of a run as `sim.run` returns it: it shows itself in notebooks, draws charts, and gives tables."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

import sim.runs.result as runs
from sim.base.errors import InputError
from sim.render.frames import columns
from sim.render.headline import html
from sim.render.summary import summary

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from sim.render.plots import Plots


class Result(runs.Result):
    """A run and its analyses; `sim.runs.result.Result` lists its attributes.

    In a notebook it shows its headline. Charts need Matplotlib (`pip install 'decode-sim[plot]'`), and tables pandas or
    pyarrow.
    """

    @classmethod
    def of(cls, result: runs.Result) -> Result:
        """The same result with charts and tables."""
        return cls(**{field.name: getattr(result, field.name) for field in fields(result)})

    def summary(self) -> dict[str, Any]:
        """Every number of the run as plain data: the object that `sim run --json` prints, without wall-clock times."""
        return summary(self, timing=False)

    @property
    def plot(self) -> Plots:
        """Charts: `result.plot.timeline()`, `.bandwidth()`, `.breakdown()`, `.requests()`; each returns Matplotlib axes."""
        made: Plots = import_module("sim.render.plots").Plots(self)
        return made

    def to_pandas(self, table: str = "tasks") -> pandas.DataFrame:
        """A table of `tasks`, `tokens` or `requests`, with times in ps.

        Raises:
            InputError: There is no such table, or ops were not recorded, or pandas is not installed.
        """
        return _extra("pandas", "pandas").DataFrame(columns(self, table))

    def to_arrow(self, table: str = "tasks") -> pyarrow.Table:
        """The same as an Arrow table."""
        return _extra("pyarrow", "parquet").table(columns(self, table))

    def _repr_html_(self) -> str:
        return html(self)


def _extra(module: str, extra: str) -> Any:
    """Import a package that is optional. Raises InputError that says how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise InputError(f"this table needs {module}: pip install 'decode-sim[{extra}]'") from None
