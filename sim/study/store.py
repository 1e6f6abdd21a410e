"""The folder of a study: what was asked, and a row for each finished run, in Parquet files.

| file | content |
| --- | --- |
| `study.json` | the study: axes, columns, constraints, objectives, digests of all that rows depend on |
| `base.yaml` | the base scenario; `sim run base.yaml --set ...` runs one point of it |
| `rows/part-000000.parquet` and on | rows, in batches of the order in which runs ended |
| `trials.log` | choices of an optimization with their results, as a journal of Optuna |

A file of rows is written under another name and renamed, so a reader and a later run see whole rows, whenever this one
is killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from operator import index
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from sim import __version__
from sim.base.errors import InputError
from sim.base.files import check_output, whole_file
from sim.scenario import as_written
from sim.study.axes import Axis
from sim.study.metrics import METRICS
from sim.study.points import Study

MANIFEST, BASE, ROWS, LOCK = "study.json", "base.yaml", "rows", ".lock"

#: Rows are written when there are so many, or the first of them has waited so long (s).
MANY, LONG = 5000, 2.0

#: Columns beside axes, metrics and derived ones. status: ok, failed or skipped.
OK, FAILED, SKIPPED = "ok", "failed", "skipped"


def pyarrow(module: str) -> Any:
    """A module of pyarrow. Raises InputError if it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise InputError("studies are kept as Parquet files, which need pyarrow: pip install 'decode-sim[study]'") from None


