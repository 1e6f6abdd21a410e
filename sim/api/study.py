"""`sim.sweep`: many scenarios that differ in a few keys."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sim.api.calls import Source, load
from sim.api.shown import Shown
from sim.base.cores import cores
from sim.base.errors import InputError
from sim.study.answers import Answers, read_answers
from sim.study.axes import plain
from sim.study.page import data
from sim.study.points import Study, check, over
from sim.study.points import load as load_study
from sim.study.pool import pool
from sim.study.shipped import find_study
from sim.study.store import Store
from sim.study.sweep import sweep as run_all
from sim.study.tables import csv_rows, render

if TYPE_CHECKING:
    import pandas

BEST = 5  # points that are shown for each objective

#: Values of an axis: a list, or a text as after `--over KEY=`, such as `1..16` or `50..400 GB/s x8 log`.
Values = str | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Swept(Shown):
    """The results of a study. `print` shows the best points and effects, a notebook shows them as HTML; `data` is that of
    `sim study --json`.
    """

    _answers: Answers

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each point, as `sim study --csv` has them: axes in base units, means of columns over seeds.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            frames = import_module("pandas")
        except ImportError as error:
            raise InputError("a data frame needs pandas (pip install 'decode-sim[pandas]')") from error
        text = io.StringIO()
        csv.writer(text).writerows(csv_rows(self._answers))
        text.seek(0)
        frame: pandas.DataFrame = frames.read_csv(text)
        return frame


def sweep(
    source: Source, axes: Mapping[str, Values] | None = None, overrides: Sequence[str] = (), *, repeats: int = 1,
    jobs: int | None = None, folder: str | os.PathLike[str] | None = None,
) -> Swept:  # fmt: skip
    """Run a study, as `sim sweep` does: every combination of values of some keys, on all cores.

    Args:
        source: A scenario, or what one is made of. Without axes: the name of a shipped study, or the path of a file of one.
        axes: Values by key: `{"hardware.engines.count": [2, 4, 8], "hardware.memory.bandwidth": "50..400 GB/s x8 log"}`.
        overrides: Assignments to the scenario, as by `--set`.
        repeats: Runs of each point, with consecutive seeds.
        jobs: Processes; by default one for each core.
        folder: Where rows are kept, so that the same call goes on after an interruption; by default nothing is kept.

    Raises:
        InputError: Something in the scenario or in an axis cannot be used.
    """
    study = _study(source, axes, overrides, repeats)
    check(study)
    with _folder(folder) as kept:
        store = Store(kept, study)
        with store.opened():
            run_all(study, store, pool(min(jobs or cores(), study.runs)))
        answers = read_answers(kept)
    found = data(answers)
    if folder is None:
        found["base"] = None  # no command can run it again
    return Swept(found, (render(answers, BEST, again=folder is not None),), answers)


def _study(source: Source, axes: Mapping[str, Values] | None, overrides: Sequence[str], repeats: int) -> Study:
    if axes:
        texts = [f"{key}={_written(key, values)}" for key, values in axes.items()]
        return over(load(source, overrides), texts, repeats=repeats)
    if overrides or repeats != 1:
        raise InputError("overrides, repeats: expected only with axes; a study says them in its file")
    if not isinstance(source, str | os.PathLike):
        raise InputError("axes: expected values by key, because a scenario alone is no study")
    return load_study(find_study(str(source)))


def _written(key: str, values: Values) -> str:
    """Values as after `--over KEY=`."""
    if isinstance(values, str):
        return values
    texts = [value if isinstance(value, str) else plain(value) for value in values]
    if not texts or any("," in text for text in texts):
        raise InputError(f"{key}: expected numbers or texts without commas; the file of a study can have others")
    return ",".join(texts)


@contextmanager
def _folder(chosen: str | os.PathLike[str] | None) -> Iterator[Path]:
    if chosen is not None:
        yield Path(chosen)
        return
    with TemporaryDirectory() as name:
        yield Path(name) / "study"
