"""Raw measurements: one row per run of an op, kept as columns and as a Parquet file beside the profile that they gave.

| column | what it is |
| --- | --- |
| `kind` | an op kind, or a class of kernels (`sim.cost.profile.device`); `step`: a decode step; one of `STREAMS`: a stream |
| `dtype` | torch's name of the number format |
| `rows` | m: sequences x new tokens of each |
| `n`, `k` | of a matmul of [rows, k] by [k, n]; of other ops, n is the width of the result |
| `heads`, `kv_heads`, `head_dim`, `context` | of an attention op; context counts the tokens attended |
| `flops`, `elements` | floating-point operations of matrix products; elements that all else touches |
| `bytes_read`, `bytes_written` | weights, KV cache and activations; of a stream, what it moved |
| `bytes_shared` | of `bytes_read`, what all rows share: weights |
| `ops` | of a step: how many ops it has; 1 of all others |
| `duration` | picoseconds |
| `streams` | how many such streams or ops ran at once, this one included |
| `beside` | kind of what ran at the same time, empty if it had the device to itself |
| `step` | number of the step in which it ran, -1 if it ran alone: links a `step` to its ops |
| `round` | number of the repetition, from 0: rounds are interleaved in time |
| `model` | name of the model whose step it is from, empty if none |

What does not apply is 0 (or empty).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.base.errors import InputError
from sim.base.files import check_parquet, check_readable, whole_file
from sim.cost.profile.forms import Shapes

TEXTS = ("kind", "dtype", "beside", "model")
#: Columns of whole numbers, with their defaults.
NUMBERS: Mapping[str, int] = {
    "rows": 1, "n": 0, "k": 0, "heads": 0, "kv_heads": 0, "head_dim": 0, "context": 0, "flops": 0, "elements": 0,
    "bytes_read": 0, "bytes_written": 0, "bytes_shared": 0, "ops": 1, "duration": 0, "streams": 1, "step": -1,
    "round": 0,
}  # fmt: skip
COLUMNS = (*TEXTS, *NUMBERS)

#: Kinds of memory stream: read, write, copy, add two into a third, multiply a matrix by a vector.
STREAMS = ("read", "write", "copy", "add", "gemv")

#: Columns that are shapes; the bytes are, too.
SHAPE = ("rows", "n", "k", "heads", "kv_heads", "head_dim", "context", "flops", "elements")

Column = npt.NDArray[Any]


class Samples:
    """Columns of equal length by name: texts as object arrays, all others int64. `samples.n` is `samples.columns["n"]`."""

    def __init__(self, columns: Mapping[str, Sequence[Any] | Column]) -> None:
        """Columns that are left out take their defaults. Raises ValueError for unknown columns and columns that do not fit."""
        unknown = [name for name in columns if name not in COLUMNS]
        if unknown:
            raise ValueError(f"unknown column {unknown[0]!r}; valid: {', '.join(COLUMNS)}")
        length = len(next(iter(columns.values()), ()))
        self.columns: dict[str, Column] = {}
        for name in COLUMNS:
            given = columns.get(name)
            if name in TEXTS:
                column = np.array(["" if v is None else str(v) for v in given] if given is not None else [""] * length, object)
            elif given is None:
                column = np.full(length, NUMBERS[name], dtype=np.int64)
            else:
                column = np.asarray(given, dtype=np.int64)
            if column.shape != (length,):
                raise ValueError(f"column {name!r}: expected {length} rows, found {len(column)}")
            self.columns[name] = column
        if length and (bad := np.flatnonzero(self.columns["duration"] < 1)).size:
            raise ValueError(f"row {bad[0]}: expected a duration of at least 1 ps, found {self.columns['duration'][bad[0]]}")

    def __len__(self) -> int:
        return len(self.columns["kind"])

    def __repr__(self) -> str:
        return f"Samples({len(self)} rows: {', '.join(sorted(set(self.columns['kind'])))})"

    def __getattr__(self, name: str) -> Column:
        if name in COLUMNS:
            return self.columns[name]
        raise AttributeError(name)

    def take(self, rows: npt.NDArray[Any]) -> Samples:
        """Some of the rows: a mask or indices."""
        return Samples({name: column[rows] for name, column in self.columns.items()})

    @staticmethod
    def concatenate(parts: Sequence[Samples]) -> Samples:
        """All rows of the parts, in their order."""
        return Samples({name: np.concatenate([part.columns[name] for part in parts]) for name in COLUMNS if parts})


def shapes_of(samples: Samples) -> Shapes:
    """The shapes of samples, as forms take them."""
    given = {name: samples.columns[name] for name in SHAPE}
    return Shapes(**given, bytes=samples.bytes_read + samples.bytes_written, shared=samples.bytes_shared)


def write_samples(samples: Samples, path: str | os.PathLike[str]) -> None:
    """Write a Parquet file, whole or not at all. Raises OSError."""
    arrow, parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
    texts = {name: arrow.array(samples.columns[name].tolist(), arrow.string()).dictionary_encode() for name in TEXTS}
    table = arrow.table({**texts, **{name: samples.columns[name] for name in NUMBERS}})
    with whole_file(path) as file:
        parquet.write_table(table, file, compression="zstd")


def read_samples(path: str | os.PathLike[str]) -> Samples:
    """Read what `write_samples` wrote. Raises InputError that names the file, for whatever is wrong with it."""
    parquet = _pyarrow("pyarrow.parquet")
    check_readable(path)
    try:
        with parquet.ParquetFile(path) as file:
            check_parquet(path, file.metadata)
            table = file.read()
        return Samples({name: _column(table.column(name)) for name in table.column_names})
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds, for files that are none of its own
        raise InputError(" ".join(f"{path}: not a file of samples: {error}".splitlines())) from None


def _column(column: Any) -> Any:
    if str(column.type) == "int64" and not column.null_count:
        return column.to_numpy().copy()  # Arrow's own cannot be written to
    texts = str(column.type).startswith("dictionary<values=string")  # which are slow to look up one by one
    return (column.cast("string") if texts else column).to_pylist()


def _pyarrow(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise InputError("samples are Parquet files, which need pyarrow: pip install 'decode-sim[parquet]'") from None