class Store:
    """The folder of a study that is run now; one process at a time may have it open."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self._study = folder, study
        self._schema = schema(study)
        self._waiting: list[Mapping[str, Any]] = []
        self._since = 0.0
        self._next = 0

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Make the folder, or go on with it.

        Raises InputError if it holds something else, the study has changed since, or another process has it open.
        """
        check_output(self.folder / ROWS)
        (self.folder / ROWS).mkdir(parents=True, exist_ok=True)
        with _locked(self.folder):
            self._begin()
            yield self

    def _begin(self) -> None:
        path = self.folder / MANIFEST
        if path.exists():
            before = read_manifest(self.folder)["parts"]
            changed = [name for name, digest in self._study.parts.items() if before.get(name) != digest]
            if changed:
                raise InputError(
                    f"{self.folder}: expected the study that these rows are of, but {', '.join(changed)} changed since; "
                    "choose another folder with --out"
                )
        elif any(entry.name not in (LOCK, ROWS) for entry in self.folder.iterdir()):
            raise InputError(f"{self.folder}: expected an empty folder or one of a study, found other files")
        _write(self.folder / BASE, as_written(self._study.base, self.folder))
        _write(path, manifest(self._study))
        numbers = [int(part.stem.rpartition("-")[2]) for part in parts(self.folder)]
        self._next = max(numbers, default=-1) + 1

    def done(self, *, again: Iterable[str] = ()) -> set[tuple[int, int]]:
        """Runs that have a row, as (point, seed). again: statuses whose rows are removed, so that they are run again."""
        again, found = set(again), set[tuple[int, int]]()
        for part in parts(self.folder):
            table = read_part(part, ["point", "seed", "status"])
            rows = table.to_pydict()
            keep = [status not in again for status in rows["status"]]
            found |= {(p, s) for p, s, k in zip(rows["point"], rows["seed"], keep, strict=True) if k}
            if not all(keep):
                whole = read_part(part)
                self._write(part, whole.filter(pyarrow("pyarrow").array(keep)))
        return found

    @property
    def columns(self) -> list[str]:
        """The columns of rows."""
        names: list[str] = self._schema.names
        return names

    def rows(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of all rows that are on disk."""
        wanted = list(dict.fromkeys(columns))
        return [row for part in parts(self.folder) for row in read_part(part, wanted).to_pylist()]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in rows; they are on disk a few seconds later, or after `flush`."""
        if not self._waiting:
            self._since = monotonic()
        self._waiting += rows
        if len(self._waiting) >= MANY or monotonic() - self._since >= LONG:
            self.flush()

    def flush(self) -> None:
        """Write all rows that wait. Raises OSError if the disk is full; the rows are kept."""
        if not self._waiting:
            return
        columns = [column([row.get(field.name) for row in self._waiting], field.type) for field in self._schema]
        table = pyarrow("pyarrow").Table.from_arrays(columns, schema=self._schema)
        self._write(self.folder / ROWS / f"part-{self._next:06d}.parquet", table)
        self._next += 1
        self._waiting.clear()

    @staticmethod
    def _write(path: Path, table: Any) -> None:
        with whole_file(path) as file:
            pyarrow("pyarrow.parquet").write_table(table, file, compression="zstd")


def schema(study: Study) -> Any:
    """The columns of rows, with their types."""
    arrow = pyarrow("pyarrow")
    fields = [("point", arrow.int64()), ("seed", arrow.int64())]
    fields += [(key, _type(axis)) for key, axis in study.keys.items() if key != "seed"]
    if study.find is not None:
        fields.append((study.find.key, _type(study.find.axis)))
    fields += [(name, arrow.float64()) for name in study.columns]
    fields += [("feasible", arrow.bool_()), ("status", arrow.string()), ("error", arrow.string())]
    fields += [(name, arrow.int64() if metric.whole else arrow.float64()) for name, metric in METRICS.items()]
    fields += [("plan", arrow.string()), ("version", arrow.string())]
    return arrow.schema(fields)


def _type(axis: Axis) -> Any:
    """The type of the column of an axis."""
    arrow = pyarrow("pyarrow")
    if axis.types == {bool}:
        return arrow.bool_()
    if axis.types <= {int, float} and axis.types:
        return arrow.int64() if axis.types == {int} else arrow.float64()
    return arrow.string()


def column(values: Sequence[Any], kind: Any) -> Any:
    """An Arrow array of booleans, int64, float64 or texts, with None where there is no value.

    It is made of its buffers: `pyarrow.array` imports pandas, where it is installed, which takes longer than many a study.
    Raises OverflowError for integers that int64 does not hold, TypeError for other numbers among them.
    """
    arrow = pyarrow("pyarrow")
    there = [value is not None for value in values]
    buffers = [None if all(there) else _bits(there)]
    if kind == arrow.string():
        texts = [b"" if value is None else value.encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        buffers += [arrow.py_buffer(ends), arrow.py_buffer(b"".join(texts))]
    elif kind == arrow.bool_():
        buffers.append(_bits([bool(value) for value in values]))
    else:
        dtype, exact = (np.int64, index) if kind == arrow.int64() else (np.float64, float)
        buffers.append(arrow.py_buffer(np.array([0 if value is None else exact(value) for value in values], dtype=dtype)))
    return arrow.Array.from_buffers(kind, len(values), buffers)


def _bits(flags: Sequence[bool]) -> Any:
    """Flags as Arrow packs them, the first in the lowest bit."""
    return pyarrow("pyarrow").py_buffer(np.packbits(np.array(flags, dtype=bool), bitorder="little"))


def cell(axis: Axis, column: Any, text: str) -> Any:
    """A value of an axis as its column holds it: where values are of several types, all are texts."""
    if axis.types == {bool} or (axis.types and axis.types <= {int, float}):
        return column
    return column if isinstance(column, str) or column is None else text


def manifest(study: Study) -> dict[str, Any]:
    """The study as JSON-ready data."""
    return {
        "format": 1,
        "version": __version__,
        "name": study.name,
        "description": study.description,
        "source": study.source,
        "points": len(study),
        "repeats": study.repeats,
        "axes": {
            key: {
                "dimension": axis.dimension.base if axis.dimension is not None else None,
                "values": [[cell(axis, value.column, value.text), value.text] for value in axis.values],
            }
            for key, axis in study.keys.items()
        },
        "columns": {name: each.text for name, each in study.columns.items()},
        "constraints": [each.text for each in study.constraints],
        "objectives": dict(study.objectives),
        "limited": sorted({column for each in study.constraints for column in each.columns}),
        "again": _again(study),
        "find": None if study.find is None else study.find.to_json(),
        "optimize": None if study.optimize is None else study.optimize.to_json(),
        "parts": study.parts,
    }


def _again(study: Study) -> dict[str, str]:
    """Keys, beside its axes, with which a point runs again so that it has a trace: its ops are recorded."""
    whole = study.base.record == "all" or study.base.trace.window is not None or "record" in study.keys
    return {} if whole else {"record": "all"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The `study.json` of a folder. Raises InputError if there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(found.get("parts"), dict):
            raise ValueError
    except FileNotFoundError:
        raise InputError(f"{folder}: expected the folder of a study (`sim sweep` makes one), found no {MANIFEST}") from None
    except (ValueError, AttributeError):
        raise InputError(f"{folder / MANIFEST}: damaged") from None
    return found


def parts(folder: Path) -> list[Path]:
    """The files of rows, in the order in which they were written."""
    return sorted((folder / ROWS).glob("part-*.parquet"))


def read_part(path: Path, columns: list[str] | None = None) -> Any:
    """A file of rows as an Arrow table. Raises InputError if it is damaged."""
    try:
        return pyarrow("pyarrow.parquet").read_table(path, columns=columns, partitioning=None)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}; remove it to run its points again") from None


def _write(path: Path, data: Mapping[str, Any]) -> None:
    with whole_file(path) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process ends, however that is."""
    try:
        fcntl = import_module("fcntl")
    except ImportError:  # not on this system
        yield
        return
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another process runs this study now") from None
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                file.truncate(0)
